"""Counts the epochs of a run and suggests flags for a shorter one."""

from collections.abc import Iterable
from typing import Any

from bert_jax.config import Config, num_rows
from bert_jax.data.batches import Stream
from bert_jax.data.fill import fill_of_phases
from bert_jax.text.splits import Split

MOST_EPOCHS = 40  # of the original BERT


def epochs_of_phases(config: Config, streams: Iterable[Stream[Any]]) -> list[float]:
    """Returns the epochs of each phase of a run; `streams` has one stream per phase."""
    phases = zip(config.in_phases, streams, strict=True)
    return [num_rows(phase.train) / stream.num_rows for phase, stream in phases]


def num_epochs(config: Config, streams: Iterable[Stream[Any]]) -> float:
    """Returns the epochs of a run over all phases; `streams` has one stream per phase."""
    return sum(epochs_of_phases(config, streams))


def estimate_epochs(config: Config, split: Split) -> list[float]:
    """Estimates the epochs of each phase of a run on a split of a corpus, without planning rows; [] if it is empty."""
    fills = fill_of_phases(config, split)
    return [
        num_rows(phase.train) * phase.data.sequence_length * fill.share / split.num_tokens
        for phase, fill in zip(config.in_phases, fills, strict=False)
    ]


def flags_of_shorter(config: Config, share: float) -> str:
    """Returns flags that shorten each phase of a run to a share of its steps, with a warm-up that fits."""
    suggested = []
    for index, phase in enumerate(config.in_phases):
        train, optimizer = (f'phases[{index}]',) * 2 if config.phases else ('train', 'optimizer')
        steps = max(1, int(phase.train.steps * share))
        length = f'tokens={phase.train.tokens * share:.3g}' if phase.train.tokens else f'steps={steps}'
        suggested.append(f'--config.{train}.{length}')
        if phase.optimizer.warmup_steps > steps:
            suggested.append(f'--config.{optimizer}.warmup_steps={steps // 10}')
        if phase.train.batch_warmup_steps > steps:
            suggested.append(f'--config.{train}.batch_warmup_steps={max(1, steps // 10)}')
    return ' '.join(suggested)
