"""Computes steps with the same bits on any number of devices and processes: `train.reduction='exact'`.

Floating-point sums depend on their order, and usually the order depends on the number of devices. Here it does not:

1. The global batch is `train.exact_shards` micro-shards of equal, consecutive rows, whatever the devices. Each device
   goes through its own, one after the other, by one program for the shape of a shard. That program stands alone, so
   that nothing around it (how many shards follow, how weights are split) changes how it is compiled.
2. Gradients and sums are added in pairs, pairs of pairs and so on, in the order of the rows: first those of a device,
   then between devices. A device holds 2^n consecutive shards, a whole branch of that tree.
3. Every device computes the update from whole arrays and keeps its part. Computed from parts, the norms (of all
   gradients, of layers) and the optimizer's matmuls would be sums of partial sums.

On a CPU a program runs on one core, because how a matmul is split depends on the number of cores; on a GPU kernels
are deterministic and not chosen by timing. Devices must be of one kind, and all run the same versions. What it costs:
whole gradients are exchanged log2(devices) times, whole moments are gathered with fsdp, and a shard may be smaller than
a device likes.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from bert_jax.model.dropout import DropoutKey, dropout_base
from bert_jax.runtime.mesh import AXES, BATCH_AXES, replicated
from bert_jax.train.compiler import compiler_options
from bert_jax.train.objectives.interface import Objective
from bert_jax.train.state import TrainState
from bert_jax.train.step import StepParts, apply_gradients, speed_counts

_COMPILER_OPTIONS = {
    'cpu': {'xla_cpu_multi_thread_eigen': False},
    'gpu': {'xla_gpu_deterministic_ops': True, 'xla_gpu_autotune_level': 0},
}
if jax.__version_info__ < (0, 11):  # later versions always do this
    _COMPILER_OPTIONS['cpu']['xla_cpu_use_fusion_emitters'] = True  # regardless of XLA_FLAGS
_OWN, _SAME = PartitionSpec(BATCH_AXES), PartitionSpec()


def make_exact_step(parts: StepParts, *, num_shards: int) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Makes a step like that of `make_train_step` from several programs; the state is donated.

    Args:
      parts: data x fsdp of the mesh divides num_shards, its tensor is 1 (`mesh.mesh_sizes` checks).
      num_shards: a power of two.
    """
    mesh, objective = parts.mesh, parts.objective
    num_devices = mesh.shape['data'] * mesh.shape['fsdp']
    each = num_shards // num_devices
    assert isinstance(mesh, Mesh)  # exact sums run on devices; no plan compiles them
    by_device = functools.partial(_by_device, mesh)
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
    split = jax.jit(lambda tree: tree, out_shardings=parts.shardings)
    take = by_device(_make_take(each), (_OWN, _SAME), _OWN)
    gradient = by_device(_make_gradient(parts.graph, objective), (_SAME, _SAME, _SAME, _OWN, _SAME), _OWN)
    add = by_device(lambda a, b: jax.tree.map(jnp.add, a, b), (_OWN, _OWN), _OWN, donate=(0,))
    over_devices = by_device(_make_sum_over_devices(num_devices), _OWN, _SAME)
    update = by_device(_make_update(parts), (_SAME, _SAME, _SAME), _SAME, donate=(0,))

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def count(batch: Any, step: jax.Array, seed: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        """Returns the weights of the global batch; they are integers, whose sums are exact in any order."""
        rows = jnp.arange(batch.input_ids.shape[0], dtype=jnp.uint32)
        labelled = objective.labelled(batch, DropoutKey(dropout_base(seed, step), rows))
        return objective.weights(labelled), speed_counts(batch)

    def exact_step(state: TrainState, batch: Any, seed: Any = parts.seed) -> tuple[TrainState, dict[str, jax.Array]]:
        state = whole(state)
        weights, counts = count(batch, state.step, np.uint32(seed))
        shards = (take(batch, index) for index in range(each))
        found = (gradient(state.params, state.step, np.uint32(seed), shard, weights) for shard in shards)
        grads, sums = over_devices(_pairwise(add, found))
        state, update_metrics, objective_metrics = update(state, grads, sums)
        return split(state), objective_metrics | update_metrics | counts

    return exact_step


def _by_device(mesh: Mesh, function: Callable, in_specs: Any, out_specs: Any, donate: tuple[int, ...] = ()) -> Callable:
    """Compiles a function that each device runs by itself."""
    alone = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=set(AXES), check_vma=False
    )
    options = _COMPILER_OPTIONS.get(mesh.devices.flat[0].platform, {}) | compiler_options(mesh)
    return jax.jit(alone, donate_argnums=donate, compiler_options=options)


def _make_take(each: int) -> Callable:
    def take(batch: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        """Returns the device's shard of that index and the global indices of its rows."""
        size = batch.input_ids.shape[0] // each
        shard = jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, index * size, size), batch)
        start = (jax.lax.axis_index(BATCH_AXES) * each + index) * size
        return shard, start.astype(jnp.uint32) + jnp.arange(size, dtype=jnp.uint32)

    return take


def _make_gradient(graph: nnx.GraphDef, objective: Objective) -> Callable:
    def of_shard(
        params: nnx.State, step: jax.Array, seed: jax.Array, shard: tuple[Any, jax.Array], weights: Any
    ) -> tuple[nnx.State, Any]:
        """Returns (gradients, sums) of a shard, with a first dim of 1 for the device."""
        batch, rows = shard
        key = DropoutKey(dropout_base(seed, step), rows)
        batch = objective.labelled(batch, key)

        def loss_fn(params: nnx.State) -> tuple[jax.Array, Any]:
            sums = objective.sums(nnx.merge(graph, params), batch, key)
            return objective.loss(sums, weights), sums

        return jax.tree.map(lambda array: array[None], jax.grad(loss_fn, has_aux=True)(params))

    return of_shard


def _make_sum_over_devices(num_devices: int) -> Callable:
    def over_devices(parts: Any) -> Any:
        """Computes the upper levels of the tree: partners add each other's sum, with the same result for both."""
        for distance in (2**level for level in range(num_devices.bit_length() - 1)):
            partners = [(device, device ^ distance) for device in range(num_devices)]
            parts = jax.tree.map(lambda part: part + jax.lax.ppermute(part, BATCH_AXES, partners), parts)  # noqa: B023
        return jax.tree.map(lambda part: part[0], parts)

    return over_devices


def _make_update(parts: StepParts) -> Callable:
    def update(state: TrainState, grads: nnx.State, sums: Any) -> tuple[TrainState, dict, dict]:
        """Returns (state, update metrics, objective metrics)."""
        objective_metrics = parts.objective.metrics(sums)
        update = apply_gradients(parts, state, grads, objective_metrics['loss'], in_place=False)
        return *update, objective_metrics

    return update


def _pairwise(add: Callable[[Any, Any], Any], parts: Iterable[Any]) -> Any:
    """Sums 2^n parts in the order of a balanced tree; at most n + 1 of them are held at a time."""
    waiting: list[tuple[int, Any]] = []  # (number of parts, their sum), larger ones first
    for part in parts:
        size = 1
        while waiting and waiting[-1][0] == size:
            part, size = add(waiting.pop()[1], part), 2 * size
        waiting.append((size, part))
    [(_, total)] = waiting
    return total
