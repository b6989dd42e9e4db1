"""Attention on a TPU whose scores never leave the chip: one Pallas kernel forward, one backward.

`B` rows, `L` positions, `D` = heads x `K`; `W` lanes of a block, whole heads of them; `Q` queries of a block.

After Dao et al. 2022, "FlashAttention". Rows of BERT are short, so all keys of a row lie on the chip at once: softmax
needs no running maximum, and the backward pass recomputes the weights from queries and keys alone.
Arrays keep the layout [B, L, D] of the dense layers around: heads that share a tile's 128 lanes are told apart by
zeros in the others', which costs a matrix unit of 128 x 128 no more than a head of 64 alone.
"""

import dataclasses
import functools
import types
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bert_jax.model.dropout import is_kept

_LANES = 128
_SCORES = 512 * 512  # per block, float32; several such arrays and all keys of a row fit on the chip
LONGEST = 4096  # L; then keys, values and their gradients fill it
_NO = np.float32(-1e30)  # the score of a key of another sequence


@dataclasses.dataclass(frozen=True)
class _Call:
    """The static arguments of a kernel. interpret: run it without a TPU."""

    num_heads: int
    rate: float
    interpret: bool


def suits(length: int, num_heads: int, head_size: int) -> bool:
    """Returns whether a kernel supports rows of `length` with this number of heads on one device."""
    width = num_heads * head_size
    block = _width(width, head_size)
    return length % _LANES == 0 and length <= LONGEST and width % block == 0 and block % head_size == 0


def _width(width: int, head_size: int) -> int:
    """Returns W for [B, L, `width`]: the lanes of a tile or of a larger head, or all lanes if there are fewer."""
    return min(max(head_size, _LANES), width)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sequence_ids: jax.Array,
    row_keys: jax.Array,
    first_head: jax.Array,
    *,
    num_heads: int,
    rate: float,
    interpret: bool = False,
) -> jax.Array:
    """Computes softmax(q k' / sqrt(K)) v of each head with dropout; positions attend to equal ids (padding, 0, too).

    Args:
      q, k, v: [B, L, D].  sequence_ids: [B, L] int32.
      row_keys: [B] uint32 (`DropoutKey.of_rows`).  first_head: [1] uint32, the index of the first of
        these heads in the model.
      rate: of dropout, as `dropout` on the weights [B, H, L, L] of all heads; 0 for none.
    """
    return _attend(_Call(num_heads, rate, interpret), q, k, v, sequence_ids, row_keys, first_head)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(call: _Call, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, *scalars: jax.Array) -> jax.Array:
    return _pallas(call, _forward_kernel, (q,), (k, v), ids, scalars, 1, 0, num_matmuls=2)[0]


def _attend_forward(call: _Call, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, *scalars: jax.Array):
    return _attend(call, q, k, v, ids, *scalars), (q, k, v, ids, *scalars)


def _attend_backward(call: _Call, kept: tuple, gradient: jax.Array) -> tuple:
    q, k, v, ids, *scalars = kept
    gradients = _pallas(call, _backward_kernel, (q, gradient), (k, v), ids, scalars, 1, 2, num_matmuls=5)
    return *gradients, None, *(None for _ in scalars)


_attend.defvjp(_attend_forward, _attend_backward)


def _pallas(
    call: _Call,
    kernel: types.FunctionType,
    by_query: tuple[jax.Array, ...],
    by_key: tuple[jax.Array, ...],
    ids: jax.Array,
    scalars: Sequence[jax.Array],
    out_by_query: int,
    out_by_key: int,
    num_matmuls: int,
) -> list[jax.Array]:
    """Runs a kernel over (rows, blocks of heads, blocks of queries); all arrays [B, L, D]."""
    B, L, D = by_query[0].shape
    size = D // call.num_heads
    W = _width(D, size)
    Q = max(rows for rows in range(16, L + 1, 16) if L % rows == 0 and (rows * L <= _SCORES or rows == 16))
    some = pl.BlockSpec((1, Q, W), lambda b, h, i, *_: (b, i, h))
    every = pl.BlockSpec((1, L, W), lambda b, h, i, *_: (b, 0, h))
    own_ids = pl.BlockSpec((1, Q, 1), lambda b, h, i, *_: (b, i, 0))
    all_ids = pl.BlockSpec((1, 1, L), lambda b, h, i, *_: (b, 0, 0))
    array, num_arrays = by_query[0], len(by_query) + len(by_key) + out_by_query + out_by_key
    of_call = functools.partial(kernel, head_size=size, num_heads_of_block=W // size, rate=call.rate)
    return pl.pallas_call(
        of_call,
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype)] * (out_by_query + out_by_key),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(B, D // W, L // Q),
            in_specs=[own_ids, all_ids, *[some] * len(by_query), *[every] * len(by_key)],
            out_specs=[some] * out_by_query + [every] * out_by_key,
            scratch_shapes=[pltpu.VMEM((L, W), jnp.float32)] * out_by_key,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel', 'arbitrary')),
        cost_estimate=pl.CostEstimate(
            flops=2 * num_matmuls * B * L * L * D,
            transcendentals=B * call.num_heads * L * L,
            bytes_accessed=num_arrays * array.size * array.dtype.itemsize,
        ),
        interpret=call.interpret,
        name=kernel.__name__.strip('_'),
    )(*scalars, ids[:, :, None], ids[:, None, :], *by_query, *by_key)


