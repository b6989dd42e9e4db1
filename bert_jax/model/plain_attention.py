"""Attention in ordinary JAX, with scores in memory: on CPUs, and wherever no kernel applies.

`B` rows, `L` positions, `D` hidden, `H` heads, `K` head size, `M` queries, `N` keys; `...` any leading dims.
"""

import functools

import jax
import jax.numpy as jnp

from bert_jax.model import cpu
from bert_jax.model.dropout import DropoutKey, kept
from bert_jax.model.inputs import Array
from bert_jax.model.matmul import contract, exp, transpose
from bert_jax.model.platform import target_platform

_HIDDEN = -1e30  # the score of a key that a query does not see


def attend_plainly(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sequence_ids: Array,
    num_heads: int,
    rate: float,
    key: DropoutKey | None,
    site: int,
    is_causal: Array | None = None,
) -> jax.Array:
    """softmax(q k' / sqrt(K)) v of each head, [B, L, D]; kernels are tested against it.

    Args:
      q, k, v: [B, L, D].
      sequence_ids: [B, L] int32; a position sees positions with the same id; 0 is padding, whose own result is finite
        and otherwise undefined.
      rate: dropout rate of the weights; no dropout without a key.
      site: of the dropout within its layer.
      is_causal: [B] bool, rows in which a position sees none after it; None if there are none.
    """
    heads = (*q.shape[:2], num_heads, q.shape[2] // num_heads)
    q, k, v = (transpose(x.reshape(heads), (0, 2, 1, 3)) for x in (q, k, v))  # BHLK
    sees = (sequence_ids[:, :, None] == sequence_ids[:, None, :]) & (sequence_ids[:, None, :] > 0)  # BMN
    if is_causal is not None:
        position = jnp.arange(q.shape[2])
        sees &= (position[None, :] <= position[:, None]) | ~jnp.asarray(is_causal)[:, None, None]
    attended = attend_by_scores(q, k, v, sees[:, None], rate, key, site)
    return transpose(attended, (0, 2, 1, 3)).reshape(*heads[:2], -1)


def attend_by_scores(
    q: jax.Array, k: jax.Array, v: jax.Array, sees: jax.Array, rate: float, key: DropoutKey | None, site: int
) -> jax.Array:
    """softmax(q k' / sqrt(K)) v for equal leading dims, with a float32 softmax: [..., M, K] in the dtype of v.

    Args:
      q: [B, ..., M, K].  k, v: [B, ..., N, K].
      sees: bool, broadcastable to [B, ..., M, N]: whether a query sees a key.
      rate, key, site: as for `attend_plainly`.
    """
    keep = kept((*q.shape[:-1], k.shape[-2]), rate, key, site) if key is not None and rate else None
    return attend_with_mask(q, k, v, sees, keep, rate)


def attend_with_mask(
    q: jax.Array, k: jax.Array, v: jax.Array, sees: jax.Array, keep: jax.Array | None, rate: float
) -> jax.Array:
    """Computes `attend_by_scores` with a given mask of dropout.

    Args:
      keep: bool, [B, ..., M, N], the weights that dropout with this rate keeps; None for no dropout.
    """
    return _attend(q, k, v, jnp.where(sees, 0.0, _HIDDEN), keep, 0.0 if keep is None else rate)


# The rule for the gradient saves passes over the scores: weights are normalised after they are summed, when they are
# M x K and no longer M x N, and softmax's sum over keys is the sum of `output * its gradient`, which is M x K as well.
@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, keep: jax.Array | None, rate: float
) -> jax.Array:
    """Args: bias, added to the scores; it has no gradient.  keep: of dropout with this rate, [..., M, N] bool."""
    return _forward(q, k, v, bias, keep, rate)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, keep: jax.Array | None, rate: float) -> tuple:
    scaled = _scaled(q)
    scores = contract(scaled, k, dim=1) + bias
    weights = exp(scores - scores.max(axis=-1, keepdims=True), v.dtype)
    weights = jax.lax.optimization_barrier(weights)
    used = weights if keep is None else jax.lax.optimization_barrier(jnp.where(keep, weights, 0))
    inverse = 1 / (_sum_over_keys(weights) * (1 - rate))
    attended = (contract(used, v) * inverse).astype(v.dtype)
    return attended, (scaled, k, v, weights, None if keep is None else used, attended, inverse)


def _backward(rate: float, kept_values: tuple, gradient: jax.Array) -> tuple:
    scaled, k, v, weights, used, attended, inverse = kept_values
    dtype, wide = v.dtype, gradient.astype(jnp.float32)
    sum_over_keys = (wide * attended.astype(jnp.float32)).sum(axis=-1, keepdims=True) * (inverse * (1 - rate))
    gradient = (wide * inverse).astype(dtype)
    of_weights = contract(gradient, v, dim=1)
    if used is not None:
        of_weights = jnp.where(used > 0, of_weights, 0)
    of_scores = (weights.astype(jnp.float32) * (of_weights - sum_over_keys)).astype(dtype)
    of_scores = jax.lax.optimization_barrier(of_scores)
    q_gradient = _scaled(contract(of_scores, k))
    # Transposed, the large factor is the second one, whose layout suits the matmul as it is.
    k_gradient = _transposed(contract(_transposed(scaled), of_scores).astype(dtype))
    v_gradient = contract(_transposed(gradient), weights if used is None else used)
    return q_gradient.astype(dtype), k_gradient, _transposed(v_gradient.astype(dtype)), None, None


_attend.defvjp(_forward, _backward)


def _scaled(q: jax.Array) -> jax.Array:
    """Multiplies by 1 / sqrt(K): of [..., M, K] it costs less than of the scores."""
    return (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)


def _transposed(x: jax.Array) -> jax.Array:
    return transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def _sum_over_keys(weights: jax.Array) -> jax.Array:
    """[..., M, N] -> [..., M, 1] float32."""
    if target_platform() == 'cpu':
        return cpu.sum_over_last(weights)
    return weights.sum(axis=-1, keepdims=True, dtype=jnp.float32)
