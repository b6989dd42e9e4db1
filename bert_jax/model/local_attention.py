"""Sliding-window self-attention in blocks: time and memory grow with `L x window` instead of `L x L`.

Rows are cut into blocks as long as the window's radius. The queries of a block see the keys of the block itself and of
the blocks before and after it, which hold everything within the radius. It is ordinary JAX: exact, differentiable, and
the same on every platform.

`B` rows, `L` positions, `D` hidden, `H` heads, `K` head size, `W` block size, `N` blocks of a row.
"""

from typing import TypeGuard

import jax
import jax.numpy as jnp

from bert_jax.model.dropout import DropoutKey, is_kept
from bert_jax.model.inputs import Array
from bert_jax.model.matmul import transpose
from bert_jax.model.plain_attention import attend_with_mask


def is_local(radius: int | None, length: int) -> TypeGuard[int]:
    """Returns whether a window leaves out positions of a row, so that attention goes by blocks."""
    return radius is not None and radius < length - 1


def attend_locally(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sequence_ids: jax.Array,
    num_heads: int,
    radius: int,
    rate: float,
    key: DropoutKey | None,
    site: int,
    is_causal: Array | None = None,
) -> jax.Array:
    """softmax(q k' / sqrt(K)) v, [B, L, D], where a position sees positions of the same sequence at most `radius` away.

    Args:
      q, k, v: [B, L, D].
      sequence_ids: [B, L] int32; 0 is padding, whose own result is finite and otherwise undefined.
      radius: positions to either side, at least 1.
      rate: dropout rate of the weights; no dropout without a key.
      site: of the dropout within its layer.
      is_causal: [B] bool, rows in which a position sees none after it; None if there are none.
    """
    B, L, D = q.shape
    W, N = radius, num_blocks(radius, L)
    padding = [(0, 0), (0, N * W - L)]
    ids = jnp.pad(sequence_ids, padding)
    q, k, v = (jnp.pad(x, [*padding, (0, 0)]).reshape(B, N, W, num_heads, D // num_heads) for x in (q, k, v))
    k, v = _with_neighbours(k), _with_neighbours(v)
    q, k, v = (transpose(x, (0, 3, 1, 2, 4)) for x in (q, k, v))  # BHNWK, BHNCK with C = 3W
    sees = _within_radius(W) & _same_sequence(ids.reshape(B, N, W))  # BNWC
    if is_causal is not None:
        sees &= (_distance(W) <= 0) | ~jnp.asarray(is_causal)[:, None, None, None]
    keep = _kept(num_heads, L, W, rate, key.of_rows(site)) if key is not None and rate else None
    attended = attend_with_mask(q, k, v, sees[:, None], keep, rate)
    return transpose(attended, (0, 2, 3, 1, 4)).reshape(B, N * W, D)[:, :L]


def num_blocks(radius: int, length: int) -> int:
    """Returns N, the blocks of a row; the last one is padded."""
    return -(-length // radius)


def _with_neighbours(x: jax.Array) -> jax.Array:
    """[B, N, W, ...] -> [B, N, 3W, ...]: each block after the one before it and before the one after it."""
    padded = jnp.pad(x, [(0, 0), (1, 1)] + [(0, 0)] * (x.ndim - 2))
    return jnp.concatenate((padded[:, :-2], x, padded[:, 2:]), axis=2)


def _within_radius(W: int) -> jax.Array:
    """[W, 3W] bool: whether a position of a block and one of its neighbourhood are at most W apart."""
    return jnp.abs(_distance(W)) <= W


def _distance(W: int) -> jax.Array:
    """[W, 3W] int32: how far a position of the neighbourhood of a block is after one of the block."""
    return jnp.arange(3 * W)[None, :] - W - jnp.arange(W)[:, None]


def _kept(H: int, L: int, W: int, rate: float, row_keys: jax.Array) -> jax.Array:
    """Returns [B, H, N, W, 3W] bool: what dropout of the weights [B, H, L, L] of full attention keeps."""
    shape = (1, H, num_blocks(W, L), W, 3 * W)
    head, block, query, key = (jax.lax.broadcasted_iota(jnp.uint32, shape, dim) for dim in (1, 2, 3, 4))
    query = block * jnp.uint32(W) + query
    key = (block - jnp.uint32(1)) * jnp.uint32(W) + key
    element = (head * jnp.uint32(L) + query) * jnp.uint32(L) + key
    return is_kept(element, row_keys[:, None, None, None, None], rate)


def _same_sequence(ids: jax.Array) -> jax.Array:
    """[B, N, W] -> [B, N, W, 3W] bool: whether both positions belong to the same sequence."""
    neighbours = _with_neighbours(ids)
    return (ids[..., None] == neighbours[:, :, None, :]) & (neighbours[:, :, None, :] > 0)
