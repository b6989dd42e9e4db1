"""Probes of the frozen encoder: logistic regression on its vectors, on small labelled datasets, and retrieval."""

import dataclasses
import hashlib
import importlib.util
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
from flax import nnx

from bert_jax import config
from bert_jax.config.finetuning import Task
from bert_jax.data.labelled import RecordReader, sort_labels
from bert_jax.errors import BadInput
from bert_jax.evaluation.evaluator import Evaluation, is_due_every
from bert_jax.evaluation.ranking import MOST_FREQUENT, PROBE_PREFIX, RETRIEVAL_PREFIX, is_probe, is_retrieval
from bert_jax.evaluation.retrieval.dataset import RetrievalSet, read_set
from bert_jax.evaluation.retrieval.evaluate import evaluate_model
from bert_jax.evaluation.retrieval.metrics import RankingMetrics
from bert_jax.pretrained.load import Pretrained
from bert_jax.pretrained.sentences import RetrievalSettings, SentenceSettings

_EXAMPLES_PER_TEST_EXAMPLE = 5  # one example in five is in the test split
_BEIR = 'beir:'


@dataclasses.dataclass(frozen=True)
class LabelledDataset:
    """Distinct texts ordered by hash, with their labels; the first `num_test` examples are the test split."""

    name: str
    texts: list[str]
    labels: list[str]
    num_test: int

    @property
    def most_frequent_accuracy(self) -> float:
        """The test accuracy of always predicting the most frequent label of the training split."""
        [(label, _)] = Counter(self.labels[self.num_test :]).most_common(1)
        return self.labels[: self.num_test].count(label) / self.num_test


@dataclasses.dataclass(frozen=True)
class NamedRetrievalSet:
    """A retrieval set, with the name under which its metrics are logged."""

    name: str
    retrieval: RetrievalSet


ProbeSet = LabelledDataset | NamedRetrievalSet


@dataclasses.dataclass(frozen=True)
class Probe:
    """The evaluator that probes the encoder during training.

    Attributes:
      datasets: labelled datasets and retrieval sets.
      every: steps between probes; the last step is always probed.
      model_at: maps (params, step) to the model with its tokenizer.
      settings: how queries and passages of retrieval sets become vectors; by default, the mean over the tokens.
    """

    datasets: list[ProbeSet]
    every: int
    model_at: Callable[[nnx.State, int], Pretrained]
    settings: RetrievalSettings = RetrievalSettings(SentenceSettings(''), SentenceSettings(''))
    activity: str = 'probing'

    def is_due(self, step: int, *, is_final: bool) -> bool:
        return is_due_every(self.every, step, is_final=is_final)

    def __call__(self, params: nnx.State, step: int, stop_now: Callable[[], bool]) -> Evaluation:
        model = self.model_at(params, step)
        metrics = accuracies(model, [each for each in self.datasets if isinstance(each, LabelledDataset)])
        for each in self.datasets:
            if isinstance(each, NamedRetrievalSet):
                metrics |= retrieval_metrics(model, self.settings, each)
        return Evaluation(metrics, f'probe {describe(metrics)}')


def load_datasets(probe: config.Probe, every: int) -> list[ProbeSet]:
    """Reads the datasets of a run's probes; returns none if `every`, `train.probe_every`, is 0.

    Raises:
      BadInput: for a run with several processes, a missing library, file or column, or a dataset with a single class.
    """
    if not every:
        return []
    where = 'config.train.probe_every'
    if jax.process_count() > 1:
        found = f'is {every}, and this run has {jax.process_count()} processes'
        raise BadInput(where, found, '0, because probes need a run with one process', f'--{where}=0')
    if not all(map(_is_retrieval, probe.sets)) and importlib.util.find_spec('sklearn') is None:
        fix = "pip install -e '.[finetune]'"
        raise BadInput(where, 'needs scikit-learn, which is not installed', 'the extra finetune', fix)
    return [_load_retrieval(*each) if _is_retrieval(each) else _load(*each, probe) for each in probe.sets]


