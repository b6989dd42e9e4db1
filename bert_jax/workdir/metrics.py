"""Writes the metrics of a run to metrics.jsonl, examples.jsonl and TensorBoard events."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from bert_jax.console import say
from bert_jax.workdir.step_lines import StepLines


class MetricsWriter:
    """A writer of metrics.jsonl, examples.jsonl (one object per line) and TensorBoard events.

    A write error is reported and does not end the run. Missing lines are written once there is space again; missing
    events are lost.

    Attributes:
      lost_steps: number of steps that were logged after the restored step and are repeated.
    """

    def __init__(self, workdir: str, step: int):
        """Opens the files in process 0 and removes lines after `step`, left by a killed run: each step appears once."""
        self.lost_steps, self._writes = 0, jax.process_index() == 0
        if not self._writes:
            return
        self._workdir = epath.Path(workdir)
        self._events_below = os.fspath(self._workdir / 'tensorboard')
        self._open(step or -1)  # a run that starts over logs the evaluation of its initial weights again
        self.lost_steps = max(0, self._metrics.newest - step)

    def rewind(self, step: int) -> None:
        """Rolls back to a step: removes what was written for later ones."""
        if self._writes:
            self.close()
            self._open(step)

    def _open(self, step: int) -> None:
        examples = self._workdir / 'examples.jsonl'
        self._metrics = StepLines(self._workdir / 'metrics.jsonl', step)
        self._examples = StepLines(examples, step) if examples.exists() else None
        self._events = _Events(self._events_below, step + 1)
        self._fails = self._is_closed = False

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends one line for a step, without non-finite values: JSON has no NaN."""
        if not self._writes:
            return
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        try:
            self._metrics.write(step, values)
            if self._events is None:
                self._events = _Events(self._events_below, step)
            self._events.write(step, values)
            self._fails = False
        except OSError as error:
            self._report_once(error)

    def write_examples(self, step: int, examples: list[dict[str, Any]]) -> None:
        """Appends the model's answers to the example sentences to examples.jsonl."""
        if not self._writes:
            return
        try:
            self._examples = self._examples or StepLines(self._workdir / 'examples.jsonl', step)
            self._examples.write(step, {'examples': examples})
        except OSError as error:
            self._report_once(error)

    def close(self) -> None:
        """Closes all files; does nothing the second time."""
        if not self._writes or self._is_closed:
            return
        self._is_closed = True
        try:
            for file in filter(None, (self._metrics, self._examples, self._events)):
                file.close()
        except OSError as error:
            self._report_once(error)

    def _report_once(self, error: OSError) -> None:
        if not self._fails:
            say(f'{self._workdir / "metrics.jsonl"} could not be written ({error.strerror})')
        self._fails, self._events = True, None


class _Events:
    """A file of TensorBoard events, written synchronously: a run would wait forever for a writer thread that failed."""

    def __init__(self, directory: str, first_step: int):
        """Opens the file; it supersedes events of `first_step` and later in the directory's other files."""
        with _hidden('torch'):  # tensorboardX needlessly imports PyTorch if it is installed
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2
            from tensorboardX.record_writer import directory_check

        directory_check(directory)
        # protobuf creates its classes on import, where a type checker does not see them.
        events: Any = event_pb2
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        self._file = EventsWriter(f'{directory}/events', f'.{first_step}.{time.monotonic_ns()}')
        start = events.SessionLog(status=events.SessionLog.START)
        self._file.write_event(self._event(wall_time=time.time(), step=first_step, session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one event with all values of a step."""
        shown = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._file.write_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=shown)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def _hidden(package: str) -> Iterator[None]:
    """While the context is open, importing a package fails as if it were not installed, unless it is already loaded."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # ty: ignore[invalid-assignment]
    try:
        yield
    finally:
        del sys.modules[package]
