"""Which process holds up a run, judged from the heartbeats of all. No threads, no clock, no network.

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
_COLLECTIVE_TIMEOUT = 20.0  # seconds; a collective gives up by itself no sooner than this (gloo: 30)
_STRAGGLER_SHARE = 0.2  # of a step, spent on the host beyond what the other processes spend
_MIN_STRAGGLER_SECONDS = 0.01
_SECONDS_BETWEEN_STRAGGLERS = 600.0


@dataclasses.dataclass
class Heartbeat:
    """What a process reports about its main thread.

    Attributes:
      number: increases with every heartbeat.
      step: the training step, 0 before the first.
      stage: what the main thread is doing, in words.
      stages: how many stages it has entered. All processes enter the same ones in the same order, so the process with
        the lowest count is furthest behind; a step does not tell, because a rollback or a next seed makes it fall.
      idle: seconds since it last made progress.
      limit: how many seconds it may go without progress; inf for no limit.
      own: recent mean seconds per step in which it waited for neither a device nor another process.
    """

    host: str
    number: int = 0
    step: int = 0
    stage: str = 'starting'
    stages: int = 0
    idle: float = 0.0
    limit: float = float('inf')
    own: float = 0.0

    def to_json(self) -> str:
        """One line; a limit of inf becomes null."""
        return json.dumps(dataclasses.asdict(self) | {'limit': None if math.isinf(self.limit) else self.limit})

    @classmethod
    def from_json(cls, text: str) -> 'Heartbeat':
        """The inverse of `to_json`."""
        values = json.loads(text)
        return cls(**values | {'limit': float('inf') if values['limit'] is None else values['limit']})

    def describe(self) -> str:
        """`the step, step 8`; before the first step only the stage."""
        return f'{self.stage}, step {self.step}' if self.step else self.stage


@dataclasses.dataclass(frozen=True)
class ShutdownReason:
    """Why a run has to end.

    Attributes:
      text: the reason, naming the process at fault.
      status: the exit status of all processes; None where it depends on what the run has saved.
      stacks: whether every process dumps the stacks of its threads.
    """

    text: str
    status: int | None = None
    stacks: bool = True

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> 'ShutdownReason':
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


class StallDetector:
    """Compares the heartbeats of all processes; process 0 consults it once per interval.

    Heartbeats are passed as {rank: heartbeat}.
    """

    def __init__(self, num_processes: int, seconds: float, interval: float) -> None:
        """Args: seconds, without a heartbeat, after which a process counts as dead; interval, between two calls."""
        self._num_processes, self._seconds, self._interval = num_processes, seconds, interval
        self._newest: dict[int, int] = {}  # rank -> number of its newest heartbeat
        self._silent: dict[int, float] = {}  # rank -> seconds since that heartbeat
        self._named_straggler = -math.inf  # when one was last named

    def verdict(self, beats: dict[int, Heartbeat]) -> ShutdownReason | None:
        """Why the run cannot continue; None when it can. Counts time: call it once per interval."""
        beats = _unfinished(beats)
        for rank, beat in beats.items():
            is_new = beat.number != self._newest.get(rank, -1)
            self._silent[rank] = 0.0 if is_new else self._silent[rank] + self._interval
            self._newest[rank] = beat.number
        silent = {rank: self._silent[rank] for rank in beats if self._silent[rank] > self._seconds}
        if silent:
            return ShutdownReason(self._describe_silent(silent, beats))
        last = min(beats.values(), key=_stages, default=None)
        # A silent process will be named for its silence, soon: those that wait for it have been idle for as long.
        is_any_silent = any(self._silent[rank] > _MAX_MISSED_HEARTBEATS * self._interval for rank in beats)
        if last is not None and last.idle > last.limit and not is_any_silent:
            return ShutdownReason(self._describe_stuck(beats))
        return None

    def verdict_on_error(
        self, before: dict[int, Heartbeat], beats: dict[int, Heartbeat], mine: Heartbeat, seconds: float
    ) -> ShutdownReason | None:
        """Whether another process is why a collective failed in this one.

        Args:
          before, beats: all heartbeats at two moments, `seconds` apart.
          mine: the heartbeat of this process.
        """
        gone = [rank for rank in before if beats[rank].number == before[rank].number]
        if gone:
            return ShutdownReason(self._describe_silent(dict.fromkeys(gone, seconds), beats), stacks=False)
        last = min(beats.values(), key=_stages)
        if last.stages < mine.stages and last.idle > min(self._seconds, _COLLECTIVE_TIMEOUT):
            return ShutdownReason(self._describe_stuck(beats))
        return None

    def straggler(self, beats: dict[int, Heartbeat], slowest_step: float, now: float) -> str:
        """Names the process whose own work holds up the others; '' if there is none, or one was named recently.

        Args:
          slowest_step: seconds of the slowest step so far, 0 before the first.
          now: seconds of any clock.
        """
        beats = _unfinished(beats)
        if len(beats) < 2 or not slowest_step or now - self._named_straggler < _SECONDS_BETWEEN_STRAGGLERS:
            return ''
        rank, slow = max(beats.items(), key=lambda item: item[1].own)
        others = statistics.median(beat.own for other, beat in beats.items() if other != rank)
        if slow.own - others <= max(_STRAGGLER_SHARE * slowest_step, _MIN_STRAGGLER_SECONDS):
            return ''
        self._named_straggler = now
        return (
            f'Straggler: process {rank} on {slow.host} takes {slow.own * 1e3:.0f} ms of host time per step '
            f'(others: {others * 1e3:.0f} ms) and holds up every process.'
        )

    def _describe_silent(self, silent: dict[int, float], beats: dict[int, Heartbeat]) -> str:
        return '\n'.join(
            f'Process {rank} of {self._num_processes} on {beats[rank].host} has given no sign of life for '
            f'{seconds:.0f} s: dead, frozen, or cut off. Last heard of in {beats[rank].describe()}.'
            for rank, seconds in silent.items()
        )

    def _describe_stuck(self, beats: dict[int, Heartbeat]) -> str:
        first = max(beats.values(), key=_stages)
        last = min(beats.values(), key=_stages)
        if first.stages == last.stages:
            idle = min(beat.idle for beat in beats.values())
            processes = f'All {self._num_processes} processes'
            return f'{processes} have been stuck in {last.describe()} for {idle:.0f} s: none is behind.'
        return '\n'.join(
            f'Process {rank} of {self._num_processes} on {beat.host} is stuck: {beat.idle:.0f} s in '
            f'{beat.describe()}; the others wait for it in {first.describe()}.'
            for rank, beat in beats.items()
            if beat.stages == last.stages
        )


_stages = operator.attrgetter('stages')  # how far a process has come


def _unfinished(beats: dict[int, Heartbeat]) -> dict[int, Heartbeat]:
    return {rank: beat for rank, beat in beats.items() if beat.stage != FINISHED}
