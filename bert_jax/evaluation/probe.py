"""Probes: how well a linear classifier on the frozen encoder's vectors tells the classes of small labelled sets."""

import dataclasses
import hashlib
import importlib.util
import warnings
from collections import Counter
from collections.abc import Callable

import jax
from flax import nnx

from bert_jax import config
from bert_jax.config.finetuning import Task
from bert_jax.data.labelled import RecordReader, sorted_labels
from bert_jax.errors import BadInput
from bert_jax.evaluation.evaluator import Evaluation, is_due_every
from bert_jax.evaluation.ranking import MOST_FREQUENT, PROBE, is_probe
from bert_jax.pretrained.load import Pretrained

_TEST_SHARE = 5  # one of so many examples is kept for the test


@dataclasses.dataclass(frozen=True)
class LabelledSet:
    """Different texts in an order of their own (by hash), each with its class; the first `num_test` are the test."""

    name: str
    texts: list[str]
    labels: list[str]
    num_test: int

    @property
    def most_frequent(self) -> float:
        """The accuracy on the test of the class that is the most frequent in the rest."""
        [(label, _)] = Counter(self.labels[self.num_test :]).most_common(1)
        return self.labels[: self.num_test].count(label) / self.num_test


@dataclasses.dataclass(frozen=True)
class Probe:
    """Probes the encoder of a run.

    Attributes:
      every: steps between probes; there is one at the last step too.
      model_at: (params, step) -> the model with its tokenizer.
    """

    sets: list[LabelledSet]
    every: int
    model_at: Callable[[nnx.State, int], Pretrained]
    activity: str = 'probing'

    def is_due(self, step: int, *, is_final: bool) -> bool:
        return is_due_every(self.every, step, is_final=is_final)

    def __call__(self, params: nnx.State, step: int, stop_now: Callable[[], bool]) -> Evaluation:
        found = accuracies(self.model_at(params, step), self.sets)
        return Evaluation(found, f'probe {describe(found)}')


def open_sets(probe: config.Probe, every: int) -> list[LabelledSet]:
    """The labelled sets of a run's probes; none where `train.probe_every` is 0.

    Raises:
      BadInput: for a run of several processes, a missing library or file, a missing column, a single class.
    """
    if not every:
        return []
    where = 'config.train.probe_every'
    if jax.process_count() > 1:
        found = f'is {every}, and this run has {jax.process_count()} processes'
        raise BadInput(where, found, '0: probes are for runs of one process', f'--{where}=0')
    if importlib.util.find_spec('sklearn') is None:
        fix = "pip install -e '.[finetune]'"
        raise BadInput(where, 'needs scikit-learn, which is not installed', 'the extra', fix)
    return [_open(name, source, probe) for name, source in probe.sets]


def _open(name: str, source: str, probe: config.Probe) -> LabelledSet:
    task = Task(text=probe.text, label=probe.label)
    try:
        records = list(RecordReader(source, task, (probe.text, probe.label)))
        by_text = {str(r.fields[probe.text]): str(r.fields[probe.label]).strip() for r in reversed(records)}
        sorted_labels(by_text.values(), source)
    except BadInput as error:  # in the words of a fine-tune
        fix = 'config.probe.sets names the files, config.probe.text and config.probe.label their columns'
        raise BadInput(*error.args[:3], fix) from None
    texts = sorted(by_text, key=lambda text: hashlib.blake2b(text.encode('utf-8', 'replace'), digest_size=8).digest())
    texts = texts[: probe.max_examples]
    found = LabelledSet(name, texts, [by_text[text] for text in texts], len(texts) // _TEST_SHARE)
    num_classes = len({*found.labels[found.num_test :]})
    if not found.num_test or num_classes < 2:
        expected = f'at least {_TEST_SHARE} different texts of two classes'
        raise BadInput(source, f'holds {len(texts)} different texts, {num_classes} classes to learn', expected)
    return found


def accuracies(pretrained: Pretrained, sets: list[LabelledSet]) -> dict[str, float]:
    """For each set `probe/NAME`, the accuracy on its test part, and `probe/NAME/most_frequent`, to read it by.

    Logistic regression on the standardized means over the last layer's vectors; the same vectors give the same figure.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = {}
    for labelled in sets:
        vectors, _ = pretrained.mean_pooled(labelled.texts)
        test, rest = slice(labelled.num_test), slice(labelled.num_test, None)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', ConvergenceWarning)  # the figure is what counts
            classifier.fit(vectors[rest], labelled.labels[rest])
        name = PROBE + labelled.name
        found[name] = float(classifier.score(vectors[test], labelled.labels[test]))
        found[f'{name}/{MOST_FREQUENT}'] = labelled.most_frequent
    return found


def describe(found: dict[str, float]) -> str:
    """The accuracies next to their baselines, in a line."""
    return ', '.join(
        f'{name.removeprefix(PROBE)} {accuracy:.1%} (most frequent class {found[f"{name}/{MOST_FREQUENT}"]:.1%})'
        for name, accuracy in found.items()
        if is_probe(name)
    )
