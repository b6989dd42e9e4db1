"""Attention on a GPU whose scores never leave the chip: one Pallas kernel (Triton) forward, one backward.

`B` rows, `L` positions, `D` = `H` heads x `K`; `P` = K padded to a power of two. A program has a block of `M` positions
and loops over blocks of `N` positions of the other side: keys for queries, queries for keys.

After Dao 2023, "FlashAttention-2". The forward pass keeps the logarithm of softmax's sum, [B, H, L]; the backward pass
recomputes weights and dropout masks from it, once for the gradients of keys and values and once for those of queries.
It sums in registers, without atomic additions, so that gradients do not depend on the order in which programs run.
Arrays keep the layout [B, L, D] of the dense layers around. Only blocks that hold positions of the same sequence within
the window are visited, and no block of padding; in causal rows, none above the diagonal.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from bert_jax.model.dropout import is_kept_at, spread

BLOCK = 64  # L is a multiple of it
LARGEST_HEAD = 128  # K; larger accumulators do not fit into the registers
_NO = -1e30  # the score of a key that a query does not attend to
_LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """How a kernel divides its work.

    Attributes:
      own: M, at most; a row that is no multiple of it has blocks of `BLOCK`.
      step: N.
    """

    own: int
    step: int
    num_warps: int

    def own_of(self, length: int) -> int:
        """Returns M for rows of `length`."""
        return self.own if length % self.own == 0 else BLOCK


@dataclasses.dataclass(frozen=True)
class _Call:
    """The static arguments of both kernels.

    Attributes:
      row_length: as of `attend`.
      interpret: run them without a GPU.
      has_aheads: whether `aheads` is the last of the scalars.
    """

    num_heads: int
    rate: float
    radius: int | None
    row_length: int
    interpret: bool
    has_aheads: bool


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
      q, k, v: [B, L, D]; L a multiple of `BLOCK`, K at most `LARGEST_HEAD`.  sequence_ids: [B, L] int32.
      row_keys: [B] uint32 (`DropoutKey.of_rows`).  first_head: [1] uint32, the index of the first of
        these heads in the model.
      aheads: [B] int32, how far after itself a position of the row attends at most: 0 in a causal row; None: any.
      rate: of dropout, as `dropout` on the weights [B, H, L, L] of all heads; 0 for none.
      radius: positions attend to positions at most this far away; None for any distance.
      row_length: L of those weights, if padding follows it; by default, all of L.
    """
    call = _Call(num_heads, rate, radius, row_length or q.shape[1], interpret, aheads is not None)
    scalars = (row_keys, first_head) if aheads is None else (row_keys, first_head, aheads)
    heads = (*q.shape[:2], num_heads, q.shape[2] // num_heads)
    q, k, v = (x.reshape(heads) for x in (q, k, v))
    return _attend(call, q, k, v, sequence_ids, *scalars).reshape(*heads[:2], -1)


def num_scores(length: int, radius: int | None, blocks: _Blocks) -> int:
    """Returns how many scores a kernel computes for a head of a row that is one sequence."""
    own, step = blocks.own_of(length), blocks.step
    return int(_near(length, own, step, radius).sum()) * own * step


# Registers limit the blocks: none of these spills with dropout (benchmarks/LOG.md), and two programs fit on a
# multiprocessor, so that one multiplies while the other computes weights; of the forward pass of large heads, one.
def _forward_blocks(head_size: int, radius: int | None) -> _Blocks:
    if radius is not None:  # fewer scores outside the window
        return _Blocks(64, 64, num_warps=4)
    return _Blocks(128, 64, num_warps=4 if head_size <= 64 else 8)


def _backward_blocks(head_size: int) -> _Blocks:
    return _Blocks(64, 64 if head_size <= 64 else 32, num_warps=4)


# All arrays of a head are [B, L, H, K] from here on.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(call: _Call, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, *scalars: jax.Array) -> jax.Array:
    return _attend_forward(call, q, k, v, ids, *scalars)[0]


def _attend_forward(call: _Call, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, *scalars: jax.Array):
    B, L, H, K = q.shape
    log_sums = jax.ShapeDtypeStruct((B, H, L), jnp.float32)
    blocks = _forward_blocks(K, call.radius)
    out, log_sums = _pallas(
        call, _forward_kernel, 'attention_forward', blocks, scalars, ids, own=(q,), whole=(k, v), outs=(q, log_sums)
    )
    return out, (q, k, v, ids, scalars, out, log_sums)


def _attend_backward(call: _Call, kept: tuple, gradient: jax.Array) -> tuple:
    q, k, v, ids, scalars, out, log_sums = kept
    deltas = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2)  # BHL
    whole = (q, k, v, gradient, log_sums, deltas)
    blocks = _backward_blocks(q.shape[-1])
    gradients = _pallas(
        call, _backward_kernel, 'attention_backward', blocks, scalars, ids, own=(), whole=whole, outs=(q, k, v)
    )
    return *gradients, None, *(None for _ in scalars)


