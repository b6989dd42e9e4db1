"""Finds the process that holds up a run, from the heartbeats of all processes. No threads, no clock, no network.

- No new heartbeat for `seconds`: the process is dead, frozen, or cut off.
- Heartbeats, but no progress within the limit of its stage: the process is stuck. The process that is furthest behind
  is named, because the others wait for it in a collective.
"""

import dataclasses
import json
import math
import operator
import statistics

FINISHED = 'finished'  # the stage of a process that may be silent from now on
_MAX_MISSED_HEARTBEATS = 2  # in a row; a process that missed more counts as silent
_COLLECTIVE_TIMEOUT = 20.0  # seconds; a collective times out by itself no sooner than this (gloo: 30)
_STRAGGLER_SHARE = 0.2  # of a step, spent on the host beyond what the other processes spend
_MIN_STRAGGLER_SECONDS = 0.01
_SECONDS_BETWEEN_STRAGGLERS = 600.0


@dataclasses.dataclass
class Heartbeat:
    """What a process reports about its main thread.

    Attributes:
      index: increases with every heartbeat.
      step: the training step, 0 before the first.
      stage: what the main thread is doing, in words.
      num_stages: stages entered so far. All processes enter the same stages in the same order, so the process with the
        lowest count is furthest behind. The step would not show that: a rollback or the next seed lowers it.
      idle: seconds since the main thread last made progress.
      limit: seconds it may go without progress; inf for no limit.
      host_seconds: recent mean time per step in which it waited for neither a device nor another process.
    """

    host: str
    index: int = 0
    step: int = 0
    stage: str = 'starting'
    num_stages: int = 0
    idle: float = 0.0
    limit: float = float('inf')
    host_seconds: float = 0.0

    def to_json(self) -> str:
        """Returns one line; a limit of inf becomes null."""
        return json.dumps(dataclasses.asdict(self) | {'limit': None if math.isinf(self.limit) else self.limit})

    @classmethod
    def from_json(cls, text: str) -> 'Heartbeat':
        """Parses what `to_json` returned."""
        values = json.loads(text)
        return cls(**values | {'limit': float('inf') if values['limit'] is None else values['limit']})

    def describe(self) -> str:
        """Returns for example `the step, step 8`; before the first step only the stage."""
        return f'{self.stage}, step {self.step}' if self.step else self.stage


