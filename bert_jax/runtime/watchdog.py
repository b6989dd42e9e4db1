"""No run hangs: when a process dies, freezes or gets stuck, all processes end and the one at fault is named.

Every few seconds a thread of each process posts the stage of its main thread (`HeartbeatStore`). Process 0 looks for
stalls (`StallDetector`). The others read what it found, and end by themselves when process 0 does not answer. Each
process dumps the stacks of its threads.

- No heartbeat for `train.watchdog_seconds`: dead, frozen, or cut off. This also holds while compiling and saving.
- Heartbeats, but no progress for as long: stuck. Slow stages have `train.watchdog_long_seconds`, and opening the corpus
  has no limit. A step may take five times as long as the slowest one so far.

Time is counted in ticks of the thread, so a machine that slept or a process that was suspended and continued does not
count as stuck. If the interpreter itself is blocked, a timer in C (`faulthandler`) ends the process.

Exit status: 75 if the run has saved since it was started, so that every restart makes progress; otherwise 1. When
process 0 dies, jax aborts the other processes at once (134), before the watchdog can report; their stacks are dumped.
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

_TIMES_SLOWEST = 5  # a step may take this many times as long as the slowest step so far
_MAX_STEPS_AHEAD = 2  # by which the host may be ahead of the devices
_STEPS_AVERAGED = 10  # for the host time of a step
THE_STEP, BETWEEN_STEPS = 'the step', 'between steps'  # stages
_SECONDS_TO_CLEAN_UP = 2.0
_SECONDS_TO_POST = 2.0
_SECONDS_TO_READ = 3.0  # (plus an interval) that process 0 waits for the others to read why they end


class Watchdog:
    """Watches this process and its peers while the context is open."""

    def __init__(
        self, seconds: float, long_seconds: float, *, before_ending: Callable[[], None] = lambda: None
    ) -> None:
        """Initializes the watchdog; it starts when the context is entered.

        Args:
          seconds: limit for a step, and for a process without a heartbeat; 0 disables the watchdog.
          long_seconds: limit for a stage entered with `enter_long_stage`.
          before_ending: called from a thread, for at most two seconds, before the watchdog ends this process.
        """
        self._seconds, self._long_seconds, self._before_ending = seconds, long_seconds, before_ending
        self._interval = min(max(seconds / 8, 0.25), 5.0)
        self._store: HeartbeatStore | None = None
        self._detector = StallDetector(1, seconds, self._interval)
        self._heartbeat = Heartbeat(socket.gethostname())
        self._slowest_step, self._num_measured = 0.0, 0
        self._step_ended_at: float | None = None  # None if something other than a step came after it
        self._pending: collections.deque[jax.Array] = collections.deque()
        self._saving: int | None = None  # step of the newest save, which may be in progress
        self._saved: int | None = None  # step of the save before it, in the same run
        self._has_saved = False  # in any run
        self._unanswered = float('-inf')  # seconds since process 0 last answered; -inf until it first does
        self._threads: list[threading.Thread] = []
        self._stop, self._lock, self._ending = threading.Event(), threading.Lock(), threading.Lock()

    # --- The stage of the main thread, which calls these methods. ---

    def enter(self, stage: str, *, limit: float | None = None) -> None:
        """Enters a stage that may take `limit` seconds (default: as long as a step)."""
        with self._lock:
            self._heartbeat.stage, self._heartbeat.idle = stage, 0.0
            self._heartbeat.num_stages += 1
            step_limit = max(self._seconds, _TIMES_SLOWEST * self._slowest_step)
            self._heartbeat.limit = step_limit if limit is None else limit

    @property
    def stage(self) -> str:
        """What the main thread is doing, in words."""
        return self._heartbeat.stage

    def enter_long_stage(self, stage: str) -> None:
        """Enters a slow stage that is not a step: compiling, evaluating, reading or writing checkpoints."""
        self._step_ended_at = None
        self.enter(stage, limit=self._long_seconds)

    def enter_first_step(self) -> None:
        """Enters the wait for a step that was just compiled; its time counts as that of a step."""
        self.enter_long_stage('the first step of its shape')
        self._step_ended_at = time.perf_counter()

    def begin_step(self, step: int) -> None:
        """Enters a step: its batch is ready and it is about to be dispatched."""
        if self._step_ended_at is not None:
            host_seconds = time.perf_counter() - self._step_ended_at
            self._num_measured += 1
            change = host_seconds - self._heartbeat.host_seconds
            self._heartbeat.host_seconds += change / min(self._num_measured, _STEPS_AVERAGED)
        self._heartbeat.step = step
        self.enter(THE_STEP)

    def end_step(self, result: jax.Array) -> None:
        """Waits until the devices are at most two steps behind: dispatching further ahead would not be progress."""
        self._pending.append(result)
        if len(self._pending) > _MAX_STEPS_AHEAD:
            self._pending.popleft().block_until_ready()
        now = time.perf_counter()
        if self._step_ended_at is not None:
            self._slowest_step = max(self._slowest_step, now - self._step_ended_at)
        self._step_ended_at = now
        self.enter('waiting for a batch')

    @contextlib.contextmanager
    def long_stage(self, stage: str) -> Iterator[None]:
        """Wraps a part of the loop that is not a step, such as evaluating or saving."""
        self.enter_long_stage(stage)
        yield
        self.enter(BETWEEN_STEPS)

    def save_started(self, step: int) -> None:
        """Records that a save has started, which means that the save before it, if any, is on disk."""
        if self._saving is not None:
            self._saved, self._has_saved = self._saving, True
        self._saving = step

    def begin_run(self) -> None:
        """Records that another run begins, in another workdir; the saves of the run before it are on disk."""
        self._has_saved = self._has_saved or self._saving is not None
        self._saving = self._saved = None

    # --- Its threads. ---

    def __enter__(self) -> 'Watchdog':
        if self._seconds:
            self._store = HeartbeatStore.for_run()
            self._start(self._watch)
        if self._store is not None:
            faulthandler.enable(_stderr())  # jax aborts the other processes when process 0 dies
            self._detector = StallDetector(self._store.num_processes, self._seconds, self._interval)
            self._start(self._exchange)
        return self

    def _start(self, target: types.MethodType) -> None:
        self._threads.append(threading.Thread(target=target, name=f'watchdog{target.__name__}', daemon=True))
        self._threads[-1].start()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and self._store is not None:
            self._end_with(error, self._store)
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * self._interval)
        faulthandler.cancel_dump_traceback_later()
        if self._store is not None:  # from here on this process may be silent
            self.enter(FINISHED)
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._store.post_heartbeat(self._heartbeat)

    def _watch(self) -> None:
        """Checks once per interval how long ago the main thread made progress and process 0 answered."""
        last = time.monotonic()
        while not self._stop.wait(self._interval):
            now = time.monotonic()
            tick, last = min(now - last, 2 * self._interval), now
            if self._store is not None:  # a single process may be suspended (Ctrl-Z) and continued
                faulthandler.dump_traceback_later(max(2 * self._seconds, 60), exit=True, file=_stderr())
            with self._lock:
                self._heartbeat.idle += tick
                self._unanswered += tick
                mine = dataclasses.replace(self._heartbeat)
            store = self._store
            if store is None:
                if mine.idle > mine.limit:
                    self._end(ShutdownReason(f'Stuck: {mine.idle:.0f} s in {mine.describe()}.'))
            elif store.rank and self._unanswered > self._seconds:
                text = (
                    f'Process 0 has given no sign of life to process {store.rank} on {mine.host} for '
                    f'{self._unanswered:.0f} s: it is dead or frozen, or the network between them is down.'
                )
                self._end(ShutdownReason(text))

    def _exchange(self) -> None:
        """Posts a heartbeat once per interval. Process 0 then looks for stalls; the others read its findings."""
        store, of_process_zero = self._store, None
        assert store is not None  # the thread is started where there are several processes
        while not self._stop.is_set():
            with self._lock:
                self._heartbeat.index += 1
                mine = dataclasses.replace(self._heartbeat)
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # `_watch` counts how long process 0 does not answer
                store.post_heartbeat(mine)
                if shutdowns := store.shutdowns():
                    self._stop.wait(min(self._interval, 1.0))  # this process may be about to end for its own reason
                    if not self._stop.is_set():
                        self._end(shutdowns[min(shutdowns)])
                if store.rank == 0:
                    self._look_for_stalls(store.heartbeats())
                elif (newest := store.heartbeat_of_process_zero()) != of_process_zero or newest.stage == FINISHED:
                    of_process_zero, self._unanswered = newest, 0.0
            self._stop.wait(self._interval)

    def _look_for_stalls(self, heartbeats: dict[int, Heartbeat]) -> None:
        if reason := self._detector.find_stall(heartbeats):
            self._end(reason)
        if straggler := self._detector.straggler(heartbeats, self._slowest_step, time.monotonic()):
            say_anywhere(straggler)

    # --- The end. ---

    def stopped(self, reason: str) -> None:
        """Ends the other processes: this one was asked to stop, has nothing to save, and is about to end."""
        self._ending.acquire(blocking=False)  # an error of the main thread no longer changes the exit status
        if self._store is not None:
            text = f'Process {self._store.rank} was stopped ({reason}) before its first step.'
            self._pass_on(ShutdownReason(text, EXIT_RUN_AGAIN, stacks=False), self._store)

    def _end_with(self, error: Exception, store: HeartbeatStore) -> None:
        """Reports an error of the main thread, checks whether another process caused it, and ends all processes.

        If this process simply exited, jax would wait for the others, and they for this one in a collective.
        """
        if self._ending.locked():
            time.sleep(3600)  # another thread is ending the process
        me = f'Process {store.rank} of {store.num_processes} on {self._heartbeat.host}'
        if isinstance(error, BadInput):
            console.fail(f'bert_jax: {error}', error.as_json())
            self._end(ShutdownReason(f'{me} ended: {error.where}: {error.found}', EXIT_BAD_INPUT, stacks=False))
        if isinstance(error, jax.errors.JaxRuntimeError):
            before, seconds = store.heartbeats(), 2.5 * self._interval
            time.sleep(seconds)
            if reason := self._detector.explain_error(before, store.heartbeats(), self._heartbeat, seconds):
                say_anywhere(f'{me}: {str(error).splitlines()[0]}')
                self._end(reason)
        say_anywhere(''.join(traceback.format_exception(error)).rstrip('\n'))
        self._end(ShutdownReason(f'{me} ended with {type(error).__name__}.', status=1, stacks=False))

    def _end(self, reason: ShutdownReason) -> NoReturn:
        """Reports why the run ends, ends this process, and posts the reason so that the others end too."""
        if not self._ending.acquire(blocking=False):
            time.sleep(3600)  # another thread is ending the process
        if reason.status is None:
            reason = self._with_status(reason)
        assert reason.status is not None  # `_with_status` sets it
        console.fail(reason.text, BadInput('run', reason.text).as_json())
        if reason.stacks:
            faulthandler.dump_traceback(_stderr(), all_threads=True)
        _try_for(_SECONDS_TO_CLEAN_UP, self._before_ending)
        if self._store is not None:
            self._pass_on(reason, self._store)
        console.flush()
        os._exit(reason.status)

    def _with_status(self, reason: ShutdownReason) -> ShutdownReason:
        status = EXIT_RUN_AGAIN if self._has_saved else 1
        saved = f'; step {self._saved} is saved' if self._saved is not None else ''
        text = f'All processes end with exit status {status}{saved}. Rerun the same command to resume.'
        return dataclasses.replace(reason, text=f'{reason.text}\n{text}', status=status)

    def _pass_on(self, reason: ShutdownReason, store: HeartbeatStore) -> None:
        """Posts the reason for the others. Process 0 serves the store, so it waits until they have read it."""

        def post() -> None:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                store.post_shutdown(reason)

        _try_for(_SECONDS_TO_POST, post)
        deadline = time.monotonic() + _SECONDS_TO_READ + self._interval
        while store.rank == 0 and time.monotonic() < deadline:
            if len(store.shutdowns()) == store.num_processes:
                time.sleep(0.1)  # the others have posted theirs, and end within a moment
                return
            time.sleep(0.05)


def _stderr() -> TextIO:
    """Returns the process's own standard error, even if `sys.stderr` was replaced."""
    return sys.__stderr__ or sys.stderr


def _try_for(seconds: float, call: Callable[[], None]) -> None:
    """Calls a function in a thread that may hang, for example because a disk or process 0 does not answer."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
