"""Makes train and forward steps: pure functions, (state, batch) -> (state, metrics)."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from bert_jax.model.dropout import DropoutKey, dropout_base
from bert_jax.model.layer_stack import Gather
from bert_jax.model.platform import platform_of
from bert_jax.runtime.mesh import BATCH_AXES, replicated
from bert_jax.train.compiler import compiler_options
from bert_jax.train.gradients import Collectives, accumulated, concatenated
from bert_jax.train.objectives.interface import Objective
from bert_jax.train.state import TrainState, is_schedule, moved_average

Forward = Callable[[Any, Any, Gather | None], Any]  # (model, batch, `gather` of its forward pass) -> arrays

_EVALUATED_AT_ONCE = 128  # rows per device; a batch that needs microbatches in training may not fit at once


class StepParts(NamedTuple):
    """The parts of a train step.

    Attributes:
      graph: the model without its parameters.
      shardings: of the state.
      objective: an `Objective`, or a `VectorObjective` for `make_vector_step`.
      seed: dropout seed, unless a call of the step names another.
      ema: `train.ema`, for a state with a moving average.
    """

    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    mesh: Mesh | AbstractMesh
    shardings: TrainState
    objective: Any
    seed: int
    ema: float = 0.0


def make_train_step(
    parts: StepParts, *, microbatches: int, full_batch: int | None = None
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Makes the step under `jax.jit`; the state is donated and keeps its sharding.

    Gradients are of sums divided by the weights of the whole global batch, so that a split into microbatches (or
    devices) changes nothing but the order of additions. A call may name another dropout seed, `train_step(state, batch,
    seed)`: all seeds that are given so share one compiled program.

    Args:
      microbatches: of a batch.
      full_batch: rows of the batches that have as many; smaller ones have fewer, no larger than those. By default all
        batches have as many.
    """
    graph = parts.graph
    objective: Objective = parts.objective
    collectives = Collectives(parts.mesh, parts.shardings.params)
    num_devices = math.prod(parts.mesh.shape[axis] for axis in BATCH_AXES)
    most_rows = None if full_batch is None else full_batch // num_devices // microbatches  # of a device in a part

    def of_own_rows(params: nnx.State, batch: Any, rows: jax.Array, base: jax.Array) -> tuple[nnx.State, Any]:
        """Computes the gradients on one device from its rows, and exchanges them with the others."""
        batch = objective.labelled(batch, DropoutKey(base, rows))
        weights = collectives.sum(objective.weights(batch))

        def loss_fn(params: nnx.State, micro: Any, rows: jax.Array) -> tuple[jax.Array, Any]:
            model = collectives.merge(graph, params)
            sums = objective.sums(model, micro, DropoutKey(base, rows), collectives.gather_layer)
            return objective.loss(sums, weights), sums

        gradient = functools.partial(jax.grad(loss_fn, has_aux=True), collectives.gather_outside_layers(params))
        num_parts = microbatches if most_rows is None else _fewest_parts(len(rows), most_rows)
        grads, sums = accumulated(lambda micro: gradient(*micro), num_parts, (batch, rows))
        return collectives.sum_gradients(grads), collectives.sum(sums)

    return jit_step(parts, collectives, of_own_rows, objective.metrics)


