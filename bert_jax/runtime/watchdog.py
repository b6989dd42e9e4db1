"""No run hangs: when a process dies, freezes or gets stuck, all processes end and the one at fault is named.

Every few seconds a thread of each process posts the stage of its main thread (`HeartbeatStore`). Process 0 looks for
stalls (`StallDetector`). The others read what it found, and end by themselves when process 0 does not answer. Each
process dumps the stacks of its threads.

- No sign of life for `train.watchdog_seconds`: dead, frozen, or cut off. This holds while compiling and saving too.
- Signs of life, but no progress for as long: stuck. Stages that may take long have `train.watchdog_long_seconds`;
  opening the corpus has no limit. A step may take five times as long as the slowest so far.

Time is counted in ticks of the thread, so a machine that slept or a process that was suspended and continued does not
count as stuck. A process whose interpreter itself is blocked is ended by a timer in C (`faulthandler`).

Exit status: 75 if the run has saved since it was started, so that every restart makes progress; else 1. When process 0
dies, jax aborts the others at once (134), before anything here can report; their stacks are dumped.
"""

import collections
import contextlib
import dataclasses
import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from typing import NoReturn, TextIO

import jax

from bert_jax import console
from bert_jax.console import say_anywhere
from bert_jax.errors import BadInput
from bert_jax.runtime.heartbeat_store import HeartbeatStore
from bert_jax.runtime.stall_detector import FINISHED, Heartbeat, ShutdownReason, StallDetector
from bert_jax.runtime.stopping import EXIT_BAD_INPUT, EXIT_RUN_AGAIN

_TIMES_SLOWEST = 5  # how much longer than the slowest step so far a step may take
_MAX_STEPS_AHEAD = 2  # of the devices
_STEPS_AVERAGED = 10  # for the host time of a step
THE_STEP, BETWEEN_STEPS = 'the step', 'between steps'  # stages
_SECONDS_TO_CLEAN_UP = 2.0
_SECONDS_TO_POST = 2.0
_SECONDS_TO_READ = 3.0  # (plus an interval) that process 0 stays after a verdict, for the others to read it