@dataclasses.dataclass(frozen=True)
class ShutdownReason:
    """Why a run has to end.

    Attributes:
      text: the reason, naming the process at fault.
      status: the exit status of all processes; None if it depends on what the run has saved.
      stacks: whether every process dumps the stacks of its threads.
    """

    text: str
    status: int | None = None
    stacks: bool = True

    def to_json(self) -> str:
        """Returns one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> 'ShutdownReason':
        """Parses what `to_json` returned."""
        return cls(**json.loads(text))


class StallDetector:
    """Compares the heartbeats of all processes; process 0 consults it once per interval.

    Heartbeats are passed as {rank: heartbeat}.
    """

    def __init__(self, num_processes: int, seconds: float, interval: float) -> None:
        """Initializes the detector.

        Args:
          seconds: a process without a heartbeat for this long counts as dead.
          interval: seconds between two calls of `find_stall`.
        """
        self._num_processes, self._seconds, self._interval = num_processes, seconds, interval
        self._newest: dict[int, int] = {}  # rank -> index of its newest heartbeat
        self._silent: dict[int, float] = {}  # rank -> seconds since that heartbeat
        self._straggler_named_at = -math.inf

    def find_stall(self, heartbeats: dict[int, Heartbeat]) -> ShutdownReason | None:
        """Returns why the run cannot continue, or None if it can. Counts time, so call it once per interval."""
        heartbeats = _unfinished(heartbeats)
        for rank, heartbeat in heartbeats.items():
            is_new = heartbeat.index != self._newest.get(rank, -1)
            self._silent[rank] = 0.0 if is_new else self._silent[rank] + self._interval
            self._newest[rank] = heartbeat.index
        silent = {rank: self._silent[rank] for rank in heartbeats if self._silent[rank] > self._seconds}
        if silent:
            return ShutdownReason(self._describe_silent(silent, heartbeats))
        last = min(heartbeats.values(), key=_num_stages, default=None)
        # A silent process will soon be named for its silence. Until then the processes that wait for it look stuck.
        is_any_silent = any(self._silent[rank] > _MAX_MISSED_HEARTBEATS * self._interval for rank in heartbeats)
        if last is not None and last.idle > last.limit and not is_any_silent:
            return ShutdownReason(self._describe_stuck(heartbeats))
        return None

    def explain_error(
        self, before: dict[int, Heartbeat], after: dict[int, Heartbeat], mine: Heartbeat, seconds: float
    ) -> ShutdownReason | None:
        """Returns the other process that made a collective fail in this one, as a reason; None if there is none.

        Args:
          before, after: all heartbeats at two moments, `seconds` apart.
          mine: the heartbeat of this process.
        """
        silent = [rank for rank in before if after[rank].index == before[rank].index]
        if silent:
            return ShutdownReason(self._describe_silent(dict.fromkeys(silent, seconds), after), stacks=False)
        last = min(after.values(), key=_num_stages)
        if last.num_stages < mine.num_stages and last.idle > min(self._seconds, _COLLECTIVE_TIMEOUT):
            return ShutdownReason(self._describe_stuck(after))
        return None

    def straggler(self, heartbeats: dict[int, Heartbeat], slowest_step: float, now: float) -> str:
        """Names the process whose host work holds up the others; '' if there is none, or one was named recently.

        Args:
          slowest_step: seconds of the slowest step so far, 0 before the first.
          now: seconds of any clock.
        """
        heartbeats = _unfinished(heartbeats)
        if len(heartbeats) < 2 or not slowest_step or now - self._straggler_named_at < _SECONDS_BETWEEN_STRAGGLERS:
            return ''
        rank, slow = max(heartbeats.items(), key=lambda item: item[1].host_seconds)
        others = statistics.median(other.host_seconds for index, other in heartbeats.items() if index != rank)
        if slow.host_seconds - others <= max(_STRAGGLER_SHARE * slowest_step, _MIN_STRAGGLER_SECONDS):
            return ''
        self._straggler_named_at = now
        return (
            f'Straggler: process {rank} on {slow.host} takes {slow.host_seconds * 1e3:.0f} ms of host time per step '
            f'(others: {others * 1e3:.0f} ms) and holds up every process.'
        )

    def _describe_silent(self, silent: dict[int, float], heartbeats: dict[int, Heartbeat]) -> str:
        return '\n'.join(
            f'Process {rank} of {self._num_processes} on {heartbeats[rank].host} has given no sign of life for '
            f'{seconds:.0f} s: it is dead, frozen, or cut off. Its last stage was {heartbeats[rank].describe()}.'
            for rank, seconds in silent.items()
        )

    def _describe_stuck(self, heartbeats: dict[int, Heartbeat]) -> str:
        first = max(heartbeats.values(), key=_num_stages)
        last = min(heartbeats.values(), key=_num_stages)
        if first.num_stages == last.num_stages:
            idle = min(heartbeat.idle for heartbeat in heartbeats.values())
            processes = f'All {self._num_processes} processes'
            return (
                f'{processes} have been stuck for {idle:.0f} s in {last.describe()}; no process is behind the others.'
            )
        return '\n'.join(
            f'Process {rank} of {self._num_processes} on {heartbeat.host} is stuck: {heartbeat.idle:.0f} s in '
            f'{heartbeat.describe()}; the others wait for it in {first.describe()}.'
            for rank, heartbeat in heartbeats.items()
            if heartbeat.num_stages == last.num_stages
        )


_num_stages = operator.attrgetter('num_stages')


def _unfinished(heartbeats: dict[int, Heartbeat]) -> dict[int, Heartbeat]:
    return {rank: heartbeat for rank, heartbeat in heartbeats.items() if heartbeat.stage != FINISHED}