def jit_step(
    parts: StepParts,
    collectives: Collectives,
    of_own_rows: Callable[[nnx.State, Any, jax.Array, jax.Array], tuple[nnx.State, Any]],
    metrics: Callable[[Any], dict[str, jax.Array]],
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Makes a step under `jax.jit`: gradients and the update; the state is donated and keeps its sharding.

    Args:
      of_own_rows: (parameters, batch, global indices of its rows, dropout base), as each device has them -> (gradients,
        sums), the same on every device that holds them.
      metrics: sums -> metrics, including `loss`.
    """
    own, same = PartitionSpec(BATCH_AXES), PartitionSpec()
    gradient = collectives.over_rows(of_own_rows, (collectives.specs, own, own, same), (collectives.specs, same))

    def train_step(state: TrainState, batch: Any, seed: Any = parts.seed) -> tuple[TrainState, dict[str, jax.Array]]:
        rows = jnp.arange(batch.input_ids.shape[0], dtype=jnp.uint32)
        grads, sums = gradient(state.params, batch, rows, dropout_base(seed, state.step))
        objective_metrics = metrics(sums)
        state, update_metrics = apply_gradients(parts, state, grads, objective_metrics['loss'])
        return state, objective_metrics | update_metrics | speed_counts(batch)

    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(parts.shardings, replicated(parts.mesh)),
        compiler_options=compiler_options(parts.mesh),
    )


def _fewest_parts(num_rows: int, most_rows: int) -> int:
    """Returns the fewest equal parts of rows that have at most `most_rows` each."""
    return next(n for n in range(1, num_rows + 1) if num_rows % n == 0 and num_rows // n <= most_rows)


def apply_gradients(
    parts: StepParts, state: TrainState, grads: nnx.State, loss: jax.Array, *, in_place: bool = True
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the next state and the metrics of the update, from the gradients of the global batch.

    If the loss or a gradient is not finite, only the step changes, not even the optimizer's counts.

    Args:
      in_place: saves memory on a CPU; the last bits of the result may then depend on the mesh.
    """
    grad_norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    update_metrics = {
        'learning_rate': jnp.asarray(parts.schedule(_updates_made(state)), jnp.float32),
        'grad_norm': grad_norm,
        'is_skipped': ~is_finite,
    }

    def updated(state: TrainState, grads: nnx.State) -> TrainState:
        updates, opt_state = parts.optimizer.update(grads, state.opt_state, state.params)
        params = cast(nnx.State, optax.apply_updates(state.params, updates))  # of the tree's own type
        ema = None if state.ema is None else moved_average(state.ema, params, parts.ema, _updates_made(state))
        return state._replace(params=params, opt_state=opt_state, ema=ema)

    if in_place and platform_of(parts.mesh) == 'cpu':
        # A branch changes the moments in place; for a selection XLA copies the old ones first.
        state = jax.lax.cond(is_finite, updated, lambda state, _: state, state, grads)
    else:
        selected = functools.partial(jnp.where, is_finite)
        state = jax.tree.map(selected, updated(state, grads), state)
    return state._replace(step=state.step + 1), update_metrics


def _updates_made(state: TrainState) -> jax.Array:
    """Returns the count that the schedule uses: the steps without those whose update was skipped."""
    return next(filter(is_schedule, jax.tree.leaves(state.opt_state, is_leaf=is_schedule))).count


def speed_counts(batch: Any) -> dict[str, jax.Array]:
    """Counts the non-padding tokens of a batch and sums its squared sequence lengths (float32)."""
    indices = jnp.arange(1, batch.cls_positions.shape[1] + 1)
    lengths = (batch.sequence_ids[..., None] == indices).sum(axis=1)  # BE
    return {'tokens': lengths.sum(), 'squared_lengths': jnp.square(lengths.astype(jnp.float32)).sum()}


def make_forward(
    graph: nnx.GraphDef, mesh: Mesh | AbstractMesh, shardings: nnx.State, function: Forward, *, summed: bool = False
) -> Callable[[nnx.State, Any], Any]:
    """Compiles (parameters, batch) -> `function` of the model and all rows of the batch, without dropout.

    Each device runs its own rows, at most `_EVALUATED_AT_ONCE` at a time. The result is whole on every device.

    Args:
      shardings: of the parameters.
      summed: whether the outputs are sums over the rows; else their first dim is that of the rows.
    """
    collectives = Collectives(mesh, shardings)
    own, same = PartitionSpec(BATCH_AXES), PartitionSpec()
    combined = accumulated if summed else concatenated

    def of_own_rows(params: nnx.State, batch: Any) -> Any:
        model = collectives.merge(graph, collectives.gather_outside_layers(params))
        rows = batch.input_ids.shape[0]
        at_once = max(n for n in range(1, min(rows, _EVALUATED_AT_ONCE) + 1) if rows % n == 0)
        found = combined(lambda part: function(model, part, collectives.gather_layer), rows // at_once, batch)
        return collectives.sum(found) if summed else found

    of_all_rows = collectives.over_rows(of_own_rows, (collectives.specs, own), same if summed else own)
    return jax.jit(of_all_rows, out_shardings=replicated(mesh), compiler_options=compiler_options(mesh))
