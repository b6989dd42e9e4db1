"""Measures training speed: model FLOPs of a step, the peak FLOP/s of the devices, and tokens per second."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax import config
from bert_jax.console import say
from bert_jax.data.batches import Batch
from bert_jax.model.family import matmuls
from bert_jax.model.matmul import Matmul, training_flops
from bert_jax.runtime.devices import published_peak_flops
from bert_jax.train.objectives import objective_of

_MOST_MEASUREMENTS = 3  # of the peak again, in a run whose MFU is above 1


ListMatmuls = Callable[..., list[Matmul]]  # as `family.matmuls`


def flops_per_step(
    model: config.Model,
    vocab_size: int,
    *,
    tokens: float,
    squared_lengths: float,
    predictions: float,
    sequences: float,
    matmuls: ListMatmuls = matmuls,
) -> float:
    """Returns the model FLOPs of a training step, forward and backward; every other count is derived from it.

    Three times those of the matmuls of a forward pass over non-padding tokens, each attending to its own sequence, with
    the heads at the positions they run on; nothing for recomputation.

    Args:
      tokens: non-padding tokens in the global batch.  squared_lengths: sum over its sequences of length squared.
      predictions: prediction slots in the batch, B x P.  sequences: pooled slots, B x E.
      matmuls: of a forward pass (`Objective.matmuls`).
    """
    # Fractions are exact, so that the result is a whole number for any mean length.
    visible_length = Fraction(float(squared_lengths)) / Fraction(float(tokens)) if tokens else Fraction(0)
    forward = matmuls(
        model,
        model.num_embeddings(vocab_size),
        rows=1,
        length=Fraction(float(tokens)),
        visible_length=visible_length,
        predictions=Fraction(float(predictions)),
        sequences=sequences,
    )
    return training_flops(forward)


def full_batch_flops(run: config.Config, vocab_size: int) -> float:
    """Returns the model FLOPs of a step whose rows are all full. run: without phases, or one of `Config.in_phases`."""
    rows, length = run.train.global_batch_size, run.data.sequence_length
    return flops_per_step(
        run.model,
        vocab_size,
        tokens=rows * length,
        squared_lengths=rows * length**2,
        predictions=rows * config.num_predictions(run.data),
        sequences=rows * config.max_sequences(run.data),
        matmuls=objective_of(run.objective).matmuls,
    )


def peak_flops(dtype: str) -> float | None:
    """FLOP/s of all devices: the published bfloat16 peak, on a CPU the measured rate of a matmul; None if unknown."""
    return _first_measured_flops(dtype) if jax.default_backend() == 'cpu' else published_peak_flops()


@functools.cache  # one measurement for all runs of this process
def _first_measured_flops(dtype: str) -> float:
    return _measure_matmul_flops(dtype)


def _measure_matmul_flops(dtype: str, size: int = 1536, repeats: int = 4) -> float:
    x = jnp.ones((size, size), dtype)
    matmul = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    matmul(x, x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        matmul(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


_Model = tuple[config.Model, ListMatmuls]  # of a phase, with the matmuls of its objective


class Speedometer:
    """A meter of non-padding tokens per second, MFU and input wait, without evaluation, saving and compilation."""

    def __init__(
        self, models: Sequence[config.Model], vocab_size: int, matmuls_of: Sequence[ListMatmuls] | None = None
    ):
        """Args: models, of each phase; the same parameters in the same dtype. matmuls_of: as of `flops_per_step`."""
        self._models = [*zip(models, matmuls_of or [matmuls] * len(models), strict=True)]
        self._vocab_size = vocab_size
        self._compiled: set[tuple[_Model, tuple[tuple[int, ...], ...]]] = set()
        self._dtype, self._peak = models[0].dtype, peak_flops(models[0].dtype)
        self._measurements_left = _MOST_MEASUREMENTS if jax.default_backend() == 'cpu' else 0
        self._pending: list[tuple[_Model, jax.Array, jax.Array, int, int]] = []
        self._since: float | None = None
        self._waited = 0.0
        self._newest: Any = None  # a jax.Array, whose `is_ready` jax does not declare

    def is_new(self, batch: Batch, phase: int = 0) -> bool:
        """Returns whether the step has to be compiled first: for new shapes of a batch, another model or objective."""
        return self._step_of(batch, phase) not in self._compiled

    def add(self, batch: Batch, tokens: jax.Array, squared_lengths: jax.Array, phase: int = 0) -> None:
        """Counts the step of a global batch (on the device: nothing is waited for), unless it compiled first."""
        self._newest, step = tokens, self._step_of(batch, phase)
        if step not in self._compiled:
            jax.block_until_ready(tokens)
            self._compiled.add(step)
            self._pending, self._since, self._waited = [], time.perf_counter(), 0.0
        else:
            counts = tokens, squared_lengths, batch.num_predictions, batch.cls_positions.size
            self._pending.append((self._models[phase], *counts))

    def _step_of(self, batch: Batch, phase: int) -> tuple['_Model', tuple[tuple[int, ...], ...]]:
        return self._models[phase], tuple(array.shape for array in batch)

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yields the batches, and counts the wait for one if the devices are idle when it arrives."""
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
        """Excludes the time in this context, which is not training."""
        start = time.perf_counter()
        yield
        if self._since is not None:
            self._since += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Returns the speed since the last reading.

        tokens_per_second; input_wait_fraction, an upper bound of the share of time in which the devices waited for a
        batch; and mfu, at most 1, if the peak FLOP/s of the devices are known.
        """
        if not self._pending or self._since is None:
            return {}
        counted = jax.device_get([counts for _, *counts in self._pending])
        seconds = time.perf_counter() - self._since
        models, tokens, flops = [model for model, *_ in self._pending], 0.0, 0.0
        for model in dict.fromkeys(models):
            of_model = [counts for counts, other in zip(counted, models, strict=True) if other == model]
            sums = (float(sum(values)) for values in zip(*of_model, strict=True))
            names = 'tokens', 'squared_lengths', 'predictions', 'sequences'
            totals = dict(zip(names, sums, strict=True))
            flops += flops_per_step(model[0], self._vocab_size, **totals, matmuls=model[1])
            tokens += totals['tokens']
        speed = {'tokens_per_second': tokens / seconds, 'input_wait_fraction': self._waited / seconds}
        mfu = self._mfu(flops / seconds)
        self._pending, self._since, self._waited = [], time.perf_counter(), 0.0
        return speed | ({} if mfu is None else {'mfu': mfu})

    def _mfu(self, flops_per_second: float) -> float | None:
        """The share of the peak that is used; None where the peak is unknown.

        A share above 1 shows that the machine was busy when the peak was measured, so it is measured again.
        """
        if self._peak and flops_per_second > self._peak and self._measurements_left:
            self._measurements_left -= 1
            before, self._peak = self._peak, max(self._peak, _measure_matmul_flops(self._dtype))
            found = f'measured {before / 1e9:,.0f} GFLOP/s at first and {self._peak / 1e9:,.0f} now'
            say(f'MFU: the machine was busy when the peak was measured ({found}); earlier values are too high')
        return flops_per_second / self._peak if self._peak and flops_per_second <= self._peak else None