_attend.defvjp(_attend_forward, _attend_backward)


def _pallas(
    call: _Call,
    kernel: Callable[..., None],
    name: str,
    blocks: _Blocks,
    scalars: Sequence[jax.Array],
    ids: jax.Array,
    *,
    own: Sequence[jax.Array],
    whole: Sequence[jax.Array],
    outs: Sequence[jax.Array | jax.ShapeDtypeStruct],
) -> list[jax.Array]:
    """Runs a kernel over (blocks of M positions, heads, rows).

    Args:
      own, outs: [B, L, H, K] or [B, H, L], of which a program sees its block.  whole: of which it sees the row.
    """
    (B, L), H = ids.shape, call.num_heads
    M, N = blocks.own_of(L), blocks.step
    head_size = outs[0].shape[-1]
    P = max(16, pl.next_power_of_2(head_size))

    def spec(x: jax.Array | jax.ShapeDtypeStruct, length: int) -> pl.BlockSpec:
        block = 0 if length == L else 1
        if len(x.shape) == 3:
            return pl.BlockSpec((None, None, length), lambda i, h, b: (b, h, i * block))
        return pl.BlockSpec((None, length, None, P), lambda i, h, b: (b, i * block, h, 0))

    firsts, ends = _visible(ids, M, N, call.radius)
    of_block = pl.BlockSpec((None, 1), lambda i, h, b: (b, i))
    of_row = pl.BlockSpec((1,), lambda i, h, b: (b,))
    in_specs = [
        of_row,
        pl.BlockSpec((1,), lambda i, h, b: (0,)),
        *([of_row] if call.has_aheads else []),
        pl.BlockSpec((None, L), lambda i, h, b: (b, 0)),
        of_block,
        of_block,
    ]
    return pl.pallas_call(
        functools.partial(kernel, size=_Size(head_size, M, N), call=call),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outs],
        grid=(L // M, H, B),
        in_specs=[*in_specs, *(spec(x, M) for x in own), *(spec(x, L) for x in whole)],
        out_specs=[spec(x, M) for x in outs],
        compiler_params=plgpu.CompilerParams(num_warps=blocks.num_warps, num_stages=2),
        interpret=call.interpret,
        name=f'{name}_of_{num_scores(L, call.radius, blocks)}_scores',  # `plan` reads it
    )(*scalars, ids, firsts, ends, *own, *whole)


def _near(length: int, own: int, step: int, radius: int | None) -> np.ndarray:
    """Returns bool [L / M, L / N]: whether some positions of two blocks are at most `radius` apart."""
    own_first, step_first = np.arange(0, length, own)[:, None], np.arange(0, length, step)[None]
    distance = np.maximum(step_first - (own_first + own - 1), own_first - (step_first + step - 1))
    return distance <= (length if radius is None else radius)


def _visible(ids: jax.Array, own: int, step: int, radius: int | None) -> tuple[jax.Array, jax.Array]:
    """Returns for each block of M the first block of N to visit and the one after the last, [B, L / M] int32.

    Blocks meet if the ranges of their ids overlap. A block of padding meets none.
    """
    B, L = ids.shape
    lowest, highest = jnp.where(ids > 0, ids, jnp.iinfo(jnp.int32).max), ids
    own_low, step_low = (lowest.reshape(B, -1, size).min(axis=-1) for size in (own, step))
    own_high, step_high = (highest.reshape(B, -1, size).max(axis=-1) for size in (own, step))
    meet = (own_low[:, :, None] <= step_high[:, None]) & (step_low[:, None] <= own_high[:, :, None])
    meet &= _near(L, own, step, radius)
    first = jnp.argmax(meet, axis=-1).astype(jnp.int32)
    after_last = L // step - jnp.argmax(meet[..., ::-1], axis=-1).astype(jnp.int32)
    return first, jnp.where(meet.any(axis=-1), after_last, 0)


