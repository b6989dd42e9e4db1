"""The batches of a run on its devices, in the order of its steps; a run that goes back sets them back."""

import functools
from collections.abc import Iterator

from jax.sharding import Mesh

from bert_jax.config import Config
from bert_jax.data.batches import Batch, Stream, prefetch
from bert_jax.data.skips import Windows, position
from bert_jax.train.sharding import local_rows, make_global


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
            if done < num_steps:
                rows = local_rows(self._mesh, stream.batch_size)
                reads = functools.partial(position, passed_over, number)
                batches = prefetch(stream, done, num_steps, rows, reads)
                for step, batch in enumerate(batches, start=before + done + 1):
                    yield step, number, make_global(batch, rows, self._mesh, stream.batch_size)
            before += num_steps
