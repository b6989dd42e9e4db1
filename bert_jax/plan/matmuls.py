"""Lists and times the matmuls of a train step, without the rest of the step."""

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bert_jax.config import Config, max_sequences, num_predictions
from bert_jax.model.matmul import Count, Matmul, result_dtype, training_flops
from bert_jax.model.vocabulary import padded_vocab_size
from bert_jax.train.objectives import objective_of

_MIN_COLUMNS = 8
_MIN_SECONDS = 2e-3  # long enough for the clock


def step_matmuls(config: Config, vocab_size: int, axis_sizes: dict[str, int]) -> list[Matmul]:
    """Returns the matmuls of a step's forward pass on one device of a mesh; the backward pass has two for each.

    Rows are full. Matmuls of fewer than 8 columns are omitted: their time is that of launching an operation.

    Args:
      axis_sizes: of the mesh's axes data, fsdp and tensor.
    """
    data, microbatches = config.data, config.train.microbatches
    rows = config.train.global_batch_size // microbatches // axis_sizes['data'] // axis_sizes['fsdp']
    forward = objective_of(config.objective).matmuls(
        config.model,
        padded_vocab_size(config.model.num_embeddings(vocab_size)),
        rows=rows,
        length=data.sequence_length,
        visible_length=data.sequence_length,
        predictions=rows * num_predictions(data),
        sequences=rows * max_sequences(data),
        tensor=axis_sizes['tensor'],
        as_computed=True,
    )
    return [matmul._replace(count=matmul.count * microbatches) for matmul in forward if matmul.n >= _MIN_COLUMNS]


class MatmulTimer:
    """Times the matmuls of a step, forward and backward, each compiled by itself.

    Attributes:
      flops: of all of them on one device.
    """

    def __init__(self, config: Config, vocab_size: int, mesh: Mesh):
        self._timers: list[tuple[Count, Callable[[], float]]] = []
        forward = step_matmuls(config, vocab_size, dict(mesh.shape))
        self.flops = training_flops(forward)
        for matmul in forward:
            batch, m, k, n = (int(size) for size in (matmul.batch, matmul.m, matmul.k, matmul.n))
            for sizes in ((m, k, n), (m, n, k), (k, m, n)):
                self._timers.append((matmul.count, new_timer(batch, *sizes, config.model.dtype, mesh)))

    def seconds(self) -> float:
        """Returns the seconds per step: each matmul runs once here and counts as often as it occurs in the step."""
        return sum(float(count) * time_matmul() for count, time_matmul in self._timers)


def new_timer(batch: int, m: int, k: int, n: int, dtype: str, mesh: Mesh) -> Callable[[], float]:
    """Returns a function that times one [batch, m, k] x [batch, k, n] on all devices at once, in seconds.

    Both factors have the layout that is fastest for the matmul. Its result has the same dtype as in the model.
    """
    per_device = PartitionSpec(mesh.axis_names)
    x, w = (_on_each_device((batch, *shape), dtype, mesh) for shape in ((m, k), (k, n)))

    def local(x: jax.Array, w: jax.Array) -> jax.Array:
        factors = (x[0, 0], w[0, 0]) if batch == 1 else (x[0], w[0])
        return jnp.matmul(*factors, preferred_element_type=result_dtype(dtype))[None]

    matmul = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(per_device, per_device), out_specs=per_device))
    matmul(x, w).block_until_ready()
    start = time.perf_counter()
    matmul(x, w).block_until_ready()
    repeats = max(1, math.ceil(_MIN_SECONDS / (time.perf_counter() - start)))

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            result = matmul(x, w)
        result.block_until_ready()
        return (time.perf_counter() - start) / repeats

    return seconds


def _on_each_device(shape: tuple[int, ...], dtype: str, mesh: Mesh) -> jax.Array:
    """Returns an array with a copy of this shape on every device: [devices, …]."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.jit(lambda: jnp.full((mesh.size, *shape), 0.01, dtype), out_shardings=sharding)()
