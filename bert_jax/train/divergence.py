"""Numbers gone wrong: which steps are bad, when a run goes back, and what its checkpoints say of it.

A step is bad when its loss or gradient was not finite (the step itself then left the state as it was), or when its loss
lies beyond median + threshold x MAD of the newest sound losses. So many bad steps in a row are trouble: the run
goes back to a sound checkpoint and passes over the batches read since. What is bad is worked out from the losses alone,
which all processes have, and what it rests on is part of every checkpoint: all processes, and a run that is
killed and goes on, come to the same decisions.
"""

import collections
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from bert_jax.config import Config, Train
from bert_jax.data.skips import Windows, merged, passing_over
from bert_jax.errors import BadInput
from bert_jax.train.state import TrainState, is_finite

_READ_STEPS_LATE = 2  # so that no step waits for the one before


@dataclasses.dataclass(frozen=True)
class Trouble:
    """So many bad steps in a row: from `first` to `last` (steps count from 1), and what was wrong with the last."""

    first: int
    last: int
    found: str

    def __str__(self) -> str:
        return f'{self.found}, {self.last - self.first + 1} steps in a row'


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run knows of its numbers at a step; kept in the checkpoint.

    Attributes:
      passed_over: the windows of the streams that it has left out, and will.
      rollbacks: how often it has gone back.
      skipped_updates: steps whose update was left out, because it was not finite.
      bad_in_a_row: how many of the newest steps were bad.
      phase, losses: the newest sound losses, of this phase only.
    """

    passed_over: Windows = ()
    rollbacks: int = 0
    skipped_updates: int = 0
    bad_in_a_row: int = 0
    phase: int = 0
    losses: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As it stands in a checkpoint."""
        return dataclasses.asdict(self)

    def passing_over(self, trouble: Trouble, newest: 'Record', phases: tuple[Config, ...], back_at: int) -> 'Record':
        """Of a run that goes back to this record's step: the batches read since, up to the trouble, are left out.

        Args:
          newest: the record of the run as it is.
          back_at: the step that it goes back to.
        """
        steps = [phase.train.steps for phase in phases]
        windows = passing_over(newest.passed_over, steps, back_at, trouble.last)
        return dataclasses.replace(self, passed_over=windows, rollbacks=newest.rollbacks + 1)

    @classmethod
    def from_json(cls, content: dict[str, Any], where: str) -> 'Record':
        """Raises BadInput, naming `where`, for what `to_json` did not write."""
        try:
            counts = {name: content[name] for name in ('rollbacks', 'skipped_updates', 'bad_in_a_row', 'phase')}
            losses = tuple(float(loss) for loss in content['losses'])
            windows = merged(content['passed_over'])
            numbers = [*counts.values(), *(number for window in windows for number in window)]
            if not all(type(number) is int and number >= 0 for number in numbers):
                raise ValueError
            if not all(map(math.isfinite, losses)):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise BadInput(where, 'is damaged', 'what a run knew of its numbers') from None
        return cls(windows, losses=losses, **counts)


class Guard:
    """Watches the steps of a run."""

    def __init__(self, settings: Train, record: Record):
        """Args: record, what is known at the step that the run goes on from."""
        self._settings, self._record = settings, record
        self._losses = collections.deque(record.losses, settings.spike_window)
        self._pending: collections.deque[tuple[int, int, jax.Array, jax.Array]] = collections.deque()

    @property
    def record(self) -> Record:
        """What is known at the newest step that was read."""
        return dataclasses.replace(self._record, losses=tuple(self._losses))

    def add(self, step: int, phase: int, loss: jax.Array, is_skipped: jax.Array) -> None:
        """Takes note of a step, without waiting for it."""
        self._pending.append((step, phase, loss, is_skipped))

    def trouble(self, *, up_to_now: bool, to_save: TrainState | None = None) -> Trouble | None:
        """The trouble that the run is in, if it is; `up_to_now` waits for the newest step, otherwise two are left.

        Args:
          to_save: the newest state, where it is to be saved: then all of it has to be finite.
        """
        while len(self._pending) > (0 if up_to_now else _READ_STEPS_LATE):
            step, phase, *on_device = self._pending.popleft()
            found = self._read(phase, *jax.device_get(on_device))
            if found and self._record.bad_in_a_row >= self._settings.max_bad_steps:
                return Trouble(step - self._record.bad_in_a_row + 1, step, found)
        if to_save is not None and not is_finite(to_save):
            step = int(to_save.step)
            return Trouble(step, step, 'the parameters or the optimizer state are not finite')
        return None

    def _read(self, phase: int, loss: float, is_skipped: bool) -> str:
        """What is wrong with a step, or ''."""
        loss, record = float(loss), self._record
        if phase != record.phase:  # other rows have other losses
            self._losses.clear()
        limit = self._limit()
        if is_skipped:
            found = 'the loss or its gradient is not finite'
        elif loss > limit:
            found = f'the loss is {loss:.3f}; beyond {limit:.3f} is a spike (train.spike_threshold)'
        else:
            found = ''
            self._losses.append(loss)
        self._record = dataclasses.replace(
            record,
            phase=phase,
            skipped_updates=record.skipped_updates + int(is_skipped),
            bad_in_a_row=record.bad_in_a_row + 1 if found else 0,
        )
        return found

    def _limit(self) -> float:
        """Median + threshold x median absolute deviation, once the window is full."""
        if not self._settings.spike_threshold or len(self._losses) < self._settings.spike_window:
            return math.inf
        losses = np.array(self._losses)
        median = np.median(losses)
        return float(median + self._settings.spike_threshold * np.median(np.abs(losses - median)))


def check_may_go_back(settings: Train, record: Record, trouble: Trouble) -> None:
    """Raises BadInput when a run in trouble has gone back as often as it may."""
    if record.rollbacks < settings.max_rollbacks:
        return
    raise BadInput(
        f'step {trouble.last}',
        f'{trouble}, after {record.rollbacks} roll-backs',
        'a run that converges; its last sound checkpoint is kept',
        'a lower optimizer.peak_learning_rate or more warmup_steps in a new --workdir that --config.init=WORKDIR '
        'starts from these weights',
    )