# --- The kernels. References are to arrays in memory, as Pallas passes them. ---


@dataclasses.dataclass(frozen=True)
class _Size:
    """The sizes of a program's arrays: of a head, of its block (M) and of the blocks it visits (N)."""

    head: int
    own: int
    step: int

    def load(self, ref: Any, at: Any) -> jax.Array:
        """Returns [n, P], positions of a head with zeros after its K columns."""
        width = ref.shape[-1]
        if width == self.head:
            return plgpu.load(ref.at[at, :])
        return plgpu.load(ref.at[at, :], mask=self._is_in_head(width), other=0.0)

    def store(self, ref: Any, x: jax.Array) -> None:
        """Writes [M, P] to [M, K]."""
        width = ref.shape[-1]
        plgpu.store(ref, x.astype(ref.dtype), mask=None if width == self.head else self._is_in_head(width))

    def _is_in_head(self, width: int) -> jax.Array:
        return (jnp.arange(width) < self.head)[None, :]


@dataclasses.dataclass(frozen=True)
class _Scores:
    """The pairs of a block of M positions with a block of N.

    Attributes:
      ids: those of the row.
      own: [M], positions in the row.
      row_key, head: for dropout; `head` is an index among the heads of the model.
      ahead: of the row (`attend`); None: any distance.
      own_is_query: whether the M positions are queries and the N positions keys, or the reverse.
    """

    size: _Size
    call: _Call
    ids: Any
    own: jax.Array
    row_key: jax.Array
    head: jax.Array
    ahead: jax.Array | None
    own_is_query: bool

    def attends(self, own_ids: jax.Array, visited: jax.Array) -> jax.Array:
        """Returns bool [M, N]: same sequence and within the window. visited: index of the block of N."""
        attends = own_ids[:, None] == self.ids[pl.ds(visited * self.size.step, self.size.step)][None, :]
        if self.call.radius is not None:
            attends &= jnp.abs(self.own[:, None] - self._positions(visited)[None, :]) <= self.call.radius
        if self.ahead is not None:
            after_own = self._positions(visited)[None, :] - self.own[:, None]
            attends &= (after_own if self.own_is_query else -after_own) <= self.ahead
        return attends

    def visited(self, first: jax.Array, end: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns which blocks of N, of those from `first` to `end`, some key of a pair is not too far ahead in."""
        if self.ahead is None:
            return first, end
        start = pl.program_id(0) * self.size.own
        if self.own_is_query:
            return first, jnp.minimum(end, (start + self.size.own - 1 + self.ahead) // self.size.step + 1)
        return jnp.maximum(first, jnp.maximum(start - self.ahead, 0) // self.size.step), end

    def keep(self, visited: jax.Array) -> jax.Array | None:
        """Returns bool [M, N], the mask of dropout; None without dropout."""
        if not self.call.rate:
            return None
        own, other = self.own.astype(jnp.uint32), self._positions(visited).astype(jnp.uint32)
        length = jnp.uint32(self.call.row_length)
        if self.own_is_query:
            own = (self.head * length + own) * length
        else:
            other = (self.head * length + other) * length
        return is_kept_at(spread(own)[:, None] + spread(other)[None, :], self.row_key, self.call.rate)

    def _positions(self, visited: jax.Array) -> jax.Array:
        """Returns [N]."""
        return visited * self.size.step + jnp.arange(self.size.step)


def _own_positions(size: _Size) -> jax.Array:
    """Returns [M]."""
    return pl.program_id(0) * size.own + jnp.arange(size.own)


def _matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


def _forward_kernel(*refs, size, call):
    row_keys, first_head, *aheads, ids, first, end, q_ref, k_ref, v_ref, out_ref, log_sum_ref = refs
    head = first_head[0] + pl.program_id(1).astype(jnp.uint32)
    ahead = aheads[0][0] if aheads else None
    scores_of = _Scores(size, call, ids, _own_positions(size), row_keys[0], head, ahead, own_is_query=True)
    q = size.load(q_ref, slice(None))  # MP
    own_ids = ids[pl.ds(pl.program_id(0) * size.own, size.own)]
    scale = size.head**-0.5 * _LOG2_E

    def visit(block: jax.Array, carry: tuple) -> tuple:
        out, highest, total = carry
        at = pl.ds(block * size.step, size.step)
        scores = _matmul(q, size.load(k_ref, at).T) * scale
        scores = jnp.where(scores_of.attends(own_ids, block), scores, _NO)
        new_highest = jnp.maximum(highest, scores.max(axis=-1))
        correction = jnp.exp2(highest - new_highest)
        weights = jnp.exp2(scores - new_highest[:, None])
        total = total * correction + weights.sum(axis=-1)
        keep = scores_of.keep(block)
        used = weights if keep is None else jnp.where(keep, weights, 0.0)
        v = size.load(v_ref, at)
        return out * correction[:, None] + _matmul(used.astype(v.dtype), v), new_highest, total

    start = (jnp.zeros(q.shape, jnp.float32), jnp.full(size.own, _NO, jnp.float32), jnp.zeros(size.own, jnp.float32))
    out, highest, total = jax.lax.fori_loop(*scores_of.visited(first[0], end[0]), visit, start)
    total = jnp.where(total > 0, total, 1.0)  # 0 in a block of padding
    size.store(out_ref, out * (1.0 / (total * (1.0 - call.rate)))[:, None])
    log_sum_ref[...] = highest + jnp.log2(total)


def _backward_kernel(*refs, size, call):
    row_keys, first_head, *aheads, ids, first, end, q_ref, k_ref, v_ref, gradient_ref, log_sums, deltas = refs[:-3]
    q_gradient_ref, k_gradient_ref, v_gradient_ref = refs[-3:]
    head = first_head[0] + pl.program_id(1).astype(jnp.uint32)
    own = pl.ds(pl.program_id(0) * size.own, size.own)
    own_ids = ids[own]
    scale, kept_scale = size.head**-0.5, 1.0 / (1.0 - call.rate)

    def dropped(x: jax.Array, keep: jax.Array | None) -> jax.Array:
        return x if keep is None else jnp.where(keep, x * kept_scale, 0.0)

    def weights_of(scores: jax.Array, attends: jax.Array, log_sums: jax.Array) -> jax.Array:
        return jnp.where(attends, jnp.exp2(scores * (scale * _LOG2_E) - log_sums), 0.0)

    ahead = aheads[0][0] if aheads else None
    of_keys = _Scores(size, call, ids, _own_positions(size), row_keys[0], head, ahead, own_is_query=False)
    k, v = size.load(k_ref, own), size.load(v_ref, own)  # MP

    def visit_queries(block: jax.Array, carry: tuple) -> tuple:
        k_gradient, v_gradient = carry
        at = pl.ds(block * size.step, size.step)
        q, gradient = size.load(q_ref, at), size.load(gradient_ref, at)  # NP
        weights = weights_of(_matmul(k, q.T), of_keys.attends(own_ids, block), log_sums[at][None, :])
        keep = of_keys.keep(block)
        v_gradient += _matmul(dropped(weights, keep).astype(q.dtype), gradient)
        of_weights = dropped(_matmul(v, gradient.T), keep)
        of_scores = weights * (of_weights - deltas[at][None, :])
        return k_gradient + _matmul(of_scores.astype(q.dtype), q), v_gradient

    zeros = jnp.zeros(k.shape, jnp.float32)
    k_gradient, v_gradient = jax.lax.fori_loop(*of_keys.visited(first[0], end[0]), visit_queries, (zeros, zeros))
    size.store(k_gradient_ref, k_gradient * scale)
    size.store(v_gradient_ref, v_gradient)

    of_queries = dataclasses.replace(of_keys, own_is_query=True)
    q, gradient = size.load(q_ref, own), size.load(gradient_ref, own)  # MP
    own_log_sums, own_deltas = log_sums[own][:, None], deltas[own][:, None]

    def visit_keys(block: jax.Array, q_gradient: jax.Array) -> jax.Array:
        at = pl.ds(block * size.step, size.step)
        k, v = size.load(k_ref, at), size.load(v_ref, at)  # NP
        weights = weights_of(_matmul(q, k.T), of_queries.attends(own_ids, block), own_log_sums)
        of_weights = dropped(_matmul(gradient, v.T), of_queries.keep(block))
        return q_gradient + _matmul((weights * (of_weights - own_deltas)).astype(k.dtype), k)

    q_gradient = jax.lax.fori_loop(*of_queries.visited(first[0], end[0]), visit_keys, zeros)
    size.store(q_gradient_ref, q_gradient * scale)
