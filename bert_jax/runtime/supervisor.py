"""The stop request, the watchdog and the lease of a run, as one context."""

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import jax

from bert_jax.activity import activity
from bert_jax.console import say
from bert_jax.runtime import processes
from bert_jax.runtime.lease import Lease
from bert_jax.runtime.stopping import StopRequest
from bert_jax.runtime.watchdog import BETWEEN_STEPS, THE_STEP, Watchdog


class Supervisor:
    """Ends a run that is asked to stop or hangs, and holds its workdir. Every process has one, in its main thread."""

    def __init__(
        self,
        stop: StopRequest | None = None,
        *,
        stop_at: str = '',
        watchdog_seconds: float,
        watchdog_long_seconds: float,
    ) -> None:
        """Initializes the supervisor; it starts when the context is entered.

        Args:
          stop: an open context that already listens for signals; None to listen while this context is open.
          stop_at: `train.stop_at`.
          watchdog_seconds, watchdog_long_seconds: see `Watchdog`.
        """
        self._listens_already = stop is not None
        self._stop = stop or StopRequest()
        self._stop_at = stop_at
        self._watchdog = Watchdog(watchdog_seconds, watchdog_long_seconds, before_ending=self.release)
        self._lease: Lease | None = None
        self._contexts = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as contexts:
            if not self._listens_already:
                contexts.enter_context(self._stop)
            self._stop.set_time(self._stop_at)
            contexts.enter_context(self._stop.on_unsaved_exit(self._end_unsaved))
            contexts.enter_context(self._watchdog)
            contexts.enter_context(activity(lambda: self.stage))
            # Runs before the watchdog's exit, which ends the process if it fails in a multi-process run.
            contexts.callback(self.release)
            self._contexts = contexts.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._contexts.__exit__(kind, error, trace)

    def _end_unsaved(self, reason: str) -> None:
        self.release()
        self._watchdog.stopped(reason)

    # --- The lease. ---

    def acquire(self, workdir: str) -> None:
        """Releases the current lease and takes that of `workdir`, in process 0; every process must call this.

        Raises:
          BadInput: in every process, if another run holds the workdir or it is not writable.
        """
        self.release()
        self._watchdog.begin_run()
        self._lease = lease = Lease(workdir)
        processes.run_on_process_zero(lambda: lease.acquire(say))

    def release(self) -> None:
        """Releases the workdir, so that another run can take it at once; from now on `check_lease` raises.

        Also called from the threads that end this process, while its main thread may be about to write.
        """
        if self._lease is not None:
            self._lease.close()

    def check_lease(self) -> None:
        """Checks that this run may write; `Checkpoints` and `RunLog` call it before every write.

        Raises:
          BadInput: if this run no longer holds the workdir that it acquired last.
        """
        if self._lease is not None:
            self._lease.check()

    # --- The stage of the main thread. ---

    @contextlib.contextmanager
    def step(self, step: int, *, is_first_of_shape: bool = False) -> Iterator[None]:
        """Wraps the dispatch of a step, which compiles it if its batch is the first of its shape."""
        self._watchdog.begin_step(step)
        if is_first_of_shape:
            self._watchdog.enter_long_stage('compiling the step')
        yield
        if is_first_of_shape:
            self._watchdog.enter_first_step()

    def end_step(self, result: jax.Array) -> None:
        """Waits until the devices are at most two steps behind; from now on a stop request leads to a save.

        Args:
          result: any output of the step.
        """
        self._watchdog.end_step(result)
        self._stop.enable_saving()

    @property
    def stage(self) -> str:
        """What the main thread is doing, in words; '' while it trains."""
        return '' if self._watchdog.stage in (THE_STEP, BETWEEN_STEPS) else self._watchdog.stage

    def enter_long_stage(self, stage: str) -> None:
        """Enters a slow stage that is not a step."""
        self._watchdog.enter_long_stage(stage)

    def long_stage(self, stage: str) -> contextlib.AbstractContextManager[None]:
        """Wraps a part of the loop that is not a step, such as evaluating or saving."""
        return self._watchdog.long_stage(stage)

    # --- Stopping. ---

    @property
    def received(self) -> str:
        """What asked this process to stop, for example 'SIGTERM' or 'the time limit'; '' if nothing did."""
        return self._stop.received

    def should_stop(self, seconds_to_save: float | None) -> bool:
        """Returns whether this process was asked to stop; all processes must then agree (`processes.AnyProcessFlag`).

        Args:
          seconds_to_save: measured duration of a save; None if not yet known.
        """
        return self._stop.should_stop(seconds_to_save)

    def any_should_stop(self) -> bool:
        """Returns whether any process was asked to stop, when nothing is left to save.

        All processes must call this and wait for each other, so it is not for the training loop.
        """
        return bool(processes.max_over_processes(int(self.should_stop(seconds_to_save=0.0))))

    def save_started(self, step: int) -> None:
        """Records that a save has started, which means that the save before it, if any, is on disk."""
        self._watchdog.save_started(step)
