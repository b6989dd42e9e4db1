"""The cross entropy of a large vocabulary, with a gradient that makes one pass over the logits.

`V` classes; `...` any leading dims.
"""

import jax
import jax.numpy as jnp

from bert_jax.model.inputs import Array


def cross_entropy(logits: jax.Array, labels: Array) -> tuple[jax.Array, jax.Array]:
    """Returns (losses, hits), both [...] float32: -log softmax(logits)[label] in nats, and 1 for a hit.

    Args:
      logits: [..., V] float32; -inf is allowed where no label points.  labels: [...] int32.
    """
    losses, top = _losses_and_top(logits, labels)
    return losses, top.astype(jnp.float32)


# The gradient, softmax - one_hot, is written out: derived from `take_along_axis` it would scatter into an array of
# zeros as large as the logits, which on a CPU takes longer than the matmul that made them.
@jax.custom_vjp
def _losses_and_top(logits: jax.Array, labels: Array) -> tuple[jax.Array, jax.Array]:
    return _forward(logits, labels)[0]


def _forward(logits: jax.Array, labels: Array) -> tuple:
    largest = logits.max(axis=-1)
    log_sum = largest + jnp.log(jnp.exp(logits - largest[..., None]).sum(axis=-1))
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return (log_sum - chosen, chosen >= largest), (logits, labels, log_sum)


def _backward(kept: tuple, gradients: tuple) -> tuple:
    logits, labels, log_sum = kept
    probabilities = jnp.exp(logits - log_sum[..., None])
    is_label = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
    gradient = jnp.where(is_label, probabilities - 1.0, probabilities) * gradients[0][..., None]
    return jax.lax.optimization_barrier(gradient), None


_losses_and_top.defvjp(_forward, _backward)
