"""Shared code of the soak tests: their run, the batches it was trained on, and the row of the table.

A soak test has the mark `soak`, takes its number of tries from `tries` and its random numbers from `random_numbers`,
and prints one `Row`. `make test-soak` runs all of them; `SOAK_TRIES` and `SOAK_SEED` change tries and random numbers.
"""

import dataclasses
import hashlib
import os
import statistics
import sys
from pathlib import Path

import numpy as np

from tests.support.configs import as_flags, prepared
from tests.support.processes import command


def tries(default: int) -> int:
    """Returns how often a test injects its fault."""
    return int(os.environ.get('SOAK_TRIES', default))


def random_numbers(test: str) -> np.random.Generator:
    """Returns a generator seeded by `SOAK_SEED` and the name of the test."""
    seed = f'{os.environ.get("SOAK_SEED", "0")} {test}'.encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(seed).digest()[:8], 'big'))


@dataclasses.dataclass
class Row:
    """A row of the table: a fault, number of tries, outcomes, seconds to recover, steps lost."""

    fault: str
    outcomes: list[str] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    steps_lost: list[int] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        counts = {outcome: self.outcomes.count(outcome) for outcome in dict.fromkeys(self.outcomes)}
        outcome = '; '.join(f'{count} {name}' for name, count in counts.items())
        columns = [
            self.fault,
            str(len(self.outcomes)),
            outcome,
            _summarize(self.seconds, ' s'),
            _summarize(self.steps_lost),
        ]
        return f'| {" | ".join(columns)} |'


def _summarize(values: list, unit: str = '') -> str:
    """Returns median and maximum as text."""
    return f'{statistics.median(values):.3g} (at most {max(values):.3g}){unit}' if values else '–'


def prepare(directory: Path, **changes: object) -> list[str]:
    """Writes a corpus and returns the flags of a run of 60 steps on it; `changes` as in `tiny_run`."""
    run = {
        'model__dropout_rate': 0.1,
        'train__steps': 60,
        'train__checkpoint_every': 5,
        'train__evaluate_every': 20,
        'train__evaluate_rows': 32,
        'optimizer__warmup_steps': 10,
    }
    return as_flags(prepared(directory, **run | changes))


def train_command(flags: list[str], workdir: Path, record: Path | None = None) -> list[str]:
    """Returns the `train` command; with `record`, it records the batch of every step (see `tests.soak.recorded`)."""
    train = command('train', *flags, f'--workdir={workdir}')
    if record is None:
        return train
    return [sys.executable, '-m', 'tests.soak.recorded', str(record), *train[train.index('train') :]]


def batches(record: Path) -> dict[int, set[str]]:
    """Returns {step: hashes of the batches it was trained on}, over all processes that wrote the record."""
    digests: dict[int, set[str]] = {}
    for line in record.read_text().splitlines():
        step, _, digest = line.partition(' ')
        if len(digest) == 64:  # a kill may cut a line
            digests.setdefault(int(step), set()).add(digest)
    return digests
