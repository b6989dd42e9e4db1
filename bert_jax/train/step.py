"""One step: (state, batch) -> (state, metrics), a pure function."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from bert_jax.data.batches import Batch
from bert_jax.model.bert import BertForPreTraining
from bert_jax.model.layers import DropoutKey, dropout_base
from bert_jax.model.losses import cross_entropy
from bert_jax.train.gradients import Exchange, accumulated
from bert_jax.train.sharding import BATCH_AXES, replicated
from bert_jax.train.state import TrainState

_EVALUATED_AT_ONCE = 128  # rows of a device; a batch that is trained on in microbatches need not fit whole


class Sums(NamedTuple):
    """Losses and hits summed over a batch, each a float32 scalar; nothing is averaged before all rows are in."""

    mlm_sum: jax.Array
    mlm_hits: jax.Array
    mlm_weight: jax.Array
    nsp_sum: jax.Array
    nsp_hits: jax.Array
    nsp_weight: jax.Array


def pretraining_sums(model: BertForPreTraining, batch: Batch, key: DropoutKey | None) -> Sums:
    """Cross entropies (nats) and hits of both objectives, weighted and summed over the rows of a batch."""
    mlm_logits, nsp_logits = model(
        batch.input_ids,
        batch.token_type_ids,
        batch.sequence_ids,
        batch.position_ids,
        batch.masked_lm_positions,
        batch.cls_positions,
        key,
    )
    mlm = _summed(mlm_logits, batch.masked_lm_ids, batch.masked_lm_weights)
    nsp = _summed(nsp_logits, batch.next_sentence_labels, batch.next_sentence_weights)
    return Sums(*mlm, *nsp)


def _summed(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    losses, hits = cross_entropy(logits, labels)
    return (losses * weights).sum(), (hits * weights).sum(), weights.sum()


def total_loss(sums: Sums, mlm_weight: jax.Array, nsp_weight: jax.Array) -> jax.Array:
    """mlm_sum / mlm_weight + nsp_sum / nsp_weight; a weight of 0 gives 0."""
    return _ratio(sums.mlm_sum, mlm_weight) + _ratio(sums.nsp_sum, nsp_weight)


def _ratio(total: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.where(weight > 0, total / jnp.maximum(weight, 1.0), 0.0)


def metrics_of(sums: Sums) -> dict[str, jax.Array]:
    """The figures that a person reads, from the sums over a batch or a whole split."""
    return {
        'loss': total_loss(sums, sums.mlm_weight, sums.nsp_weight),
        'mlm_loss': _ratio(sums.mlm_sum, sums.mlm_weight),
        'nsp_loss': _ratio(sums.nsp_sum, sums.nsp_weight),
        'mlm_accuracy': _ratio(sums.mlm_hits, sums.mlm_weight),
        'nsp_accuracy': _ratio(sums.nsp_hits, sums.nsp_weight),
    }


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    shardings: TrainState,
    *,
    seed: int,
    microbatches: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The step, under `jax.jit`; the state is donated and comes out sharded as it went in.

    Gradients are of sums divided by the weights of the whole global batch, so that a split into microbatches (or
    devices) changes nothing but the order of additions.
    """
    exchange = Exchange(mesh, shardings.params)

    def of_own_rows(params: nnx.State, batch: Batch, rows: jax.Array, base: jax.Array) -> tuple[nnx.State, Sums]:
        """One device: its rows, and what it exchanges with the others."""
        weights = (batch.masked_lm_weights.sum(), batch.next_sentence_weights.sum())
        mlm_weight, nsp_weight = exchange.sum(weights)

        def loss_fn(params: nnx.State, micro: Batch, rows: jax.Array) -> tuple[jax.Array, Sums]:
            model = exchange.assemble(graph, params)
            sums = pretraining_sums(model, micro, DropoutKey(base, rows))
            return total_loss(sums, mlm_weight, nsp_weight), sums

        gradient = functools.partial(jax.grad(loss_fn, has_aux=True), exchange.gather_outside_layers(params))
        grads, sums = accumulated(lambda micro: gradient(*micro), microbatches, (batch, rows))
        return exchange.sum_gradients(grads), exchange.sum(sums)

    own, same = PartitionSpec(BATCH_AXES), PartitionSpec()
    gradient = exchange.over_rows(of_own_rows, (exchange.specs, own, own, same), (exchange.specs, same))

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        rows = jnp.arange(batch.input_ids.shape[0], dtype=jnp.uint32)
        grads, sums = gradient(state.params, batch, rows, dropout_base(seed, state.step))
        state, metrics = apply_gradients(optimizer, schedule, state, grads, sums)
        return state, metrics | speed_counts(batch)

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def apply_gradients(
    optimizer: optax.GradientTransformation, schedule: optax.Schedule, state: TrainState, grads: nnx.State, sums: Sums
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The next state and the metrics of the step, from the gradients and sums of the global batch."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = metrics_of(sums) | {
        'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
        'grad_norm': optax.tree.norm(grads),
    }
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics


def speed_counts(batch: Batch) -> dict[str, jax.Array]:
    """Real tokens of a batch, and the sum of its sequences' lengths squared (float32)."""
    numbers = jnp.arange(1, batch.cls_positions.shape[1] + 1)
    lengths = (batch.sequence_ids[..., None] == numbers).sum(axis=1)  # BE
    return {'tokens': lengths.sum(), 'squared_lengths': jnp.square(lengths.astype(jnp.float32)).sum()}


def make_evaluation_step(graph: nnx.GraphDef, mesh: Mesh, shardings: nnx.State) -> Callable[[nnx.State, Batch], Sums]:
    """The sums over one batch without dropout, under `jax.jit`. shardings: of the parameters."""
    exchange = Exchange(mesh, shardings)

    def of_own_rows(params: nnx.State, batch: Batch) -> Sums:
        model = exchange.assemble(graph, exchange.gather_outside_layers(params))
        rows = batch.input_ids.shape[0]
        at_once = max(n for n in range(1, min(rows, _EVALUATED_AT_ONCE) + 1) if rows % n == 0)
        sums = accumulated(lambda part: pretraining_sums(model, part, None), rows // at_once, batch)
        return exchange.sum(sums)

    return jax.jit(exchange.over_rows(of_own_rows, (exchange.specs, PartitionSpec(BATCH_AXES)), PartitionSpec()))
