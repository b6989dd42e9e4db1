"""Counts the epochs of a run and suggests flags for a shorter one."""

from collections.abc import Iterable
from typing import Any

from bert_jax.config import Config
from bert_jax.data.batches import Stream

MOST_EPOCHS = 40  # of the original BERT


def num_epochs(config: Config, streams: Iterable[Stream[Any]]) -> float:
    """Returns the epochs of a run over all phases; `streams` has one stream per phase."""
    phases = zip(config.in_phases, streams, strict=True)
    return sum(phase.train.steps * stream.batch_size / stream.num_rows for phase, stream in phases)


def flags_of_shorter(config: Config, share: float) -> str:
    """Returns flags that shorten each phase of a run to a share of its steps, with a warm-up that fits."""
    suggested = []
    for index, phase in enumerate(config.in_phases):
        train, optimizer = (f'phases[{index}]',) * 2 if config.phases else ('train', 'optimizer')
        steps = max(1, int(phase.train.steps * share))
        suggested.append(f'--config.{train}.steps={steps}')
        if phase.optimizer.warmup_steps > steps:
            suggested.append(f'--config.{optimizer}.warmup_steps={steps // 10}')
    return ' '.join(suggested)