class Watchdog:
    """Watches this process and its peers while the context is open."""

    def __init__(
        self, seconds: float, long_seconds: float, *, before_ending: Callable[[], None] = lambda: None
    ) -> None:
        """Initializes the watchdog; nothing runs before the context is entered.

        Args:
          seconds: a step, or a process without a sign of life, may take this long; 0 switches the watchdog off.
          long_seconds: a stage entered with `enter_long_stage` may take this long.
          before_ending: called from a thread, for at most two seconds, before the watchdog ends this process.
        """
        self._seconds, self._long_seconds, self._before_ending = seconds, long_seconds, before_ending
        self._interval = min(max(seconds / 8, 0.25), 5.0)
        self._board: HeartbeatStore | None = None
        self._judge = StallDetector(1, seconds, self._interval)
        self._beat = Heartbeat(socket.gethostname())
        self._slowest_step, self._num_measured = 0.0, 0
        self._ended_step: float | None = None  # when; None if something other than a step came after it
        self._pending: collections.deque[jax.Array] = collections.deque()
        self._saving: int | None = None  # the step of the newest save, which may be in progress
        self._saved: int | None = None  # that of the save before it, of the same run
        self._has_saved = False  # in any run
        self._unanswered = float('-inf')  # seconds since process 0 last answered; it may start later than this one
        self._threads: list[threading.Thread] = []
        self._stop, self._lock, self._ending = threading.Event(), threading.Lock(), threading.Lock()

    # --- Called by the main thread: where it is. ---

    def enter(self, stage: str, *, limit: float | None = None) -> None:
        """The main thread enters a stage, which may take `limit` seconds; by default as long as a step."""
        with self._lock:
            self._beat.stage, self._beat.idle = stage, 0.0
            self._beat.stages += 1
            of_a_step = max(self._seconds, _TIMES_SLOWEST * self._slowest_step)
            self._beat.limit = of_a_step if limit is None else limit

    @property
    def stage(self) -> str:
        """What the main thread is doing, in words."""
        return self._beat.stage

    def enter_long_stage(self, stage: str) -> None:
        """Likewise for what may take long and is not a step: compiling, evaluating, reading or writing checkpoints."""
        self._ended_step = None
        self.enter(stage, limit=self._long_seconds)

    def enter_first_step(self) -> None:
        """The main thread waits for a step that it has just compiled; its time counts as that of a step."""
        self.enter_long_stage('the first step of its shape')
        self._ended_step = time.perf_counter()

    def begin_step(self, step: int) -> None:
        """The main thread has the batch of a step and is about to dispatch it."""
        if self._ended_step is not None:
            own = time.perf_counter() - self._ended_step
            self._num_measured += 1
            self._beat.own += (own - self._beat.own) / min(self._num_measured, _STEPS_AVERAGED)
        self._beat.step = step
        self.enter(THE_STEP)

    def end_step(self, result: jax.Array) -> None:
        """Waits for the devices, two steps late: a process that runs ahead of them makes no progress."""
        self._pending.append(result)
        if len(self._pending) > _MAX_STEPS_AHEAD:
            self._pending.popleft().block_until_ready()
        now = time.perf_counter()
        if self._ended_step is not None:
            self._slowest_step = max(self._slowest_step, now - self._ended_step)
        self._ended_step = now
        self.enter('waiting for a batch')

    @contextlib.contextmanager
    def long_stage(self, stage: str) -> Iterator[None]:
        """A part of the loop that is not a step: evaluating, saving."""
        self.enter_long_stage(stage)
        yield
        self.enter(BETWEEN_STEPS)

    def save_started(self, step: int) -> None:
        """A save has begun; so the save before it, if any, is on disk."""
        if self._saving is not None:
            self._saved, self._has_saved = self._saving, True
        self._saving = step

    def begin_run(self) -> None:
        """Another run begins, in another workdir; what the run before it saved is on disk."""
        self._has_saved = self._has_saved or self._saving is not None
        self._saving = self._saved = None

    # --- Its threads. ---

    def __enter__(self) -> 'Watchdog':
        if self._seconds:
            self._board = HeartbeatStore.of_run()
            self._start(self._watch)
        if self._board is not None:
            faulthandler.enable(_stderr())  # when process 0 is gone, jax aborts the others
            self._judge = StallDetector(self._board.num_processes, self._seconds, self._interval)
            self._start(self._exchange)
        return self

    def _start(self, target: types.MethodType) -> None:
        self._threads.append(threading.Thread(target=target, name=f'watchdog{target.__name__}', daemon=True))
        self._threads[-1].start()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and self._board is not None:
            self._end_with(error, self._board)
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * self._interval)
        faulthandler.cancel_dump_traceback_later()
        if self._board is not None:  # from here on its silence means nothing
            self.enter(FINISHED)
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._board.post_beat(self._beat)

    def _watch(self) -> None:
        """Once per interval: how long since the main thread, and process 0, gave a sign of life."""
        last = time.monotonic()
        while not self._stop.wait(self._interval):
            now = time.monotonic()
            tick, last = min(now - last, 2 * self._interval), now
            if self._board is not None:  # alone, a process may be suspended (Ctrl-Z) and continued
                faulthandler.dump_traceback_later(max(2 * self._seconds, 60), exit=True, file=_stderr())
            with self._lock:
                self._beat.idle += tick
                self._unanswered += tick
                mine = dataclasses.replace(self._beat)
            board = self._board
            if board is None:
                if mine.idle > mine.limit:
                    self._end(ShutdownReason(f'Stuck: {mine.idle:.0f} s in {mine.describe()}.'))
            elif board.rank and self._unanswered > self._seconds:
                found = (
                    f'Process 0 has given no sign of life to process {board.rank} on {mine.host} for '
                    f'{self._unanswered:.0f} s: dead, frozen, or the network between them is cut.'
                )
                self._end(ShutdownReason(found))

    def _exchange(self) -> None:
        """Once per interval: posts a heartbeat; process 0 judges, the others read its verdict."""
        board, of_first = self._board, None
        assert board is not None  # the thread is started where there are several processes
        while not self._stop.is_set():
            with self._lock:
                self._beat.number += 1
                mine = dataclasses.replace(self._beat)
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 does not answer: `_watch` counts
                board.post_beat(mine)
                if verdicts := board.verdicts():
                    self._stop.wait(min(self._interval, 1.0))  # this process may be about to end for its own reason
                    if not self._stop.is_set():
                        self._end(verdicts[min(verdicts)])
                if board.rank == 0:
                    self._judge_all(board.beats())
                elif (newest := board.beat_of_first()) != of_first or newest.stage == FINISHED:
                    of_first, self._unanswered = newest, 0.0
            self._stop.wait(self._interval)

    def _judge_all(self, beats: dict[int, Heartbeat]) -> None:
        if verdict := self._judge.verdict(beats):
            self._end(verdict)
        if straggler := self._judge.straggler(beats, self._slowest_step, time.monotonic()):
            say_anywhere(straggler)

    # --- The end. ---

    def stopped(self, reason: str) -> None:
        """Ends the other processes: this one is about to end, as requested, and had nothing to save."""
        self._ending.acquire(blocking=False)  # should the main thread fail meanwhile, that does not change the status
        if self._board is not None:
            found = f'Process {self._board.rank} was stopped ({reason}) before a step was made.'
            self._pass_on(ShutdownReason(found, EXIT_RUN_AGAIN, stacks=False), self._board)

    def _end_with(self, error: Exception, board: HeartbeatStore) -> None:
        """The main thread failed: reports it, finds out whether another process is the reason, and ends all.

        At its exit jax would wait for the others, and they for this one in a collective.
        """
        if self._ending.locked():
            time.sleep(3600)  # another thread is ending the process
        me = f'Process {board.rank} of {board.num_processes} on {self._beat.host}'
        if isinstance(error, BadInput):
            console.fail(f'bert_jax: {error}', error.as_json())
            self._end(ShutdownReason(f'{me} ended: {error.where}: {error.found}', EXIT_BAD_INPUT, stacks=False))
        if isinstance(error, jax.errors.JaxRuntimeError):
            before, seconds = board.beats(), 2.5 * self._interval
            time.sleep(seconds)
            if verdict := self._judge.verdict_on_error(before, board.beats(), self._beat, seconds):
                say_anywhere(f'{me}: {str(error).splitlines()[0]}')
                self._end(verdict)
        say_anywhere(''.join(traceback.format_exception(error)).rstrip('\n'))
        self._end(ShutdownReason(f'{me} ended with {type(error).__name__}.', status=1, stacks=False))

    def _end(self, verdict: ShutdownReason) -> NoReturn:
        """Reports why, ends this process, and through the verdict the others."""
        if not self._ending.acquire(blocking=False):
            time.sleep(3600)  # another thread is ending the process
        if verdict.status is None:
            verdict = self._with_status(verdict)
        assert verdict.status is not None  # `_with_status` sets it
        console.fail(verdict.text, BadInput('run', verdict.text).as_json())
        if verdict.stacks:
            faulthandler.dump_traceback(_stderr(), all_threads=True)
        _try_for(_SECONDS_TO_CLEAN_UP, self._before_ending)
        if self._board is not None:
            self._pass_on(verdict, self._board)
        console.flush()
        os._exit(verdict.status)

    def _with_status(self, verdict: ShutdownReason) -> ShutdownReason:
        status = EXIT_RUN_AGAIN if self._has_saved else 1
        saved = f'; step {self._saved} is saved' if self._saved is not None else ''
        text = f'All processes end (exit status {status}{saved}). Rerun the same command to resume.'
        return dataclasses.replace(verdict, text=f'{verdict.text}\n{text}', status=status)

    def _pass_on(self, verdict: ShutdownReason, board: HeartbeatStore) -> None:
        """Posts the verdict for the others; process 0, which serves what they read, waits until they have read it."""

        def post() -> None:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                board.post_verdict(verdict)

        _try_for(_SECONDS_TO_POST, post)
        deadline = time.monotonic() + _SECONDS_TO_READ + self._interval
        while board.rank == 0 and time.monotonic() < deadline:
            if len(board.verdicts()) == board.num_processes:
                time.sleep(0.1)  # the others have posted theirs, and end within a moment
                return
            time.sleep(0.05)


def _stderr() -> TextIO:
    """The process's own standard error, also where `sys.stderr` was replaced."""
    return sys.__stderr__ or sys.stderr


def _try_for(seconds: float, call: Callable[[], None]) -> None:
    """Calls from a thread that may hang, on a disk that is gone or a frozen process 0."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