# --- The kernels: one block of queries against all keys of its row. ---


@dataclasses.dataclass(frozen=True)
class _Block:
    """The values that all heads of a block share. same: bool [Q, L]; element, row_key: for `is_kept`, of head 0;
    None without dropout."""

    same: jax.Array
    head_size: int
    rate: float
    row_key: jax.Array | None
    first_element: jax.Array | None

    def weights(self, q: jax.Array, k: jax.Array) -> jax.Array:
        """[Q, L] float32, before dropout."""
        scores = _matmul(q, k, (1, 1)) * np.float32(self.head_size**-0.5)
        scores = jnp.where(self.same, scores, _NO)
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        return weights * (1.0 / weights.sum(axis=-1, keepdims=True))

    def dropped(self, x: jax.Array, head: int) -> jax.Array:
        """Dropout of [Q, L] values of a head: of weights, or of the gradient that comes to them."""
        if self.row_key is None or self.first_element is None:
            return x
        kept = is_kept(self.first_element + jnp.uint32(head * x.shape[1] * x.shape[1]), self.row_key, self.rate)
        return jnp.where(kept, x * np.float32(1.0 / (1.0 - self.rate)), 0.0)


def _block(keys: Any, first: Any, q_ids: Any, k_ids: Any, heads: int, size: int, rate: float) -> _Block:
    """Args: references to arrays on the chip, as Pallas passes them."""
    Q, L = q_ids.shape[1], k_ids.shape[2]
    element, row_key = None, None
    if rate:
        head = first[0] + (pl.program_id(1) * heads).astype(jnp.uint32)
        query = jax.lax.broadcasted_iota(jnp.int32, (Q, L), 0) + pl.program_id(2) * Q
        key = jax.lax.broadcasted_iota(jnp.int32, (Q, L), 1)
        element = (query * L + key).astype(jnp.uint32) + head * jnp.uint32(L * L)
        row_key = keys[pl.program_id(0)]
    return _Block(q_ids[0] == k_ids[0], size, rate, row_key, element)


def _heads(x: jax.Array, head_size: int) -> Iterator[tuple[int, jax.Array]]:
    """Yields (index, [1, W] whether a lane belongs to the head) for each head in a block."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, x.shape[-1]), 1)
    for head in range(x.shape[-1] // head_size):
        yield head, (lane >= head * head_size) & (lane < (head + 1) * head_size)


def _only(lanes: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(lanes, x.astype(jnp.float32), 0.0).astype(x.dtype)


def _matmul(x: jax.Array, y: jax.Array, dims: tuple[int, int]) -> jax.Array:
    """Contracts one dim of each factor, in float32."""
    return jax.lax.dot_general(x, y, (((dims[0],), (dims[1],)), ((), ())), preferred_element_type=jnp.float32)


def _forward_kernel(
    row_keys, first, q_ids, k_ids, q_ref, k_ref, v_ref, out_ref, *, head_size, num_heads_of_block, rate
):
    block = _block(row_keys, first, q_ids, k_ids, num_heads_of_block, head_size, rate)
    q, k, v = q_ref[0], k_ref[0], v_ref[0]  # QW, LW, LW
    out = jnp.zeros(q.shape, jnp.float32)
    for head, lanes in _heads(q, head_size):
        weights = block.dropped(block.weights(_only(lanes, q), k), head)
        out = jnp.where(lanes, _matmul(weights.astype(v.dtype), v, (1, 0)), out)
    out_ref[0] = out.astype(out_ref.dtype)


def _backward_kernel(
    row_keys, first, q_ids, k_ids, q_ref, out_grad_ref, k_ref, v_ref, q_grad_ref, k_grad_ref, v_grad_ref,
    k_grad_sum, v_grad_sum, *, head_size, num_heads_of_block, rate,
):  # fmt: skip
    @pl.when(pl.program_id(2) == 0)
    def _():
        k_grad_sum[...] = jnp.zeros_like(k_grad_sum)
        v_grad_sum[...] = jnp.zeros_like(v_grad_sum)

    block = _block(row_keys, first, q_ids, k_ids, num_heads_of_block, head_size, rate)
    q, k, v, out_grad = q_ref[0], k_ref[0], v_ref[0], out_grad_ref[0]
    q_grad = jnp.zeros(q.shape, jnp.float32)
    for head, lanes in _heads(q, head_size):
        own_q, own_grad = _only(lanes, q), _only(lanes, out_grad)
        weights = block.weights(own_q, k)
        v_grad_sum[...] += _matmul(block.dropped(weights, head).astype(v.dtype), own_grad, (0, 0))
        weights_grad = block.dropped(_matmul(own_grad, v, (1, 1)), head)
        scores_grad = weights * (weights_grad - (weights * weights_grad).sum(axis=-1, keepdims=True))
        scores_grad = (scores_grad * np.float32(head_size**-0.5)).astype(q.dtype)
        q_grad = jnp.where(lanes, _matmul(scores_grad, k, (1, 0)), q_grad)
        k_grad_sum[...] += _matmul(scores_grad, own_q, (0, 0))
    q_grad_ref[0] = q_grad.astype(q_grad_ref.dtype)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        k_grad_ref[0] = k_grad_sum[...].astype(k_grad_ref.dtype)
        v_grad_ref[0] = v_grad_sum[...].astype(v_grad_ref.dtype)
