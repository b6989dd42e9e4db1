"""One step: (state, batch) -> (state, metrics), a pure function.

`M` microbatches, `B` rows of the global batch, `b` = B / M rows of a microbatch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from bert_jax.data.batches import Batch
from bert_jax.model.bert import BertForPreTraining
from bert_jax.model.layers import DropoutKey, dropout_base
from bert_jax.model.losses import cross_entropy
from bert_jax.train.sharding import constrain_rows, replicated
from bert_jax.train.state import TrainState, is_schedule


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

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        mlm_weight, nsp_weight = batch.masked_lm_weights.sum(), batch.next_sentence_weights.sum()
        base = dropout_base(seed, state.step)
        rows = jnp.arange(batch.input_ids.shape[0], dtype=jnp.uint32)

        def loss_fn(params: nnx.State, micro: Batch, rows: jax.Array) -> tuple[jax.Array, Sums]:
            sums = pretraining_sums(nnx.merge(graph, params), micro, DropoutKey(base, rows))
            return total_loss(sums, mlm_weight, nsp_weight), sums

        gradient = jax.grad(loss_fn, has_aux=True)
        if microbatches == 1:
            grads, sums = gradient(state.params, batch, rows)
        else:
            split = _strided(microbatches, mesh)

            def accumulate(total: tuple, micro: tuple) -> tuple[tuple, None]:
                return jax.tree.map(jnp.add, total, gradient(state.params, *micro)), None

            zeros = (jax.tree.map(jnp.zeros_like, state.params), Sums(*[jnp.zeros(())] * len(Sums._fields)))
            (grads, sums), _ = jax.lax.scan(accumulate, zeros, jax.tree.map(split, (batch, rows)))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics, grad_norm = metrics_of(sums), optax.tree.norm(grads)
        is_finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(grad_norm)
        metrics |= {
            'learning_rate': jnp.asarray(schedule(_updates_made(state)), jnp.float32),
            'grad_norm': grad_norm,
            'is_skipped': ~is_finite,
        } | _speed_counts(batch)
        # Not finite: nothing moves but the step, not even the optimiser's counts.
        updated = (optax.apply_updates(state.params, updates), opt_state)
        kept = (state.params, state.opt_state)
        return TrainState(
            state.step + 1, *jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), updated, kept)
        ), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def _updates_made(state: TrainState) -> jax.Array:
    """What the schedule goes by: the steps, less those whose update was skipped."""
    return next(filter(is_schedule, jax.tree.leaves(state.opt_state, is_leaf=is_schedule))).count


def _speed_counts(batch: Batch) -> dict[str, jax.Array]:
    """Real tokens of a batch, and the sum of its sequences' lengths squared (float32)."""
    numbers = jnp.arange(1, batch.cls_positions.shape[1] + 1)
    lengths = (batch.sequence_ids[..., None] == numbers).sum(axis=1)  # BE
    return {'tokens': lengths.sum(), 'squared_lengths': jnp.square(lengths.astype(jnp.float32)).sum()}


def _strided(microbatches: int, mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """[B, …] -> [M, b, …], row r into microbatch r mod M, so that rows stay on the device that holds them."""
    constrain = constrain_rows(mesh)

    def split(array: jax.Array) -> jax.Array:
        return constrain(array.reshape(-1, microbatches, *array.shape[1:]).swapaxes(0, 1))

    return split


def make_evaluation_step(graph: nnx.GraphDef) -> Callable[[nnx.State, Batch], Sums]:
    """The sums over one batch without dropout, under `jax.jit`."""

    def evaluation_step(params: nnx.State, batch: Batch) -> Sums:
        return pretraining_sums(nnx.merge(graph, params), batch, None)

    return jax.jit(evaluation_step)
