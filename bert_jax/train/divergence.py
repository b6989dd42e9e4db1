"""Detects divergence: bad steps, rollbacks, and the record of both in checkpoints.

A step is bad if its loss or gradient was not finite (the step then left the state unchanged), or if its loss is a
spike: beyond median + threshold x MAD of the newest good losses. `train.max_bad_steps` bad steps in a row are an
anomaly: the run rolls back to a sound checkpoint and skips the batches read since. Bad steps are derived from the
losses alone, which every process has, and the statistics behind them are part of every checkpoint, so all processes,
and a run that is killed and resumed, make the same decisions.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from bert_jax.data.skips import Windows, merged, skip_steps
from bert_jax.errors import BadInput
from bert_jax.train.state import TrainState, is_finite

_READ_STEPS_LATE = 2  # so that no step waits for the one before


class DivergenceSettings(Protocol):
    """The fields of `config.train` (of pretraining or of fine-tuning) that the monitor reads."""

    @property
    def max_bad_steps(self) -> int: ...

    @property
    def max_rollbacks(self) -> int: ...

    @property
    def spike_threshold(self) -> float: ...

    @property
    def spike_window(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Anomaly:
    """Too many bad steps in a row, from `first` to `last` (counted from 1); `found` describes the last one."""

    first: int
    last: int
    found: str

    def __str__(self) -> str:
        return f'{self.found}, {self.last - self.first + 1} steps in a row'


@dataclasses.dataclass(frozen=True)
class TrainingRecord:
    """The state of the divergence monitor at a step, saved with every checkpoint.

    Attributes:
      skipped_batches: the windows of batches that the run has skipped or will skip.
      rollbacks: number of rollbacks so far.
      skipped_updates: steps whose update was dropped because it was not finite.
      bad_in_a_row: number of consecutive bad steps up to now.
      phase, losses: the newest good losses, all of this phase.
    """

    skipped_batches: Windows = ()
    rollbacks: int = 0
    skipped_updates: int = 0
    bad_in_a_row: int = 0
    phase: int = 0
    losses: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the content of a checkpoint's record.json."""
        values = dataclasses.asdict(self)
        return {'passed_over': values.pop('skipped_batches')} | values  # the key in the file predates the field name

    def skipping(
        self, anomaly: Anomaly, newest: 'TrainingRecord', phase_steps: Sequence[int], rolled_back_to: int
    ) -> 'TrainingRecord':
        """Returns this record for a run that rolls back to its step and skips the batches up to the anomaly.

        Args:
          newest: the record at the anomaly.
          phase_steps: number of steps of each phase.
          rolled_back_to: the step of this record.
        """
        windows = skip_steps(newest.skipped_batches, phase_steps, rolled_back_to, anomaly.last)
        return dataclasses.replace(self, skipped_batches=windows, rollbacks=newest.rollbacks + 1)

    @classmethod
    def from_json(cls, content: dict[str, Any], where: str) -> 'TrainingRecord':
        """Raises BadInput, naming `where`, for content that `to_json` did not write."""
        try:
            counts = {name: content[name] for name in ('rollbacks', 'skipped_updates', 'bad_in_a_row', 'phase')}
            losses = tuple(float(loss) for loss in content['losses'])
            windows = merged(content['passed_over'])
            values = [*counts.values(), *(value for window in windows for value in window)]
            if not all(type(value) is int and value >= 0 for value in values):
                raise ValueError
            if not all(map(math.isfinite, losses)):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise BadInput(where, 'is damaged', 'the training record of a checkpoint') from None
        return cls(windows, losses=losses, **counts)


class DivergenceMonitor:
    """A monitor of the losses of a run.

    Attributes:
      newest: (step, loss) of the newest step that was read; None before the first.
    """

    def __init__(self, settings: DivergenceSettings, record: TrainingRecord):
        """Args: record: that of the step that the run starts or resumes from."""
        self._settings, self._record = settings, record
        self._losses = collections.deque(record.losses, settings.spike_window)
        self._pending: collections.deque[tuple[int, int, jax.Array, jax.Array]] = collections.deque()
        self.newest: tuple[int, float] | None = None

    @property
    def record(self) -> TrainingRecord:
        """The record at the newest step that was read."""
        return dataclasses.replace(self._record, losses=tuple(self._losses))

    @property
    def counters(self) -> dict[str, float]:
        """The logged part of the record."""
        return {'skipped_updates': self._record.skipped_updates}

    def observe(self, step: int, phase: int, loss: jax.Array, is_skipped: jax.Array) -> None:
        """Adds the loss of a step and whether its update was dropped, without waiting for the device."""
        self._pending.append((step, phase, loss, is_skipped))

    def anomaly(self, *, wait: bool, to_save: TrainState | None = None) -> Anomaly | None:
        """Returns the current anomaly, or None.

        Args:
          wait: read the losses of all steps up to the newest; otherwise the newest two stay unread.
          to_save: the newest state, if it is about to be saved: then all of it must be finite.
        """
        while len(self._pending) > (0 if wait else _READ_STEPS_LATE):
            step, phase, *on_device = self._pending.popleft()
            loss, is_skipped = jax.device_get(on_device)
            self.newest = step, float(loss)
            found = self._read(phase, loss, is_skipped)
            if found and self._record.bad_in_a_row >= self._settings.max_bad_steps:
                return Anomaly(step - self._record.bad_in_a_row + 1, step, found)
        if to_save is not None and not is_finite(to_save):
            step = int(to_save.step)
            return Anomaly(step, step, 'the parameters or the optimizer state are not finite')
        return None

    def _read(self, phase: int, loss: float, is_skipped: bool) -> str:
        """Returns what is wrong with a step, or ''."""
        loss, record = float(loss), self._record
        if phase != record.phase:  # other rows have losses of another level
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
        """Returns median + threshold x median absolute deviation, once the window is full."""
        if not self._settings.spike_threshold or len(self._losses) < self._settings.spike_window:
            return math.inf
        losses = np.array(self._losses)
        median = np.median(losses)
        return float(median + self._settings.spike_threshold * np.median(np.abs(losses - median)))


def check_may_roll_back(settings: DivergenceSettings, record: TrainingRecord, anomaly: Anomaly, workdir: str) -> None:
    """Raises BadInput when a run has rolled back as often as `train.max_rollbacks` allows."""
    if record.rollbacks < settings.max_rollbacks:
        return
    count = f'{record.rollbacks} rollback{"s" * (record.rollbacks != 1)}'
    raise BadInput(
        f'{workdir}, step {anomaly.last}',
        f'{anomaly}, after {count}',
        'a run that converges; its last sound checkpoint is kept',
        'a lower optimizer.peak_learning_rate or a longer warm-up in a new --workdir; in pretraining '
        '--config.init=WORKDIR starts from these weights',
    )
