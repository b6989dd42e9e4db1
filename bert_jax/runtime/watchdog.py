"""No run hangs: a process that dies, freezes or is stuck ends all of them, and is named.

Every process tells, every few seconds and from a thread, where its main thread is: through the key-value store of
`jax.distributed`, which process 0 holds. Process 0 judges; the others read its verdict, and end on their own when
process 0 does not answer. Each of them dumps the stacks of its threads.

- No sign of life for `train.watchdog_seconds`: dead, frozen, or cut off. That holds while compiling and saving too.
- Signs of life, but no progress for as long (`train.watchdog_long_seconds` in what may take long, any time while the
  corpus is opened): stuck. The process that is furthest behind is named: the others wait for it in a collective.
- A step may take five times as long as the slowest so far before it counts as stuck.

Time is counted in ticks of the thread: a machine that slept, or a single process that was stopped and goes on, is not
taken for stuck. A process whose interpreter itself is blocked is ended by a timer in C (`faulthandler`).

Exit status: 75 where the run has saved since it was started, so that running it again gets further each time; else 1.
When process 0 dies, jax aborts the others at once (134), before anything here can speak; their stacks are dumped.
"""

import collections
import contextlib
import dataclasses
import faulthandler
import json
import math
import os
import socket
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
from jax._src import distributed  # the key-value store has no public name

from bert_jax.errors import BadInput
from bert_jax.runtime.stopping import EXIT_BAD_INPUT, EXIT_RUN_AGAIN

_BEATS, _VERDICTS = 'bert_jax/beats', 'bert_jax/verdicts'
_FINISHED = 'finished'
_TIMES_SLOWEST = 5
_MISSED_BEATS = 2  # in a row: more, and a process counts as silent
_COLLECTIVES_WAIT = 20.0  # seconds at least before a collective gives up by itself (gloo: 30)
_TO_READ = 3.0  # seconds (and an interval) that process 0 stays after a verdict: the others read it there
_STRAGGLES = 0.2  # share of a step that one process spends on its own, over what the others do
_SECONDS_BETWEEN_STRAGGLERS = 600.0


