"""The quantities that runs log: their names, formats and baselines."""

import dataclasses
import math

from bert_jax.evaluation import ranking
from bert_jax.finetune.metrics import is_fraction


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A logged quantity.

    Attributes:
      key: in metrics.jsonl; of held-out text with `validation/` before it.
      title: its name on the page.
      baseline: what the baseline is; '' without one.
      baseline_key: the key of the baseline in evaluation.json, or in metrics.jsonl if `is_held_out`.
      chance: the baseline's value, where it is a constant.
      percent: whether it is a fraction, shown in percent.
      is_held_out: whether it is measured on held-out examples only; it is then logged under `key` itself.
    """

    key: str
    title: str
    baseline: str = ''
    baseline_key: str = ''
    chance: float | None = None
    percent: bool = False
    is_held_out: bool = False

    def show(self, value: float | None) -> str:
        """A value as text; a dash for None."""
        if value is None:
            return '–'
        if not math.isfinite(value):
            return str(value)
        return f'{100 * value:.1f} %' if self.percent else f'{value:.3f}'


MLM_LOSS = Quantity('mlm_loss', 'MLM loss', 'unigram entropy', 'unigram_entropy')
MLM_ACCURACY = Quantity('mlm_accuracy', 'MLM accuracy', 'most frequent token', 'most_frequent_accuracy', percent=True)
NSP_LOSS = Quantity('nsp_loss', 'NSP loss', 'chance', chance=math.log(2))
NSP_ACCURACY = Quantity('nsp_accuracy', 'NSP accuracy', 'chance', chance=0.5, percent=True)
TASK_LOSS = Quantity('loss', 'Loss')
TASK_ACCURACY = Quantity('accuracy', 'Accuracy', percent=True)
LEARNING_RATE = Quantity('learning_rate', 'Learning rate')
THROUGHPUT = Quantity('tokens_per_second', 'Throughput (tokens per second)')
GRAD_NORM = Quantity('grad_norm', 'Gradient norm')
MFU = Quantity('mfu', 'MFU', percent=True)
INPUT_WAIT = Quantity('input_wait_fraction', 'Waiting for input', percent=True)
WORDS = Quantity(ranking.MASKED_WORDS, 'Nats per char', 'character frequencies', 'unigram_nats_per_character')
FINAL = (MLM_LOSS, MLM_ACCURACY, NSP_LOSS, NSP_ACCURACY, WORDS)
LOGGED = {q.key for q in (*FINAL, TASK_LOSS, TASK_ACCURACY, LEARNING_RATE, THROUGHPUT, GRAD_NORM, MFU, INPUT_WAIT)}
LOGGED |= {'skipped_updates'}
VALIDATION = 'validation/'


def is_a_number(key: str) -> bool:
    """Whether the values logged under a key must be numbers."""
    return key in LOGGED or key.startswith((VALIDATION, ranking.PROBE_PREFIX))


def probe(key: str) -> Quantity:
    """The accuracy of a probe, logged as `probe/NAME`; `probe/NAME/most_frequent` is its baseline."""
    title, baseline = f'Probe: {key.removeprefix(ranking.PROBE_PREFIX)}', f'{key}/{ranking.MOST_FREQUENT}'
    return Quantity(key, title, 'most frequent label', baseline, percent=True, is_held_out=True)


def task_metric(key: str) -> Quantity:
    """A metric of a fine-tune's task, logged as `validation/NAME`."""
    name = key.removeprefix(VALIDATION)
    return (
        TASK_ACCURACY
        if name == TASK_ACCURACY.key
        else Quantity(name, name.replace('_', ' '), percent=is_fraction(name))
    )
