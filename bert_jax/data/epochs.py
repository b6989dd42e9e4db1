"""How often a run goes through its text, and what to set where that, or the time it takes, is out of proportion."""

from collections.abc import Iterable
from typing import Any

from bert_jax.config import Config
from bert_jax.data.batches import Stream

MOST_EPOCHS = 40  # as many as the original made


def num_epochs(config: Config, streams: Iterable[Stream[Any]]) -> float:
    """Epochs of a run, all phases together; a stream for each phase."""
    phases = zip(config.in_phases, streams, strict=True)
    return sum(phase.train.steps * stream.batch_size / stream.num_rows for phase, stream in phases)


def flags_of_shorter(config: Config, share: float) -> str:
    """The flags that shorten a run, or each of its phases, to a share of its steps; its warm-up has to fit."""
    found = []
    for number, phase in enumerate(config.in_phases):
        train, optimizer = (f'phases[{number}]',) * 2 if config.phases else ('train', 'optimizer')
        steps = max(1, int(phase.train.steps * share))
        found.append(f'--config.{train}.steps={steps}')
        if phase.optimizer.warmup_steps > steps:
            found.append(f'--config.{optimizer}.warmup_steps={steps // 10}')
    return ' '.join(found)
