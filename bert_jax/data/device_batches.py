"""Turns the batches of a stream into global arrays; each process makes only the rows that its devices hold."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax.data.batches import Stream, prefetch
from bert_jax.data.skips import Windows, position
from bert_jax.runtime.mesh import batch_sharding


def local_rows(mesh: Mesh, batch_size: int) -> slice:
    """Returns the contiguous range of rows of the global batch that this process's devices hold."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    bounds = [index[0].indices(batch_size)[:2] for index in indices if index]
    return slice(min(low for low, _ in bounds), max(high for _, high in bounds))


def make_global(local: Any, rows: slice, mesh: Mesh, batch_size: int) -> Any:
    """Assembles sharded global `jax.Array`s from the host arrays of this process's rows."""
    sharding = batch_sharding(mesh)

    def to_global(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # the sharding has devices of this process
            low, high, _ = index[0].indices(batch_size)
            return array[low - rows.start : high - rows.start]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, part)

    return jax.tree.map(to_global, local)


def device_batches(
    stream: Stream, mesh: Mesh, start: int, stop: int, position: Callable[[int], int] = int
) -> Iterator[tuple[int, Any]]:
    """Yields (step, its batch on the devices) for steps start + 1 … stop; nothing if start >= stop.

    Step n reads batch `position(n - 1)` of the stream. Batches are made ahead of time in a thread.
    """
    if start >= stop:
        return
    rows = functools.cache(functools.partial(local_rows, mesh))
    for step, batch in enumerate(prefetch(stream, start, stop, rows, position), start + 1):
        size = stream.batch_size_at(position(step - 1))
        yield step, make_global(batch, rows(size), mesh, size)


class Batches:
    """An iterator over (step, phase index, batch on the devices) in the order of a run's steps.

    Each phase reads its own stream from the beginning, so the batches do not depend on where a run was resumed.

    Attributes:
      phase_steps: number of steps of each phase.
    """

    def __init__(
        self, streams: Sequence[Stream], phase_steps: Sequence[int], mesh: Mesh, start: int, skipped: Windows = ()
    ):
        """Args: start, the last completed step; skipped, the windows of batches to skip."""
        self._streams, self._mesh = streams, mesh
        self.phase_steps = phase_steps
        self.rewind(start, skipped)

    def rewind(self, start: int, skipped: Windows) -> None:
        """Continues with the step after `start`."""
        self._batches = self._after(start, skipped)

    def __iter__(self) -> 'Batches':
        return self

    def __next__(self) -> tuple[int, int, Any]:
        return next(self._batches)

    def _after(self, start: int, skipped: Windows) -> Iterator[tuple[int, int, Any]]:
        before = 0  # steps of the phases before
        for phase, (stream, num_steps) in enumerate(zip(self._streams, self.phase_steps, strict=True)):
            reads = functools.partial(position, skipped, phase)
            for step, batch in device_batches(stream, self._mesh, max(start - before, 0), num_steps, reads):
                yield before + step, phase, batch
            before += num_steps