@dataclasses.dataclass
class Beat:
    """What a process tells of its main thread.

    Attributes:
      number: goes up with every beat.
      step, stage: where it is; `stages` is how many it has entered, which orders the processes.
      idle: seconds since it last made progress.  limit: how many it may take (inf: any).
      own: seconds of a step in which it did not wait for a device or another process, of late.
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
        """One line; a limit of inf is null."""
        return json.dumps(dataclasses.asdict(self) | {'limit': None if math.isinf(self.limit) else self.limit})

    @classmethod
    def from_json(cls, text: str) -> 'Beat':
        """What `to_json` wrote."""
        values = json.loads(text)
        return cls(**values | {'limit': float('inf') if values['limit'] is None else values['limit']})

    def position(self) -> tuple[int, int]:
        """Orders the processes: all go through the same stages."""
        return self.step, self.stages

    def place(self) -> str:
        """For a person."""
        return f'{self.stage}, step {self.step}' if self.step else self.stage


class Watchdog:
    """Watches this process and its peers; a context around a run."""

    def __init__(self, seconds: float, long_seconds: float) -> None:
        """Args: seconds, of a step or without a sign of life, 0 for none; long_seconds, of what may take long."""
        self._seconds, self._long_seconds = seconds, long_seconds
        self._interval = min(max(seconds / 8, 0.25), 5.0)
        self._rank, self._num_processes = jax.process_index(), jax.process_count()
        self._client = distributed.global_state.client if self._num_processes > 1 else None
        self._beat = Beat(socket.gethostname())
        self._slowest, self._ended_step, self._num_own = 0.0, None, 0
        self._pending: collections.deque[jax.Array] = collections.deque()
        self._saves: list[int] = []
        self._unanswered = float('-inf')  # seconds since process 0 last answered; it may begin later than this one
        self._seen: dict[int, tuple[int, float]] = {}  # process -> its last beat, seconds since that changed
        self._told_straggler = -_SECONDS_BETWEEN_STRAGGLERS
        self._stop, self._lock, self._ending = threading.Event(), threading.Lock(), threading.Lock()
        self._threads: list[threading.Thread] = []
        self.before_ending: list[Callable[[], None]] = []

    # --- What the main thread tells. ---

    def enter(self, stage: str, *, limit: float | None = None) -> None:
        """The main thread goes on to a stage; it may take `limit` seconds (None: as a step)."""
        with self._lock:
            self._beat.stage, self._beat.idle = stage, 0.0
            self._beat.stages += 1
            slowest = _TIMES_SLOWEST * self._slowest
            self._beat.limit = max(self._seconds, slowest) if limit is None else limit

    def enter_long(self, stage: str) -> None:
        """Likewise, for what may take long and is no step: compiling, evaluating, reading or writing a checkpoint."""
        self._ended_step = None
        self.enter(stage, limit=self._long_seconds)

    def begin_step(self, step: int) -> None:
        """The main thread has the batch of a step, and is about to give it to the devices."""
        if self._ended_step is not None:
            own = time.perf_counter() - self._ended_step
            self._num_own += 1
            self._beat.own += (own - self._beat.own) / min(self._num_own, 10)
        self._beat.step = step
        self.enter('the step')

    def end_step(self, result: jax.Array) -> None:
        """Waits for the devices, two steps late: a process that runs ahead of them makes no progress."""
        self._pending.append(result)
        if len(self._pending) > 2:
            self._pending.popleft().block_until_ready()
        now = time.perf_counter()
        if self._ended_step is not None:
            self._slowest = max(self._slowest, now - self._ended_step)
        self._ended_step = now
        self.enter('waiting for a batch')

    @contextlib.contextmanager
    def aside(self, stage: str) -> Iterator[None]:
        """What is no part of a step: evaluating, saving."""
        self.enter_long(stage)
        yield
        self.enter('between steps')

    def began_to_save(self, step: int) -> None:
        """A save was begun; so the one before, if any, is on disk."""
        self._saves.append(step)

    # --- The threads beside it. ---

    def __enter__(self) -> 'Watchdog':
        if self._seconds:
            self._start(self._watch)
            if self._client is not None:
                faulthandler.enable(sys.__stderr__)  # when process 0 is gone, jax aborts the others
                self._start(self._exchange)
        return self

    def _start(self, target: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=target, name=f'watchdog{target.__name__}', daemon=True))
        self._threads[-1].start()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and self._client is not None and self._seconds:
            self._leave(error)
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * self._interval)
        faulthandler.cancel_dump_traceback_later()
        if self._client is not None and self._seconds:  # from here on its silence means nothing
            self.enter(_FINISHED)
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._tell_beat(self._beat)

    def _tell_beat(self, beat: Beat) -> None:
        self._client.key_value_set(f'{_BEATS}/{self._rank}', beat.to_json(), allow_overwrite=True)

    def _watch(self) -> None:
        """Once an interval: how long since the main thread, and process 0, gave a sign."""
        last = time.monotonic()
        while not self._stop.wait(self._interval):
            now = time.monotonic()
            tick, last = min(now - last, 2 * self._interval), now
            if self._client is not None:  # alone, a process may be stopped (Ctrl-Z) and go on
                faulthandler.dump_traceback_later(max(2 * self._seconds, 60), exit=True, file=sys.__stderr__)
            with self._lock:
                self._beat.idle += tick
                self._unanswered += tick
                mine = dataclasses.replace(self._beat)
            if self._client is None and mine.idle > mine.limit:
                self._end(f'Stuck: {mine.idle:.0f} s in {mine.place()}.')
            elif self._rank and self._unanswered > self._seconds:
                self._end(
                    f'Process 0 has given no sign of life to process {self._rank} on {mine.host} for '
                    f'{self._unanswered:.0f} s: dead, frozen, or the network between them is cut.'
                )

    def _exchange(self) -> None:
        """Once an interval: tells where this process is; process 0 judges, the others read what it found."""
        of_0 = ''
        while not self._stop.is_set():
            with self._lock:
                self._beat.number += 1
                mine = dataclasses.replace(self._beat)
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 does not answer: `_watch` counts
                self._tell_beat(mine)
                if verdict := self._verdicts():
                    self._stop.wait(min(self._interval, 1.0))  # it may be about to end for a reason of its own
                    if not self._stop.is_set():
                        self._end(**verdict[min(verdict)])
                if self._rank == 0:
                    self._judge(self._beats())
                elif (newest := self._client.key_value_try_get(f'{_BEATS}/0')) != of_0 or _FINISHED in newest:
                    of_0, self._unanswered = newest, 0.0
            self._stop.wait(self._interval)

    def _beats(self) -> dict[int, Beat]:
        return {_rank_of(key): Beat.from_json(text) for key, text in self._client.key_value_dir_get(_BEATS)}

    def _verdicts(self) -> dict[int, dict]:
        return {_rank_of(key): json.loads(text) for key, text in self._client.key_value_dir_get(_VERDICTS)}

    # --- Process 0: who is it? ---

    def _judge(self, beats: dict[int, Beat]) -> None:
        beats = {rank: beat for rank, beat in beats.items() if beat.stage != _FINISHED}
        for rank, beat in beats.items():
            number, silent = self._seen.get(rank, (-1, 0.0))
            self._seen[rank] = (beat.number, 0.0) if beat.number != number else (number, silent + self._interval)
        silent = {rank: seconds for rank, (_, seconds) in self._seen.items() if seconds > self._seconds}
        if silent:
            self._end(self._describe_silent(silent, beats))
        last = min(beats.values(), key=Beat.position)
        longest_silent = max(self._seen[rank][1] for rank in beats)
        # One that is silent decides by its silence, soon: those that wait for it are idle for as long.
        if last.idle > last.limit and longest_silent <= _MISSED_BEATS * self._interval:
            self._end(self._describe_stuck(beats))
        self._name_straggler(beats)

    def _describe_silent(self, silent: dict[int, float], beats: dict[int, Beat]) -> str:
        lines = []
        for rank, seconds in silent.items():
            lines.append(
                f'Process {rank} of {self._num_processes} on {beats[rank].host} has given no sign of life for '
                f'{seconds:.0f} s: dead, frozen, or cut off. Last heard of in {beats[rank].place()}.'
            )
        return '\n'.join(lines)

    def _describe_stuck(self, beats: dict[int, Beat]) -> str:
        """The process that is furthest behind holds up the others, which wait for it in a collective."""
        positions = {rank: beat.position() for rank, beat in beats.items()}
        first, last = max(positions.values()), min(positions.values())
        behind = [rank for rank, position in positions.items() if position == last]
        if first == last:
            idle = min(beat.idle for beat in beats.values())
            where = beats[0].place()
            return f'All {self._num_processes} processes have been stuck in {where} for {idle:.0f} s: none is behind.'
        return '\n'.join(
            f'Process {rank} of {self._num_processes} on {beats[rank].host} is stuck: {beats[rank].idle:.0f} s in '
            f'{beats[rank].place()}; the others wait for it in {max(beats.values(), key=Beat.position).place()}.'
            for rank in behind
        )

    def _name_straggler(self, beats: dict[int, Beat]) -> None:
        now = time.monotonic()
        if len(beats) < 2 or not self._slowest or now - self._told_straggler < _SECONDS_BETWEEN_STRAGGLERS:
            return
        rank, slow = max(beats.items(), key=lambda item: item[1].own)
        others = statistics.median(beat.own for number, beat in beats.items() if number != rank)
        if slow.own - others > max(_STRAGGLES * self._slowest, 0.01):
            self._told_straggler = now
            _tell(
                f'Straggler: process {rank} on {slow.host} spends {slow.own * 1e3:.0f} ms of a step on its own '
                f'(the others {others * 1e3:.0f} ms): all wait for it.'
            )

    # --- The end. ---

    def _leave(self, error: Exception) -> None:
        """The main thread ends with an error: tells it, finds out whether a peer is the reason, and ends the others.

        jax would wait for the others at the exit, and they for this one in a collective.
        """
        me = f'Process {self._rank} of {self._num_processes} on {self._beat.host}'
        if isinstance(error, BadInput):
            _tell(f'bert_jax: {error}')
            self._end(f'{me} ended: {error.where}: {error.found}', status=EXIT_BAD_INPUT, stacks=False)
        if isinstance(error, jax.errors.JaxRuntimeError):
            before = self._beats()
            time.sleep(2.5 * self._interval)
            beats = self._beats()
            gone = [rank for rank in before if beats[rank].number == before[rank].number]
            if gone:
                _tell(f'{me}: {str(error).splitlines()[0]}')
                self._end(self._describe_silent(dict.fromkeys(gone, 2.5 * self._interval), beats), stacks=False)
            last = min(beats.values(), key=Beat.position)
            if last.position() < self._beat.position() and last.idle > min(self._seconds, _COLLECTIVES_WAIT):
                _tell(f'{me}: {str(error).splitlines()[0]}')
                self._end(self._describe_stuck(beats))
        traceback.print_exception(error)
        self._end(f'{me} ended with {type(error).__name__}.', status=1, stacks=False)

    def stopped(self, reason: str) -> None:
        """This process is about to end, asked to, before there was anything to save: so do the others."""
        if self._client is not None and self._seconds:
            self._pass(f'Process {self._rank} was stopped ({reason}) before a step was made.', EXIT_RUN_AGAIN, False)

    def _end(self, text: str, status: int | None = None, stacks: bool = True) -> NoReturn:
        """Says why, ends this process, and through the verdict the others."""
        if not self._ending.acquire(blocking=False):
            time.sleep(3600)  # another thread is ending the process
        if status is None:
            status = EXIT_RUN_AGAIN if len(self._saves) > 1 else 1
            kept = f'; step {self._saves[-2]} is saved' if len(self._saves) > 1 else ''
            text += (
                f'\nAll processes end (exit status {status}{kept}). The same command goes on from the last checkpoint.'
            )
        _tell(text)
        if stacks:
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        for call in self.before_ending:
            thread = threading.Thread(target=call, daemon=True)  # it may hang, on the very disk that is gone
            thread.start()
            thread.join(2)
        if self._client is not None:
            self._pass(text, status, stacks)
        sys.stderr.flush()
        os._exit(status)

    def _pass(self, text: str, status: int, stacks: bool) -> None:
        """Tells the others; process 0, which holds what they read, waits until they have."""
        verdict = json.dumps({'text': text, 'status': status, 'stacks': stacks})
        thread = threading.Thread(target=self._set_verdict, args=(verdict,), daemon=True)
        thread.start()
        thread.join(2)  # for ever, if process 0 is frozen
        deadline = time.monotonic() + _TO_READ + self._interval
        while self._rank == 0 and time.monotonic() < deadline:
            if len(self._verdicts()) == self._num_processes:
                time.sleep(0.1)  # they have told theirs, and are gone in a moment
                return
            time.sleep(0.05)

    def _set_verdict(self, verdict: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f'{_VERDICTS}/{self._rank}', verdict, allow_overwrite=True)


def _rank_of(key: str) -> int:
    return int(key.rpartition('/')[2])


def _tell(text: str) -> None:
    """To standard error, in whatever process."""
    sys.stderr.write(text + '\n')
    sys.stderr.flush()
