"""Being asked to stop: by a signal, by a time; heard the moment it happens, whatever the program does.

The first SIGINT, SIGTERM or SIGUSR1 asks; the second one ends the process at once (130, 143). As long as there is
nothing to save (start-up, reading, compiling the first step) the process ends at once too, with exit status 75; after
`has_something_to_save` the loop asks and saves. A thread reads the signals from a pipe that Python's C handler
writes to, because a handler in Python would wait for the compiler.

Imports nothing of jax, so that it can stand before everything else.
"""

import atexit
import datetime
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

EXIT_BAD_INPUT, EXIT_RUN_AGAIN = 2, 75
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_UNMEASURED_SAVE = 120.0  # seconds to leave for a save as long as none was measured
_MARGIN = 15.0  # seconds: to agree on the step, and to end


class StopRequest:
    """Whether and why a run should save and stop; a context, in the main thread."""

    def __init__(self) -> None:
        self.received = ''  # what asked: the name of a signal, or 'the time limit'
        self.before_ending: list[Callable[[str], None]] = []  # called with the reason before an end without a save
        self._stop_at, self._is_exact, self._can_save = float('inf'), True, False
        self._lock = threading.Lock()

    def __enter__(self) -> 'StopRequest':
        reading, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._before = {number: signal.signal(number, _written_to_the_pipe) for number in _SIGNALS}
        self._wakeup_before = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), name='signals', daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._pipe)  # ends the thread

    def set_time(self, stop_at: str) -> None:
        """Sets `train.stop_at` (ISO 8601); empty: the end of the SLURM job where SLURM says when that is."""
        end_of_job = float(os.environ.get('SLURM_JOB_END_TIME', 'inf'))
        self._is_exact = bool(stop_at)
        self._stop_at = datetime.datetime.fromisoformat(stop_at).timestamp() if stop_at else end_of_job

    def has_something_to_save(self) -> None:
        """From now on a request waits until the loop has saved."""
        with self._lock:
            self._can_save = True

    def asked(self, seconds_to_save: float | None) -> bool:
        """Whether to stop now.

        Args:
          seconds_to_save: how long a save takes, as measured; None: not yet known.
        """
        if not self.received and time.time() >= self._stop_at - self._needed(seconds_to_save):
            self.received = 'the time limit'
            _tell('The time is up: saving …')
        return bool(self.received)

    def _needed(self, seconds_to_save: float | None) -> float:
        if self._is_exact:
            return 0.0
        return _UNMEASURED_SAVE if seconds_to_save is None else 2 * seconds_to_save + _MARGIN

    def _watch(self, reading: int) -> None:
        while numbers := os.read(reading, 64):
            for number in numbers:
                if number in _SIGNALS:
                    self._receive(signal.Signals(number))
        os.close(reading)

    def _receive(self, number: signal.Signals) -> None:
        with self._lock:
            if self.received and self.received != 'the time limit':
                _tell(f'{number.name} again: ended at once; the last checkpoint is whole.')
                os._exit(128 + number)  # as a shell reports a process that the signal ended
            self.received = number.name
            if self._can_save:
                _tell(f'{number.name}: finishing this step, then saving … (once more ends at once)')
                return
            for call in self.before_ending:
                call(number.name)
            _tell(f'{number.name}: stopped before a step was made. The same command starts again.')
            os._exit(EXIT_RUN_AGAIN)


def leave(status: int) -> NoReturn:
    """Ends the program with its status, after what was registered for its end, whatever threads still run.

    At the interpreter's own end a library's thread that is inside C++ may abort the process: 134 where 75 was meant.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _written_to_the_pipe(*_: object) -> None:
    """Python's C handler has written the number to the pipe already."""


def _tell(text: str) -> None:
    """To standard error, in whatever process."""
    sys.stderr.write(text + '\n')
    sys.stderr.flush()
