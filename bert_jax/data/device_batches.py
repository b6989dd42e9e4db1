"""The batches of a stream as global arrays: each process makes the rows that its devices hold."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax.config import Config
from bert_jax.data.batches import Batch, Stream, prefetch
from bert_jax.data.skips import Windows, position
from bert_jax.runtime.mesh import batch_sharding


def local_rows(mesh: Mesh, batch_size: int) -> slice:
    """The rows of the global batch that this process's devices hold (one contiguous range)."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    bounds = [index[0].indices(batch_size)[:2] for index in indices]
    return slice(min(low for low, _ in bounds), max(high for _, high in bounds))


def make_global(local: Any, rows: slice, mesh: Mesh, batch_size: int) -> Any:
    """Global arrays from the rows that this process made: host arrays in, sharded `jax.Array`s out."""
    sharding = batch_sharding(mesh)

    def place(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            low, high, _ = index[0].indices(batch_size)
            return array[low - rows.start : high - rows.start]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, part)

    return jax.tree.map(place, local)


def device_batches(
    stream: Stream, mesh: Mesh, start: int, stop: int, position: Callable[[int], int] = int
) -> Iterator[tuple[int, Any]]:
    """(step, its batch on the devices) for the steps start + 1 … stop; nothing where start >= stop.

    Step n reads batch `position(n - 1)` of the stream. Batches are made ahead of time in a thread.
    """
    if start >= stop:
        return
    rows = local_rows(mesh, stream.batch_size)
    for step, batch in enumerate(prefetch(stream, start, stop, rows, position), start + 1):
        yield step, make_global(batch, rows, mesh, stream.batch_size)


class Feed:
    """An iterator of (step, number of its phase, its batch on the devices).

    A phase is a stream of its own, from its step 0: where a run was stopped does not matter.
    """

    def __init__(
        self, phases: tuple[Config, ...], streams: tuple[Stream, ...], mesh: Mesh, start: int, passed_over: Windows
    ):
        """Args: start, the step that is done; passed_over, the windows of the streams to leave out."""
        self._phases, self._streams, self._mesh = phases, streams, mesh
        self.rewind(start, passed_over)

    def rewind(self, start: int, passed_over: Windows) -> None:
        """Goes on from the step after `start`."""
        self._batches = self._after(start, passed_over)

    def __iter__(self) -> 'Feed':
        return self

    def __next__(self) -> tuple[int, int, Batch]:
        return next(self._batches)

    def _after(self, start: int, passed_over: Windows) -> Iterator[tuple[int, int, Batch]]:
        before = 0  # steps of the phases before
        for number, (phase, stream) in enumerate(zip(self._phases, self._streams, strict=True)):
            done, num_steps = max(start - before, 0), phase.train.steps
            reads = functools.partial(position, passed_over, number)
            for step, batch in device_batches(stream, self._mesh, done, num_steps, reads):
                yield before + step, number, batch
            before += num_steps
