"""Attention on a TPU whose scores never leave the chip: one Pallas kernel forward, one backward.

`B` rows, `L` positions, `D` = heads x `K`; `W` lanes of a block of heads; `M` queries and `N` keys of a block.

After Dao 2023, "FlashAttention-2": the forward pass keeps a running maximum and sum of each query and writes
maximum + log(sum), from which the backward pass recomputes the weights. Blocks of queries and keys that share no
sequence, or lie further apart than the window, are skipped (`tpu_kernels`); in causal rows, so are those above the
diagonal.

There are two orders of work:

- every block of queries meets every block of keys; short rows are a single block of keys;
- in a band, for windows, a block meets its neighbours. It is read once and stays on the chip until the last neighbour
  has met it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bert_jax.model.tpu_kernels import LANES, Blocks, Call, backward_kernel, forward_kernel

_BLOCK_BYTES = 256 * 1024  # at most, of the keys of a block
_SCORES = 512 * 512  # of a block, float32; several such arrays are on the chip at once
BLOCK = LANES  # L is a multiple of it
_SUMS = 8192 * LANES  # float32 sums of the gradients of queries that are on the chip at once
_LARGEST_IN_BAND = 256  # positions of a block, if that divides the row
_FURTHEST = 4  # blocks to either side in a band
_Index = Callable[[jax.Array, jax.Array], jax.Array]  # (outer, inner index of the grid) -> block of the row


def suits(num_heads: int, head_size: int) -> bool:
    """Returns whether the kernels support this number of heads on one device."""
    width = num_heads * head_size
    block = _width(width, head_size)
    return width % block == 0 and block % head_size == 0


def _width(width: int, head_size: int) -> int:
    """Returns W for [B, L, `width`]: the lanes of a tile or of a larger head, or all lanes if there are fewer."""
    return min(max(head_size, LANES), width)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sequence_ids: jax.Array,
    row_keys: jax.Array,
    first_head: jax.Array,
    aheads: jax.Array | None = None,
    *,
    num_heads: int,
    rate: float,
    radius: int | None = None,
    row_length: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Computes softmax(q k' / sqrt(K)) v of each head with dropout; positions attend to equal ids.

    The values at padding (id 0) are finite and undefined.

    Args:
      q, k, v: [B, L, D], whose heads it `suits`; L a multiple of `BLOCK`.  sequence_ids: [B, L] int32.
      row_keys: [B] uint32 (`DropoutKey.of_rows`).  first_head: [1] uint32, the index of the first of
        these heads in the model.
      aheads: [B] int32, how far after itself a position of the row attends at most: 0 in a causal row; None: any.
      rate: of dropout, as `dropout` on the weights [B, H, L, L] of all heads; 0 for none.
      radius: positions attend to positions at most this far away; None for any distance.
      row_length: L of those weights, if padding follows it; by default, all of L.
    """
    head_size = q.shape[2] // num_heads
    width, row_length = _width(q.shape[2], head_size), row_length or q.shape[1]
    call = Call(num_heads, head_size, width, rate, radius, row_length, interpret, aheads is not None)
    scalars = (row_keys, first_head) if aheads is None else (row_keys, first_head, aheads)
    return _attend(call, q, k, v, sequence_ids, *scalars)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(call: Call, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, *scalars: jax.Array) -> jax.Array:
    return _forward(call, q, k, v, ids, *scalars)[0]


def _attend_forward(call: Call, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, *scalars: jax.Array):
    out, log_sums = _forward(call, q, k, v, ids, *scalars)
    return out, (q, k, v, ids, scalars, out, log_sums)


def _attend_backward(call: Call, kept: tuple, gradient: jax.Array) -> tuple:
    q, k, v, ids, scalars, out, log_sums = kept
    L, longest = q.shape[1], _SUMS // call.width
    if L <= longest or _band(L, call) is not None:
        gradients = _backward(call, (q, gradient, out), log_sums, (k, v), ids, scalars, 0, L, q.dtype)
        return *gradients, None, *(None for _ in scalars)
    parts = []
    for first in range(0, L, longest):
        end = min(first + longest, L)
        by_query = (q[:, first:end], gradient[:, first:end], out[:, first:end])
        log_sums_of_part = log_sums[..., first:end]
        parts.append(_backward(call, by_query, log_sums_of_part, (k, v), ids, scalars, first, end, 'float32'))
    q_parts, k_parts, v_parts = zip(*parts, strict=True)
    gradients = jnp.concatenate(q_parts, axis=1), sum(k_parts), sum(v_parts)
    return *(x.astype(q.dtype) for x in gradients), None, *(None for _ in scalars)


_attend.defvjp(_attend_forward, _attend_backward)


# --- How a row is divided. ---


def _sizes(length: int) -> list[int]:
    return [size for size in range(LANES, length + 1, LANES) if length % size == 0]


