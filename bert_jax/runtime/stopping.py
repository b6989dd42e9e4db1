"""Requests to stop a run: a signal or a time limit, noticed at once whatever the program is doing.

The first SIGINT, SIGTERM or SIGUSR1 asks the run to stop; the second ends the process at once (130, 143). While there
is nothing to save (starting up, reading, compiling the first step), the first signal also ends the process at once,
with exit status 75. After `enable_saving`, the training loop checks `should_stop` and saves. A thread reads the signals
from a pipe that Python's C handler writes to, because a handler in Python would have to wait for the compiler.

Does not import jax, so that it can be set up before everything else.
"""

import atexit
import contextlib
import datetime
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from bert_jax import console
from bert_jax.console import say_anywhere
from bert_jax.errors import BadInput

EXIT_BAD_INPUT = 2
EXIT_RUN_AGAIN = 75
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_TIME_LIMIT = 'the time limit'
_UNMEASURED_SAVE = 120.0  # seconds to leave for a save before one has been measured
# When `launch/local.py` dies, Linux sends its processes this signal once per thread of the launcher. Signals within
# this many seconds count as one request.
_PARENT_DEATH_SIGNAL, _PARENT_DEATH_SECONDS = signal.SIGTERM, 0.1
_EXIT_SECONDS = 15.0  # to agree on the step and to exit


class StopRequest:
    """A request to save and stop, if any; a context that must be entered in the main thread.

    Attributes:
      received: the name of the signal that was received, or 'the time limit'; '' if there was no request.
    """

    def __init__(self) -> None:
        self.received = ''
        self._stop_at, self._is_exact, self._can_save = float('inf'), True, False
        self._received_at = 0.0
        self._before_unsaved_end: Callable[[str], None] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> 'StopRequest':
        reading, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._previous_handlers = {signum: signal.signal(signum, _ignore) for signum in _SIGNALS}
        self._previous_wakeup = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), name='signals', daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._previous_wakeup)
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)
        os.close(self._pipe)  # ends the thread

    def set_time(self, stop_at: str) -> None:
        """Sets the time limit to `train.stop_at` (ISO 8601); if empty, to the end of the SLURM job, if there is one."""
        end_of_job = float(os.environ.get('SLURM_JOB_END_TIME', 'inf'))
        self._is_exact = bool(stop_at)
        self._stop_at = datetime.datetime.fromisoformat(stop_at).timestamp() if stop_at else end_of_job

    @contextlib.contextmanager
    def on_unsaved_exit(self, call: Callable[[str], None]) -> Iterator[None]:
        """While the context is open, calls `call` with the reason before the process ends without a save.

        Args:
          call: releases what the supervisor of the run holds; called from the thread that reads the signals.
        """
        if self._before_unsaved_end is not None:
            raise RuntimeError('this stop request already has a supervisor')
        self._before_unsaved_end = call
        try:
            yield
        finally:
            self._before_unsaved_end = None

    def enable_saving(self) -> None:
        """Lets the loop save before it stops: from now on, a signal no longer ends the process at once."""
        with self._lock:
            self._can_save = True

    def should_stop(self, seconds_to_save: float | None) -> bool:
        """Returns whether to stop now.

        Args:
          seconds_to_save: measured duration of a save; None if not yet known.
        """
        if not self.received and time.time() >= self._stop_at - self._reserve(seconds_to_save):
            self.received = _TIME_LIMIT
            say_anywhere('Time limit reached: saving …')
        return bool(self.received)

    def _reserve(self, seconds_to_save: float | None) -> float:
        """Returns how many seconds before the time limit to stop."""
        if self._is_exact:
            return 0.0
        return _UNMEASURED_SAVE if seconds_to_save is None else 2 * seconds_to_save + _EXIT_SECONDS

    def _watch(self, reading: int) -> None:
        while signums := os.read(reading, 64):
            for signum in signums:
                if signum in _SIGNALS:
                    self._receive(signal.Signals(signum))
        os.close(reading)

    def _receive(self, signum: signal.Signals) -> None:
        with self._lock:
            is_repeated = signum.name == self.received and time.monotonic() - self._received_at < _PARENT_DEATH_SECONDS
            if is_repeated and signum == _PARENT_DEATH_SIGNAL:
                return
            if self.received and self.received != _TIME_LIMIT:
                _report(f'{signum.name} again', 'ended at once; the last checkpoint is intact')
                os._exit(128 + signum)  # as a shell reports a process that the signal ended
            self.received, self._received_at = signum.name, time.monotonic()
            if self._can_save:
                say_anywhere(
                    f'{signum.name}: finishing this step, then saving … (a second signal ends the run at once)'
                )
                return
            if (call := self._before_unsaved_end) is not None:
                call(signum.name)
            _report(signum.name, 'stopped before the first step', 'Rerun the same command to start again')
            os._exit(EXIT_RUN_AGAIN)


def _report(where: str, found: str, fix: str = '') -> None:
    text = '. '.join(filter(None, (f'{where}: {found}', fix)))
    console.fail(f'{text}.', BadInput(where, found, fix=fix).as_json())


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """While the context is open, makes SIGTERM and SIGHUP raise SystemExit, so that temporary files are removed.

    For commands with nothing to save. Must be entered in the main thread. A second signal ends the process at once.
    """

    def end(received: int, _: object) -> None:
        for signum in previous:
            signal.signal(signum, signal.SIG_DFL)
        raise SystemExit(128 + received)  # as a shell reports a process that the signal ended

    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP)}
    # A signal that is ignored (nohup) or handled by a C library is left alone.
    previous = {signum: handler for signum, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    for signum in previous:
        signal.signal(signum, end)
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def leave(status: int) -> NoReturn:
    """Ends the program with this exit status after running the exit handlers, even while threads still run.

    A normal exit of the interpreter can abort if a library's thread is inside C++: status 134 in place of 75.
    """
    atexit._run_exitfuncs()
    console.flush()
    os._exit(status)


def _ignore(*_: object) -> None:
    """Does nothing: Python's C handler has already written the signal to the pipe."""