def _is_retrieval(named_source: tuple[str, str]) -> bool:
    return named_source[1].startswith(_BEIR)


def _load_retrieval(name: str, source: str) -> NamedRetrievalSet:
    """Reads `beir:DIR`, which means the split `test`, or `beir:DIR/qrels/SPLIT.tsv`."""
    path = Path(source.removeprefix(_BEIR))
    if path.parent.name == 'qrels' and path.suffix == '.tsv':
        return NamedRetrievalSet(name, read_set(str(path.parent.parent), path.stem))
    return NamedRetrievalSet(name, read_set(str(path), 'test'))


def _load(name: str, source: str, probe: config.Probe) -> LabelledDataset:
    task = Task(text=probe.text, label=probe.label)
    try:
        records = list(RecordReader(source, task, (probe.text, probe.label)))
        by_text = {str(r.fields[probe.text]): str(r.fields[probe.label]).strip() for r in reversed(records)}
        sort_labels(by_text.values(), source)
    except BadInput as error:  # its fix names the fields of a fine-tune
        fix = 'config.probe.sets names the files, config.probe.text and config.probe.label their columns'
        raise BadInput(*error.args[:3], fix) from None
    texts = sorted(by_text, key=lambda text: hashlib.blake2b(text.encode('utf-8', 'replace'), digest_size=8).digest())
    texts = texts[: probe.max_examples]
    num_test = len(texts) // _EXAMPLES_PER_TEST_EXAMPLE
    dataset = LabelledDataset(name, texts, [by_text[text] for text in texts], num_test)
    num_labels = len({*dataset.labels[num_test:]})
    if not num_test or num_labels < 2:
        found = f'has {len(texts)} distinct texts, and {num_labels} labels in its training split'
        raise BadInput(source, found, f'at least {_EXAMPLES_PER_TEST_EXAMPLE} distinct texts, with at least two labels')
    return dataset


def accuracies(pretrained: Pretrained, datasets: list[LabelledDataset]) -> dict[str, float]:
    """Measures each dataset: `probe/NAME` is the test accuracy, and `probe/NAME/most_frequent` its baseline.

    The features are the means of the last layer's vectors, standardized. Equal vectors give equal accuracies.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    metrics = {}
    for dataset in datasets:
        vectors, _ = pretrained.mean_pooled(dataset.texts)
        test, training = slice(dataset.num_test), slice(dataset.num_test, None)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', ConvergenceWarning)  # the accuracy is meaningful without it
            classifier.fit(vectors[training], dataset.labels[training])
        key = PROBE_PREFIX + dataset.name
        metrics[key] = float(classifier.score(vectors[test], dataset.labels[test]))
        metrics[f'{key}/{MOST_FREQUENT}'] = dataset.most_frequent_accuracy
    return metrics


def retrieval_metrics(
    pretrained: Pretrained, settings: RetrievalSettings, dataset: NamedRetrievalSet
) -> dict[str, float]:
    """Returns the metrics of a retrieval set, `retrieval/NAME/ndcg_at_10` and so on, and `mean_cosine` if defined."""
    measured = evaluate_model('the model', pretrained, settings, dataset.retrieval)
    names = (*(field.name for field in dataclasses.fields(RankingMetrics)), 'mean_cosine')
    return {f'{RETRIEVAL_PREFIX}{dataset.name}/{name}': measured[name] for name in names if measured[name] is not None}


def describe(metrics: dict[str, float]) -> str:
    """Formats the accuracies and their baselines, and nDCG@10 of retrieval sets, on one line."""
    accuracies = [
        f'{key.removeprefix(PROBE_PREFIX)} {value:.1%} (most frequent label {metrics[f"{key}/{MOST_FREQUENT}"]:.1%})'
        for key, value in metrics.items()
        if is_probe(key)
    ]
    names = {key: key.removeprefix(RETRIEVAL_PREFIX).partition('/')[0] for key in metrics if is_retrieval(key)}
    return ', '.join([*accuracies, *(f'{name} nDCG@10 {metrics[key]:.4f}' for key, name in names.items())])
