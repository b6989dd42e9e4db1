"""The quantities that runs log, with their titles, formats and baselines."""

import dataclasses
import math

from bert_jax.evaluation import ranking
from bert_jax.finetune.metrics import is_fraction


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A logged quantity.

    Attributes:
      key: its key in metrics.jsonl; values on held-out text are logged under `validation/KEY`.
      title: its name on the page and on the terminal.
      baseline: the name of its baseline; '' without one.
      baseline_key: the key of the baseline in evaluation.json, or in metrics.jsonl if `is_held_out`.
      chance: the value of the baseline, if that is a constant.
      is_fraction: whether it is a fraction, formatted as a percentage.
      is_held_out: whether it is measured on held-out examples only; it is then logged under `key` itself.
    """

    key: str
    title: str
    baseline: str = ''
    baseline_key: str = ''
    chance: float | None = None
    is_fraction: bool = False
    is_held_out: bool = False

    def format(self, value: float | None) -> str:
        """Formats a value; None becomes a dash."""
        if value is None:
            return '–'
        if not math.isfinite(value):
            return str(value)
        return f'{value:.1%}' if self.is_fraction else f'{value:.3f}'


MLM_LOSS = Quantity('mlm_loss', 'MLM loss', 'token frequencies', 'unigram_entropy')
MLM_ACCURACY = Quantity(
    'mlm_accuracy', 'MLM accuracy', 'most frequent token', 'most_frequent_accuracy', is_fraction=True
)
CLM_LOSS = Quantity('clm_loss', 'CLM loss')
CLM_ACCURACY = Quantity('clm_accuracy', 'CLM accuracy', is_fraction=True)
MNTP_LOSS = Quantity('mntp_loss', 'MNTP loss')
MNTP_ACCURACY = Quantity('mntp_accuracy', 'MNTP accuracy', is_fraction=True)
RTD_LOSS = Quantity('rtd_loss', 'RTD loss')
RTD_ACCURACY = Quantity('rtd_accuracy', 'RTD accuracy', is_fraction=True)
GENERATOR_LOSS = Quantity('generator_loss', 'MLM loss of the generator')
OF_OTHER_OBJECTIVES = (
    CLM_LOSS,
    CLM_ACCURACY,
    MNTP_LOSS,
    MNTP_ACCURACY,
    RTD_LOSS,
    RTD_ACCURACY,
    GENERATOR_LOSS,
)
NSP_LOSS = Quantity('nsp_loss', 'NSP loss', 'chance', chance=math.log(2))
NSP_ACCURACY = Quantity('nsp_accuracy', 'NSP accuracy', 'chance', chance=0.5, is_fraction=True)
TASK_LOSS = Quantity('loss', 'Loss')
TASK_ACCURACY = Quantity('accuracy', 'Accuracy', is_fraction=True)
LEARNING_RATE = Quantity('learning_rate', 'Learning rate')
THROUGHPUT = Quantity('tokens_per_second', 'Throughput (tokens per second)')
GRAD_NORM = Quantity('grad_norm', 'Gradient norm')
MFU = Quantity('mfu', 'MFU', is_fraction=True)
INPUT_WAIT = Quantity('input_wait_fraction', 'Time spent waiting for input', is_fraction=True)
MASKED_WORDS = Quantity(
    ranking.MASKED_WORDS, 'Masked words (nats/char)', 'character frequencies', 'unigram_nats_per_character'
)
FINAL = (MLM_LOSS, MLM_ACCURACY, NSP_LOSS, NSP_ACCURACY, MASKED_WORDS)
LOGGED = {q.key for q in (*FINAL, TASK_LOSS, TASK_ACCURACY, LEARNING_RATE, THROUGHPUT, GRAD_NORM, MFU, INPUT_WAIT)}
LOGGED |= {'skipped_updates', *(q.key for q in OF_OTHER_OBJECTIVES)}
VALIDATION, BY_LENGTH = 'validation/', 'mlm_loss_by_length/'


def must_be_number(key: str) -> bool:
    """Returns whether the values logged under a key must be numbers."""
    return key in LOGGED or key.startswith((VALIDATION, ranking.PROBE_PREFIX, ranking.RETRIEVAL_PREFIX))


def loss_at(key: str) -> Quantity:
    """Returns the held-out MLM loss on rows of a length, `mlm_loss_by_length/LENGTH`."""
    length = int(key.removeprefix(BY_LENGTH))
    return Quantity(key, f'MLM loss, rows of {length:,}', MLM_LOSS.baseline, MLM_LOSS.baseline_key)


def probe(key: str) -> Quantity:
    """Returns the accuracy of a probe, logged as `probe/NAME`, with its baseline `probe/NAME/most_frequent`."""
    title, baseline = f'Probe: {key.removeprefix(ranking.PROBE_PREFIX)}', f'{key}/{ranking.MOST_FREQUENT}'
    return Quantity(key, title, 'most frequent label', baseline, is_fraction=True, is_held_out=True)


def retrieval(key: str) -> Quantity:
    """Returns nDCG@10 of a retrieval set, logged as `retrieval/NAME/ndcg_at_10`."""
    name = key.removeprefix(ranking.RETRIEVAL_PREFIX).partition('/')[0]
    return Quantity(key, f'Retrieval (nDCG@10): {name}', is_held_out=True)


def task_metric(key: str) -> Quantity:
    """Returns a metric of a fine-tune's task, logged as `validation/NAME`."""
    name = key.removeprefix(VALIDATION)
    if name == TASK_ACCURACY.key:
        return TASK_ACCURACY
    return Quantity(name, name.replace('_', ' '), is_fraction=is_fraction(name))