def _band(length: int, call: Call) -> tuple[int, int] | None:
    """Returns (positions of a block, blocks to either side that it meets), or None if blocks should meet all others."""
    if call.radius is None:
        return None
    wanted = min(call.radius, _LARGEST_IN_BAND)
    size = next((size for size in _sizes(length) if size >= wanted), length)
    reach = -(-call.radius // size)
    is_narrow = reach <= _FURTHEST and 2 * reach + 1 < length // size and size * size <= _SCORES
    return (size, reach) if is_narrow else None


def _blocks(call: Call, length: int, first_query: int, end_query: int, dtype: jnp.dtype) -> Blocks:
    band = _band(length, call)
    if band is not None:
        return Blocks(length, band[0], band[0], 0, length, band[1])
    longest = max(LANES, _BLOCK_BYTES // (call.width * dtype.itemsize))
    keys = max(size for size in _sizes(length) if size <= longest)
    num_queries = end_query - first_query
    queries = max(size for size in _sizes(num_queries) if size <= longest and size * keys <= _SCORES or size == LANES)
    return Blocks(length, queries, keys, first_query, num_queries, None)


# --- The kernels, over a grid of (rows, blocks of heads, blocks, blocks that they meet). ---


def _forward(
    call: Call, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, *scalars: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the attended values, [B, L, D], and log(sum of exp(scores)), [B, D / W, heads of W, L] float32."""
    B, L, D = q.shape
    W, heads, blocks = call.width, call.heads_of_block, _blocks(call, L, 0, L, q.dtype)
    M, N, reach, last = blocks.queries, blocks.keys, blocks.reach, blocks.num_k - 1

    def query(o: jax.Array, s: jax.Array) -> jax.Array:
        return o if reach is None else jnp.maximum(o - reach, 0)

    def key(o: jax.Array, s: jax.Array) -> jax.Array:
        return s if reach is None else jnp.minimum(o, last)

    reads = blocks.num_q if reach is None and blocks.num_k > 1 else 1
    out, log_sums = pl.pallas_call(
        functools.partial(forward_kernel, call=call, blocks=blocks),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((B, D // W, heads, L), jnp.float32),
        ],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(B, D // W, blocks.num_q + (reach or 0), blocks.num_k if reach is None else 1),
            in_specs=[_ids(M, query), _ids(N, key), _arrays(M, W, query), _arrays(N, W, key), _arrays(N, W, key)],
            out_specs=[_arrays(M, W, query), _log_sums(heads, M, query)],
            scratch_shapes=[
                pltpu.VMEM((W, M), jnp.float32),
                pltpu.VMEM((heads, M), jnp.float32),
                pltpu.VMEM((heads, M), jnp.float32),
                *_neighbours(blocks, ((N, LANES), jnp.int32), ((N, W), k.dtype), ((N, W), v.dtype)),
            ],
        ),
        compiler_params=_PARAMS,
        cost_estimate=_cost(call, blocks, q, num_matmuls=2, num_arrays=2 + 2 * reads),
        interpret=call.interpret,
        name='attention_forward',
    )(*scalars[:2], _bounds(ids, ids, blocks, *scalars[2:]), ids[:, None], ids[:, None], q, k, v)
    return out, log_sums


def _backward(
    call: Call,
    by_query: tuple[jax.Array, jax.Array, jax.Array],
    log_sums: jax.Array,
    by_key: tuple[jax.Array, jax.Array],
    ids: jax.Array,
    scalars: tuple[jax.Array, ...],
    first_query: int,
    end_query: int,
    dtype: jnp.dtype | str,
) -> list[jax.Array]:
    """Returns the gradients of the queries from `first_query` to `end_query`, and theirs of all keys and values.

    Args:
      by_query: these queries, the gradients of what they attended and what they attended, [B, `num_queries`, D].
      dtype: of the gradients.
    """
    q, k = by_query[0], by_key[0]
    B, L, D = k.shape
    W, heads, blocks = call.width, call.heads_of_block, _blocks(call, L, first_query, end_query, q.dtype)
    M, N, reach, num_q = blocks.queries, blocks.keys, blocks.reach, blocks.num_q
    query, once, key, done = _backward_indices(blocks)
    slots, reads = (num_q, blocks.num_k if num_q > 1 else 1) if reach is None else (blocks.num_neighbours, 1)
    q_ids = ids[:, first_query:end_query]
    own, each = _arrays(M, W, query), _arrays(N, W, key)
    return pl.pallas_call(
        functools.partial(backward_kernel, call=call, blocks=blocks),
        out_shape=[jax.ShapeDtypeStruct(x.shape, dtype) for x in (q, k, k)],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(B, D // W, blocks.num_k + 2 * (reach or 0), num_q if reach is None else 1),
            in_specs=[
                _ids(M, query),
                _ids(N, key),
                own,
                own,
                _arrays(M, W, once),
                _log_sums(heads, M, query),
                each,
                each,
            ],  # fmt: skip
            out_specs=[_arrays(M, W, done), each, each],
            scratch_shapes=[
                pltpu.VMEM((slots, W, M), jnp.float32),
                pltpu.VMEM((slots, heads, M), jnp.float32),
                pltpu.VMEM((N, W), jnp.float32),
                pltpu.VMEM((N, W), jnp.float32),
                pltpu.VMEM((N, LANES), jnp.int32),
                *_neighbours(
                    blocks, ((1, M), jnp.int32), ((M, W), q.dtype), ((M, W), q.dtype), ((heads, M), jnp.float32)
                ),
            ],
        ),
        compiler_params=_PARAMS,
        cost_estimate=_cost(call, blocks, k, num_matmuls=5, num_arrays=6 + 2 * reads),
        interpret=call.interpret,
        name='attention_backward',
    )(
        *scalars[:2],
        _bounds(q_ids, ids, blocks, *scalars[2:]),
        q_ids[:, None],
        ids[:, None],
        *by_query,
        log_sums,
        *by_key,
    )


def _backward_indices(blocks: Blocks) -> tuple[_Index, _Index, _Index, _Index]:
    """Returns the blocks that the grid reads and writes.

    Those of queries; of what they attended, which only their first step needs; of keys; and of the gradients of queries
    that a step completes.
    """
    reach, num_q, last = blocks.reach, blocks.num_q, blocks.num_k - 1
    if reach is None:
        return (
            lambda o, s: s,
            lambda o, s: jnp.where(o == 0, s, num_q - 1),
            lambda o, s: o,
            lambda o, s: jnp.where(o == last, s, 0),
        )
    return (
        lambda o, s: jnp.minimum(o, num_q - 1),
        lambda o, s: jnp.minimum(o, num_q - 1),
        lambda o, s: jnp.clip(o - reach, 0, last),
        lambda o, s: jnp.maximum(o - 2 * reach, 0),
    )


_PARAMS = pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel', 'arbitrary', 'arbitrary'))


def _arrays(size: int, width: int, index: _Index) -> pl.BlockSpec:
    """Of [B, L, D]."""
    return pl.BlockSpec((1, size, width), lambda b, h, o, s, *_: (b, index(o, s), h))


def _ids(size: int, index: _Index) -> pl.BlockSpec:
    """Of [B, 1, L]."""
    return pl.BlockSpec((1, 1, size), lambda b, h, o, s, *_: (b, 0, index(o, s)))


def _log_sums(heads: int, size: int, index: _Index) -> pl.BlockSpec:
    """Of [B, D / W, heads of W, L]."""
    return pl.BlockSpec((1, 1, heads, size), lambda b, h, o, s, *_: (b, h, 0, index(o, s)))


def _neighbours(blocks: Blocks, *arrays: tuple[tuple[int, ...], jnp.dtype]) -> list[Any]:
    """Memory for the blocks that stay on the chip in a band."""
    if blocks.reach is None:
        return []
    return [pltpu.VMEM((blocks.num_neighbours, *shape), dtype) for shape, dtype in arrays]


def _bounds(q_ids: jax.Array, k_ids: jax.Array, blocks: Blocks, aheads: jax.Array | None = None) -> jax.Array:
    """Returns [B * 2 * (blocks of queries and of keys)] int32: the lowest and highest id of each block.

    Padding does not count; a block of padding has a lowest id above its highest. The aheads of the rows, if there are
    any, follow.
    """
    each = (q_ids.reshape(*q_ids.shape[:1], blocks.num_q, -1), k_ids.reshape(*k_ids.shape[:1], blocks.num_k, -1))
    low = [jnp.where(ids > 0, ids, jnp.iinfo(jnp.int32).max).min(axis=-1) for ids in each]
    high = [ids.max(axis=-1) for ids in each]
    bounds = jnp.stack([jnp.concatenate(low, axis=1), jnp.concatenate(high, axis=1)], axis=1).reshape(-1)
    return bounds if aheads is None else jnp.concatenate([bounds, aheads])


def _cost(call: Call, blocks: Blocks, array: jax.Array, num_matmuls: int, num_arrays: int) -> pl.CostEstimate:
    """Returns the cost of a kernel for rows of one sequence without padding."""
    near = sum(blocks.are_near(i, j, call.radius) for i in range(blocks.num_q) for j in range(blocks.num_k))
    num_scores = array.shape[0] * int(near) * blocks.queries * blocks.keys
    return pl.CostEstimate(
        flops=2 * num_matmuls * num_scores * array.shape[2],
        transcendentals=num_scores * call.num_heads,
        bytes_accessed=num_arrays * array.size * array.dtype.itemsize,
    )
