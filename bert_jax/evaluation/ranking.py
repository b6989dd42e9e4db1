"""Metrics for ranking runs whose MLM losses are not comparable: tokenizer, masking, length or text differ."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from bert_jax.evaluation.evaluation_file import num_windows, samples_of

MASKED_WORDS = 'masked_word_nats_per_character'
PROBE_PREFIX, MOST_FREQUENT = 'probe/', 'most_frequent'
RETRIEVAL_PREFIX, _MAIN_OF_RETRIEVAL = 'retrieval/', '/ndcg_at_10'


@dataclasses.dataclass(frozen=True)
class RunMetrics:
    """The metrics of a finished run.

    Attributes:
      step: its last step.
      evaluation: the content of its evaluation.json.
      logged: the last logged value of each metric.
      probe: the `probe` section of its config.
    """

    step: int
    evaluation: Mapping[str, Any]
    logged: Mapping[str, Any]
    probe: Any


@dataclasses.dataclass(frozen=True)
class RankingMetric:
    """A metric that ranks runs.

    Attributes:
      name: the heading of its column.
      reason: why runs are ranked by it, as a clause that starts with 'ranked by'.
      values: the value of each run, in the order of the runs.
      scores: the score of each run; the lowest is best.
    """

    name: str
    reason: str
    values: tuple[float, ...]
    scores: tuple[float, ...]

    def format(self, value: float) -> str:
        return f'{value:.3f}' if self.name == 'nats/char' else f'{value:.1%}'


def common_metric(runs: Sequence[RunMetrics]) -> RankingMetric | None:
    """Returns a metric that all runs share: masked words if possible, else the mean of their probes; None without."""
    if len(runs) < 2:
        return None
    if (masked_words := _masked_words(runs)) is not None:
        return masked_words
    probes = [sorted(filter(is_probe, run.logged)) for run in runs]
    if probes[0] and all(run.probe == runs[0].probe for run in runs) and all(keys == probes[0] for keys in probes):
        values = tuple(statistics.fmean(run.logged[key] for key in probes[0]) for run in runs)
        if all(map(_is_finite, values)):
            names = ', '.join(key.removeprefix(PROBE_PREFIX) for key in probes[0])
            reason = f'ranked by the accuracy of probes ({names}), which does not depend on the tokenizer'
            return RankingMetric('probe', reason, values, tuple(-value for value in values))
    return None


def _masked_words(runs: Sequence[RunMetrics]) -> RankingMetric | None:
    """Returns the metric on the largest sample of words that all runs were evaluated on at their last step."""
    if not all(run.evaluation.get('step') == run.step for run in runs):
        return None
    samples_by_run = [{sample['words_sample']: sample for sample in samples_of(run.evaluation)} for run in runs]
    for key, sample in samples_by_run[0].items():  # largest sample first
        values = tuple(filter(_is_finite, (samples.get(key, {}).get(MASKED_WORDS) for samples in samples_by_run)))
        if len(values) < len(runs):
            continue
        size = f', {num_windows(sample):,} text windows' if num_windows(sample) else ''
        reason = (
            'ranked by masked words, in nats per character, which does not depend on the tokenizer: all runs were '
            f'evaluated on the same words (sample {key}{size})'
        )
        return RankingMetric('nats/char', reason, values, values)
    return None


def is_probe(key: str) -> bool:
    """Returns whether a logged value is the accuracy of a probe, and not its baseline."""
    return key.startswith(PROBE_PREFIX) and '/' not in key.removeprefix(PROBE_PREFIX)


def is_retrieval(key: str) -> bool:
    """Returns whether a logged value is the main metric of a retrieval set."""
    return key.startswith(RETRIEVAL_PREFIX) and key.endswith(_MAIN_OF_RETRIEVAL)


def _is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
