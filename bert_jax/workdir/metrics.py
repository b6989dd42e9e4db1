"""What a run tells: metrics.jsonl, TensorBoard events, speed."""

import contextlib
import functools
import math
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from bert_jax import config
from bert_jax.console import say
from bert_jax.data.batches import Batch
from bert_jax.workdir.step_lines import StepLines


def flops_per_step(
    model: config.Model, vocab_size: int, *, tokens: float, squared_lengths: float, predictions: int, sequences: int
) -> float:
    """Model FLOPs of a training step, forward and backward; the one count that is used everywhere.

    6 x (parameters of the encoder's matrices) per real token, attention at 12 x layers x hidden x (length of its
    sequence) per real token, the heads at the positions that they run on; nothing for recomputation.

    Args:
      tokens: real tokens in the global batch.  squared_lengths: sum over its sequences of length squared.
      predictions: prediction slots in the batch, B x P.  sequences: pooled slots, B x E.
    """
    size, inner = model.hidden_size, model.intermediate_size
    encoder = model.num_layers * (4 * size * size + 2 * size * inner)
    attention = 12 * model.num_layers * size * squared_lengths
    heads = predictions * (size * size + size * vocab_size) + sequences * (size * size + 2 * size)
    return 6.0 * (encoder * tokens + heads) + attention


_PEAK_BF16_FLOPS = {  # dense, per device, from the makers' data sheets
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5e': 197e12,
    'TPU v5p': 459e12,
    'TPU v5': 459e12,
    'TPU v6 lite': 918e12,
    'TPU v6e': 918e12,
    'A100': 312e12,
    'H100': 989e12,
    'H200': 989e12,
    'B200': 2250e12,
}


def peak_flops(dtype: str) -> float | None:
    """FLOP/s of all devices: the dense bf16 peak, on a CPU what a product of the type reaches now; None if unknown."""
    return _measured_matmul_flops(dtype) if jax.default_backend() == 'cpu' else published_peak_flops()


def published_peak_flops() -> float | None:
    """Dense bf16 FLOP/s of all devices, by their makers; None if unknown."""
    kind = jax.devices()[0].device_kind
    matches = [peak for name, peak in _PEAK_BF16_FLOPS.items() if name in kind]
    return matches[0] * jax.device_count() if matches else None


def _measured_matmul_flops(dtype: str, size: int = 1536, repeats: int = 4) -> float:
    x = jnp.ones((size, size), dtype)
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


class MetricsWriter:
    """metrics.jsonl, examples.jsonl (an object a line) and TensorBoard events, from the restored step on.

    A disk that cannot be written is told and does not end the run: what is missing in the lines comes when there is
    room, what is missing in the events is lost.

    Attributes:
      lost_steps: logged past the restored step, and to be made again.
    """

    def __init__(self, workdir: str, step: int):
        """Process 0 alone writes; lines past `step`, of a run killed after its last save, go: a step appears once."""
        self.lost_steps, self._writes = 0, jax.process_index() == 0
        if not self._writes:
            return
        self._workdir = epath.Path(workdir)
        self._events_below = os.fspath(self._workdir / 'tensorboard')
        self._open(step)
        self.lost_steps = max(0, self._metrics.newest - step)

    def rewind(self, step: int) -> None:
        """Goes back to a step: what was written of later ones goes."""
        if self._writes:
            self.close()
            self._open(step)

    def _open(self, step: int) -> None:
        examples = self._workdir / 'examples.jsonl'
        self._metrics = StepLines(self._workdir / 'metrics.jsonl', step)
        self._examples = StepLines(examples, step) if examples.exists() else None
        self._events = _Events(self._events_below, step + 1)
        self._fails = False

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends one line for a step; a value that is not finite is left out, for JSON has no word for it."""
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
            self._told(error)

    def write_examples(self, step: int, examples: list[dict[str, Any]]) -> None:
        """Appends what the model made of the example sentences to examples.jsonl."""
        if not self._writes:
            return
        try:
            self._examples = self._examples or StepLines(self._workdir / 'examples.jsonl', step)
            self._examples.write(step, {'examples': examples})
        except OSError as error:
            self._told(error)

    def close(self) -> None:
        """Closes all files."""
        if not self._writes:
            return
        try:
            for file in filter(None, (self._metrics, self._examples, self._events)):
                file.close()
        except OSError as error:
            self._told(error)

    def _told(self, error: OSError) -> None:
        if not self._fails:
            say(f'{self._workdir / "metrics.jsonl"} could not be written ({error.strerror})')
        self._fails, self._events = True, None


class _Events:
    """A file of TensorBoard events; written as it is called: a thread that fails would leave the run waiting for it."""

    def __init__(self, directory: str, first_step: int):
        """Events of `first_step` and later in the directory's other files are superseded."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import directory_check

        directory_check(directory)
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._file = EventsWriter(f'{directory}/events', f'.{first_step}.{time.monotonic_ns()}')
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._file.write_event(self._event(wall_time=time.time(), step=first_step, session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        """One event with all values of a step."""
        shown = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._file.write_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=shown)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Speedometer:
    """Real tokens per second, MFU and waiting between readings; evaluation, saving and compiling steps left out."""

    def __init__(self, model: config.Model, vocab_size: int):
        self._count = functools.partial(flops_per_step, model, vocab_size)
        self._shapes: set[tuple[tuple[int, ...], ...]] = set()
        self._peak = peak_flops(model.dtype)
        self._pending: list[tuple[jax.Array, jax.Array, int, int]] = []
        self._since: float | None = None
        self._waited, self._newest = 0.0, None

    def is_new(self, batch: Batch) -> bool:
        """Whether no batch of this one's shapes has been counted yet: its step has to be compiled first."""
        return tuple(array.shape for array in batch) not in self._shapes

    def add(self, batch: Batch, tokens: jax.Array, squared_lengths: jax.Array) -> None:
        """Counts the step of a global batch (on the device: nothing is waited for); the first of a shape compiles."""
        self._newest, shapes = tokens, tuple(array.shape for array in batch)
        if shapes not in self._shapes:
            jax.block_until_ready(tokens)
            self._shapes.add(shapes)
            self._pending, self._since, self._waited = [], time.perf_counter(), 0.0
        else:
            self._pending.append((tokens, squared_lengths, batch.num_predictions, batch.cls_positions.size))

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the wait for one counts if the devices have nothing left to do when it comes."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            if self._newest is not None and self._newest.is_ready():
                self._waited += time.perf_counter() - start
            yield batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training."""
        start = time.perf_counter()
        yield
        if self._since is not None:
            self._since += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Since the last reading: tokens_per_second, input_wait_fraction (the share of the time in which the devices
        waited for a batch, at most) and, where the peak of the devices is known, mfu."""
        if not self._pending:
            return {}
        counted = jax.device_get(self._pending)
        seconds = time.perf_counter() - self._since
        tokens, squared, predictions, sequences = (float(sum(values)) for values in zip(*counted, strict=True))
        flops = self._count(tokens=tokens, squared_lengths=squared, predictions=predictions, sequences=sequences)
        speed = {'tokens_per_second': tokens / seconds, 'input_wait_fraction': self._waited / seconds}
        self._pending, self._since, self._waited = [], time.perf_counter(), 0.0
        return speed | ({'mfu': flops / seconds / self._peak} if self._peak else {})
