"""Makes the train step for a loss over the vectors of a whole global batch.

With several microbatches the vectors are computed twice, first without what a backward pass needs. This is gradient
caching (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"):

1. Each device encodes its rows, one microbatch after the other, and gathers the vectors of all devices.
2. It computes its part of the loss, and receives the gradient of the whole loss with respect to its own vectors.
3. It encodes each microbatch again, with the same dropout, and propagates the gradient of its vectors to the weights.

That is the gradient of the whole batch, whatever the mesh and the number of microbatches; memory is that of one.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.contrastive import Part
from bert_jax.model.dropout import DropoutKey
from bert_jax.runtime.mesh import BATCH_AXES
from bert_jax.train.gradients import Collectives, accumulated, concatenated
from bert_jax.train.objectives.interface import VectorObjective
from bert_jax.train.state import TrainState
from bert_jax.train.step import StepParts, jit_step


def make_vector_step(parts: StepParts, *, microbatches: int) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Makes a step like that of `make_train_step` for a `VectorObjective`; its batches all have as many rows."""
    objective: VectorObjective = parts.objective
    collectives = Collectives(parts.mesh, parts.shardings.params)
    num_devices = math.prod(parts.mesh.shape[axis] for axis in BATCH_AXES)

    def of_own_rows(params: nnx.State, batch: Any, rows: jax.Array, base: jax.Array) -> tuple[nnx.State, Any]:
        weights = collectives.gather_outside_layers(params)
        labels = collectives.gather_rows(objective.labels(batch))
        part = Part(rows[0].astype(jnp.int32) // rows.shape[0], num_devices)

        def encode(weights: nnx.State, batch: Any, rows: jax.Array) -> jax.Array:
            model = collectives.merge(parts.graph, weights)
            return objective.vectors(model, batch, DropoutKey(base, rows), collectives.gather_layer)

        def loss_fn(vectors: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            # The gradient of this gather sums those of the parts of all devices.
            loss, metrics = objective.loss(collectives.gather_rows(vectors), labels, part)
            return loss, {'loss': loss} | metrics

        def pulled_back(micro: tuple[Any, jax.Array, jax.Array]) -> nnx.State:
            batch, rows, gradient = micro
            _, pull = jax.vjp(lambda weights: encode(weights, batch, rows), weights)
            return pull(gradient)[0]

        if microbatches == 1:
            grads, metrics = jax.grad(lambda weights: loss_fn(encode(weights, batch, rows)), has_aux=True)(weights)
        else:
            vectors = concatenated(lambda micro: encode(weights, *micro), microbatches, (batch, rows))
            gradient, metrics = jax.grad(loss_fn, has_aux=True)(vectors)
            grads = accumulated(pulled_back, microbatches, (batch, rows, gradient))
        return collectives.sum_gradients(grads), collectives.sum(metrics)

    return jit_step(parts, collectives, of_own_rows, dict)
