"""Requests to stop a run: a signal or a time limit, noticed at once whatever the program is doing.

The first SIGINT, SIGTERM or SIGUSR1 asks the run to stop; the second ends the process at once (130, 143). While there
is nothing to save (start-up, reading, compiling the first step) the first one ends the process at once too, with exit
status 75; after `enable_saving` the loop checks `should_stop` and saves. A thread reads the signals from a pipe that
Python's C handler writes to, because a handler in Python would wait for the compiler.

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
# What `launch/local.py` asks Linux to send its processes when it dies comes once for each of its threads: within so
# many seconds that is one request.
_DEATH_OF_THE_LAUNCHER, _ONE_DEATH = signal.SIGTERM, 0.1
_MARGIN = 15.0  # seconds to agree on the step and to exit


class StopRequest:
    """Whether and why a run should save and stop; a context to be entered in the main thread.

    Attributes:
      received: what should_stop, the name of a signal or 'the time limit'; '' as long as nothing has.
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
        self._before = {signum: signal.signal(signum, _written_to_the_pipe) for signum in _SIGNALS}
        self._wakeup_before = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), name='signals', daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        os.close(self._pipe)  # ends the thread

    def set_time(self, stop_at: str) -> None:
        """Sets `train.stop_at` (ISO 8601); if empty, the end of the SLURM job where SLURM announces it."""
        end_of_job = float(os.environ.get('SLURM_JOB_END_TIME', 'inf'))
        self._is_exact = bool(stop_at)
        self._stop_at = datetime.datetime.fromisoformat(stop_at).timestamp() if stop_at else end_of_job

    @contextlib.contextmanager
    def on_unsaved_exit(self, call: Callable[[str], None]) -> Iterator[None]:
        """While the context is open, an end without a save first calls `call` with the reason.

        Args:
          call: called from the thread that hears the signal; whoever supervises the run frees what it holds.
        """
        if self._before_unsaved_end is not None:
            raise RuntimeError('this stop request already has a supervisor')
        self._before_unsaved_end = call
        try:
            yield
        finally:
            self._before_unsaved_end = None

    def enable_saving(self) -> None:
        """From now on a request waits until the loop has saved."""
        with self._lock:
            self._can_save = True

    def should_stop(self, seconds_to_save: float | None) -> bool:
        """Whether to stop now.

        Args:
          seconds_to_save: how long a save takes, as measured; None if not yet known.
        """
        if not self.received and time.time() >= self._stop_at - self._needed(seconds_to_save):
            self.received = _TIME_LIMIT
            say_anywhere('The time is up: saving …')
        return bool(self.received)

    def _needed(self, seconds_to_save: float | None) -> float:
        if self._is_exact:
            return 0.0
        return _UNMEASURED_SAVE if seconds_to_save is None else 2 * seconds_to_save + _MARGIN

    def _watch(self, reading: int) -> None:
        while signums := os.read(reading, 64):
            for signum in signums:
                if signum in _SIGNALS:
                    self._receive(signal.Signals(signum))
        os.close(reading)

    def _receive(self, signum: signal.Signals) -> None:
        with self._lock:
            again = signum.name == self.received
            if again and signum == _DEATH_OF_THE_LAUNCHER and time.monotonic() - self._received_at < _ONE_DEATH:
                return
            if self.received and self.received != _TIME_LIMIT:
                _report(f'{signum.name} again', 'ended at once; the last checkpoint is whole')
                os._exit(128 + signum)  # as a shell reports a process that the signal ended
            self.received, self._received_at = signum.name, time.monotonic()
            if self._can_save:
                say_anywhere(f'{signum.name}: finishing this step, then saving … (once more ends at once)')
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
    """While the context is open, SIGTERM and SIGHUP raise SystemExit, so that temporary files are removed.

    For commands with nothing to save; to be entered in the main thread. A second signal ends the process at once.
    """

    def end(signum: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise SystemExit(128 + signum)  # as a shell reports a process that the signal ended

    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP)}
    # Ignored as under nohup, or handled by a library in C: left alone.
    before = {signum: handler for signum, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    for signum in before:
        signal.signal(signum, end)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def leave(status: int) -> NoReturn:
    """Ends the program with its status, after what was registered for its end, whatever threads still run.

    At the interpreter's own end a library's thread that is inside C++ may abort the process: 134 where 75 was meant.
    """
    atexit._run_exitfuncs()
    console.flush()
    os._exit(status)


def _written_to_the_pipe(*_: object) -> None:
    """Python's C handler has written the number to the pipe already."""
