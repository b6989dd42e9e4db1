"""What the torture programs share: their run, what it was trained on, and the row of the table.

A torture program is a test marked `soak` that takes its number of tries from `tries` and its random numbers from
`random_numbers`, and prints one `Row`. `make test-soak` runs all of them; `SOAK_TRIES` and `SOAK_SEED` change both.
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
    """How often a program tries its fault."""
    return int(os.environ.get('SOAK_TRIES', default))


def random_numbers(program: str) -> np.random.Generator:
    """The same for the same `SOAK_SEED` and program."""
    seed = f'{os.environ.get("SOAK_SEED", "0")} {program}'.encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(seed).digest()[:8], 'big'))


@dataclasses.dataclass
class Row:
    """A row of the table: a fault, how often it was tried, what came of it, seconds to recover, steps lost."""

    fault: str
    outcomes: list[str] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    steps_lost: list[int] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        counts = {outcome: self.outcomes.count(outcome) for outcome in dict.fromkeys(self.outcomes)}
        outcome = '; '.join(f'{count} {name}' for name, count in counts.items())
        columns = [self.fault, str(len(self.outcomes)), outcome, _spread(self.seconds, ' s'), _spread(self.steps_lost)]
        return f'| {" | ".join(columns)} |'


def _spread(values: list, unit: str = '') -> str:
    """Median and largest."""
    return f'{statistics.median(values):.3g} (at most {max(values):.3g}){unit}' if values else '–'


def prepare(directory: Path, **changes: object) -> list[str]:
    """The flags of a run of 60 steps on a corpus that it writes; `changes` as in `tiny_run`."""
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
    """`train` as a command; with `record`, the batch of every step is noted there (see `tests.soak.recorded`)."""
    train = command('train', *flags, f'--workdir={workdir}')
    if record is None:
        return train
    return [sys.executable, '-m', 'tests.soak.recorded', str(record), *train[train.index('train') :]]


def batches(record: Path) -> dict[int, set[str]]:
    """Step -> the hashes of the batches that it was trained on, over all the processes that wrote the record."""
    found: dict[int, set[str]] = {}
    for line in record.read_text().splitlines():
        step, _, digest = line.partition(' ')
        if len(digest) == 64:  # a kill may cut a line
            found.setdefault(int(step), set()).add(digest)
    return found
