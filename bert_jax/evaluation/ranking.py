"""By what runs can be ranked whose MLM losses do not compare: another tokenizer, masking, length or text."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from bert_jax.evaluation.recorded import samples_of, size_of

WORDS = 'masked_word_nats_per_character'
PROBE, MOST_FREQUENT = 'probe/', 'most_frequent'


@dataclasses.dataclass(frozen=True)
class Figures:
    """What is known of a finished run.

    Attributes:
      step: the last one.
      evaluation: its evaluation.json.
      metrics: the last value of each thing that it logged.
      probe: the `probe` of its config.
    """

    step: int
    evaluation: Mapping[str, Any]
    metrics: Mapping[str, Any]
    probe: Any


@dataclasses.dataclass(frozen=True)
class Measure:
    """What runs are ranked by.

    Attributes:
      name: as a column is headed.
      why: a sentence.
      values: of each run, in their order.
      scores: likewise, the lowest the best.
    """

    name: str
    why: str
    values: tuple[float, ...]
    scores: tuple[float, ...]

    def show(self, value: float) -> str:
        return f'{value:.3f}' if self.name == 'nats/char' else f'{value:.1%}'


def common_measure(runs: Sequence[Figures]) -> Measure | None:
    """What all of the runs have been measured by alike: masked words, else probes; None where there is neither."""
    if len(runs) < 2:
        return None
    if (by_words := _by_masked_words(runs)) is not None:
        return by_words
    names = [sorted(name for name in run.metrics if is_probe(name)) for run in runs]
    if names[0] and all(run.probe == runs[0].probe for run in runs) and all(name == names[0] for name in names):
        values = tuple(statistics.fmean(run.metrics[name] for name in names[0]) for run in runs)
        if all(map(_is_finite, values)):
            told = ', '.join(name.removeprefix(PROBE) for name in names[0])
            why = f'ranked by the accuracy of probes on the frozen encoder ({told}), which depends on no tokenizer'
            return Measure('probe', why, values, tuple(-value for value in values))
    return None


def _by_masked_words(runs: Sequence[Figures]) -> Measure | None:
    """By the largest sample of words that all of the runs were evaluated on at their last step."""
    if not all(run.evaluation.get('step') == run.step for run in runs):
        return None
    of_each = [{sample['words_sample']: sample for sample in samples_of(run.evaluation)} for run in runs]
    for name, sample in of_each[0].items():  # the largest first
        values = tuple(filter(_is_finite, (samples.get(name, {}).get(WORDS) for samples in of_each)))
        if len(values) < len(runs):
            continue
        size = f', {size_of(sample):,} windows of text' if size_of(sample) else ''
        why = (
            'ranked by masked words in nats a character, which depends on no tokenizer: all were evaluated on the same '
            f'words (sample {name}{size})'
        )
        return Measure('nats/char', why, values, values)
    return None


def is_probe(name: str) -> bool:
    """Whether a logged value is the accuracy of a probe, and not the baseline next to it."""
    return name.startswith(PROBE) and '/' not in name.removeprefix(PROBE)


def _is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
