"""The bodies of the kernels of `tpu_attention`: blocks of queries against blocks of keys.

`W` lanes of a block of heads; `M` queries and `N` keys of a block; `H` heads of a block.

Scores are transposed, [N, M]: what belongs to a query is one row of lanes. So no array is padded to 128 lanes, and
maxima and sums over keys need no shuffling of lanes. Heads that share a tile's 128 lanes are told apart by zeros in
the others', which costs a matrix unit of 128 x 128 no more than a head of 64 alone.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from bert_jax.model.dropout import is_kept

LANES = 128
_NO = np.float32(-1e30)  # the score of a key that a query does not see


@dataclasses.dataclass(frozen=True)
class Call:
    """The static arguments of a kernel.

    Attributes:
      num_heads: of all blocks.
      width: W.
      rate: of dropout.
      radius: positions that a query sees to either side; None for all.
      interpret: run it without a TPU.
      has_aheads: whether the bounds end with how far after itself a query of each row sees.
    """

    num_heads: int
    head_size: int
    width: int
    rate: float
    radius: int | None
    row_length: int
    interpret: bool
    has_aheads: bool = False

    @property
    def heads_of_block(self) -> int:
        """H."""
        return self.width // self.head_size


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a row is divided.

    Attributes:
      length: L, of the keys.
      queries, keys: M and N.
      first_query, num_queries: the part of the row that the queries are.
      reach: blocks to either side that a block meets in a band; None if it meets all.
    """

    length: int
    queries: int
    keys: int
    first_query: int
    num_queries: int
    reach: int | None

    @property
    def num_q(self) -> int:
        """Blocks of queries."""
        return self.num_queries // self.queries

    @property
    def num_k(self) -> int:
        """Blocks of keys."""
        return self.length // self.keys

    @property
    def num_neighbours(self) -> int:
        """Blocks that a block meets in a band, itself included."""
        return 2 * (self.reach or 0) + 1

    def are_near(self, i: Any, j: Any, radius: int | None) -> Any:
        """Returns whether a query of block i may see a key of block j, by their positions."""
        if radius is None:
            return True
        query, key = self.first_query + i * self.queries, j * self.keys
        return (query - (key + self.keys - 1) <= radius) & (key - (query + self.queries - 1) <= radius)


@dataclasses.dataclass(frozen=True)
class _Program:
    """What all pairs of blocks of a program share.

    Attributes:
      row_keys, first_head, bounds: references to scalars.
      row: of the batch.
      part: index of the block of heads.
    """

    call: Call
    blocks: Blocks
    row_keys: Any
    first_head: Any
    bounds: Any
    row: jax.Array
    part: jax.Array

    def meet(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """Returns whether there is a block i of queries and a block j of keys that some query of i may see."""
        num_q, num_k = self.blocks.num_q, self.blocks.num_k
        exist = (i >= 0) & (i < num_q) & (j >= 0) & (j < num_k)
        low = self.row * (2 * (num_q + num_k))
        high = low + num_q + num_k
        i, j = jnp.clip(i, 0, num_q - 1), num_q + jnp.clip(j, 0, num_k - 1)
        share = (self.bounds[low + i] <= self.bounds[high + j]) & (self.bounds[low + j] <= self.bounds[high + i])
        meet = exist & share & self.blocks.are_near(i, j - num_q, self.call.radius)
        if not self.call.has_aheads:
            return meet
        last_query = self.blocks.first_query + (i + 1) * self.blocks.queries - 1
        return meet & ((j - num_q) * self.blocks.keys <= last_query + self.ahead)

    @property
    def ahead(self) -> Any:
        """How far after itself a query of the row sees."""
        return self.bounds[pl.num_programs(0) * 2 * (self.blocks.num_q + self.blocks.num_k) + self.row]

    def for_each(self, pair: Callable[[int | jax.Array], tuple], add: Callable[[jax.Array, jax.Array], None]) -> None:
        """Calls `add` with (block of queries, block of keys) for all of `pair(0)`, `pair(1)`, … that meet."""

        def visit(t: int | jax.Array, _: None = None) -> None:
            i, j = pair(t)
            pl.when(self.meet(i, j))(lambda: add(i, j))

        if self.blocks.num_neighbours == 1:
            visit(0)
        else:
            jax.lax.fori_loop(0, self.blocks.num_neighbours, visit, None)

    def pair(self, i: jax.Array, j: jax.Array, q_ids: jax.Array, k_ids: jax.Array) -> '_Pair':
        """Args: q_ids: [1, M].  k_ids: [N, 1]."""
        blocks, call = self.blocks, self.call
        shape = (blocks.keys, blocks.queries)
        key = jax.lax.broadcasted_iota(jnp.int32, shape, 0) + j * blocks.keys
        query = jax.lax.broadcasted_iota(jnp.int32, shape, 1) + (blocks.first_query + i * blocks.queries)
        sees = k_ids == q_ids
        if call.radius is not None:
            sees &= jnp.abs(query - key) <= call.radius
        if call.has_aheads:
            sees &= key - query <= self.ahead
        element, row_key = None, None
        if call.rate:
            head = self.first_head[0] + (self.part * call.heads_of_block).astype(jnp.uint32)
            L = call.row_length
            element = (query * L + key).astype(jnp.uint32) + head * jnp.uint32(L**2 % 2**32)
            row_key = self.row_keys[self.row]
        return _Pair(sees, call.rate, call.row_length, row_key, element)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A block of queries and a block of keys: who sees whom, and what dropout keeps.

    sees: bool [N, M].  row_key, element: for `is_kept`, of the first head; None without dropout.
    """

    sees: jax.Array
    rate: float
    length: int
    row_key: jax.Array | None
    element: jax.Array | None

    def kept(self, x: jax.Array, head: int) -> jax.Array:
        """Dropout of [N, M] values of a head, without the scale: of weights, or of the gradient that comes to them."""
        if self.row_key is None or self.element is None:
            return x
        element = self.element + jnp.uint32(head * self.length**2 % 2**32)
        return jnp.where(is_kept(element, self.row_key, self.rate), x, 0.0)


def forward_kernel(
    row_keys, first_head, bounds, q_ids, k_ids, q_ref, k_ref, v_ref, out_ref, log_sum_ref, out_sum, peak, total,
    *neighbours, call: Call, blocks: Blocks,
):  # fmt: skip
    """[M, W] queries against their keys. Sums of a head fill their rows of [W, M], and one row of [H, M]."""
    program = _Program(call, blocks, row_keys, first_head, bounds, pl.program_id(0), pl.program_id(1))
    outer, step, reach, n = pl.program_id(2), pl.program_id(3), blocks.reach, blocks.num_neighbours
    i = outer if reach is None else outer - reach
    if reach is not None:

        @pl.when(outer < blocks.num_k)
        def _():
            arrived = (_column(k_ids[0]), k_ref[0], v_ref[0])
            for memory, array in zip(neighbours, arrived, strict=True):
                memory[outer % n] = array

    @pl.when(step == 0)
    def _():
        peak[...] = jnp.full_like(peak, _NO)
        total[...] = jnp.zeros_like(total)
        out_sum[...] = jnp.zeros_like(out_sum)

    def add(j: jax.Array) -> None:
        if reach is None:
            ids, k, v = _column(k_ids[0]), k_ref[0], v_ref[0]
        else:
            ids, k, v = (memory[j % n] for memory in neighbours)
        pair = program.pair(i, j, q_ids[0], ids[:, :1])
        for head, lanes, rows in _heads(call):
            scores = jnp.where(pair.sees, _matmul(k, _scaled(lanes, q_ref[0], call), (1, 1)), _NO)
            old = peak[head : head + 1]
            new = jnp.maximum(old, scores.max(axis=0, keepdims=True))
            weights, shrink = jnp.exp(scores - new), jnp.exp(old - new)
            peak[head : head + 1] = new
            total[head : head + 1] = total[head : head + 1] * shrink + weights.sum(axis=0, keepdims=True)
            out = _matmul(v, pair.kept(weights, head).astype(v.dtype), (0, 0))
            out_sum[...] = jnp.where(rows, out_sum[...] * shrink + out, out_sum[...])

    program.for_each(lambda t: (i, step if reach is None else i + t - reach), lambda _, j: add(j))

    @pl.when((step == pl.num_programs(3) - 1) & (i >= 0))
    def _():
        out = out_sum[...]
        for head, _, rows in _heads(call):
            sums = total[head : head + 1]
            found = jnp.where(sums > 0, sums, 1.0)  # queries of padding may have met no keys
            out = jnp.where(rows, out * (1.0 / (found * (1.0 - call.rate))), out)
            log_sum_ref[0, 0, head : head + 1] = peak[head : head + 1] + jnp.log(found)
        out_ref[0] = out.T.astype(out_ref.dtype)


def backward_kernel(
    row_keys, first_head, bounds, q_ids, k_ids, q_ref, out_grad_ref, out_ref, log_sum_ref, k_ref, v_ref,
    q_grad_ref, k_grad_ref, v_grad_ref, q_sum, shift, k_sum, v_sum, key_ids, *neighbours, call: Call, blocks: Blocks,
):  # fmt: skip
    """[N, W] keys against their queries. The sums of queries, [slots, W, M], last until all their keys were there.

    shift: [slots, H, M], for each query the sum of its output times its gradient; softmax's gradient subtracts it.
    """
    program = _Program(call, blocks, row_keys, first_head, bounds, pl.program_id(0), pl.program_id(1))
    outer, step, reach, n = pl.program_id(2), pl.program_id(3), blocks.reach, blocks.num_neighbours
    j, arriving = (outer, step) if reach is None else (outer - reach, outer)
    slots = q_sum.shape[0]

    @pl.when(outer == 0 if reach is None else outer < blocks.num_q)
    def _():
        q_sum[arriving % slots] = jnp.zeros(q_sum.shape[1:], jnp.float32)
        shift[arriving % slots] = _sums_of_heads(call, out_ref[0], out_grad_ref[0])
        arrived = (q_ids[0], q_ref[0], out_grad_ref[0], log_sum_ref[0, 0])
        for memory, array in zip(neighbours, arrived, strict=False):
            memory[arriving % n] = array

    @pl.when(step == 0)
    def _():
        k_sum[...] = jnp.zeros_like(k_sum)
        v_sum[...] = jnp.zeros_like(v_sum)
        key_ids[...] = _column(k_ids[0])

    def add(i: jax.Array) -> None:
        if reach is None:
            ids, q, out_grad, log_sum = q_ids[0], q_ref[0], out_grad_ref[0], log_sum_ref[0, 0]
        else:
            ids, q, out_grad, log_sum = (memory[i % n] for memory in neighbours)
        k, v, pair = k_ref[0], v_ref[0], program.pair(i, j, ids, key_ids[:, :1])
        for head, lanes, rows in _heads(call):
            own_q, own_grad = _scaled(lanes, q, call), _only(lanes, out_grad, 1.0 / (1.0 - call.rate))
            scores = _matmul(k, own_q, (1, 1))
            weights = jnp.where(pair.sees, jnp.exp(scores - log_sum[head : head + 1]), 0.0)
            v_sum[...] += _matmul(pair.kept(weights, head).astype(v.dtype), own_grad, (1, 0))
            weights_grad = pair.kept(_matmul(v, own_grad, (1, 1)), head)
            scores_grad = (weights * (weights_grad - shift[i % slots, head : head + 1])).astype(q.dtype)
            k_sum[...] += _matmul(scores_grad, own_q, (1, 0))
            q_grad = _matmul(k, scores_grad, (0, 0))
            q_sum[i % slots] = jnp.where(rows, q_sum[i % slots] + q_grad, q_sum[i % slots])

    program.for_each(lambda t: (step if reach is None else j + t - reach, j), lambda i, _: add(i))

    @pl.when((step == pl.num_programs(3) - 1) & (j >= 0) & (j < blocks.num_k))
    def _():
        k_grad_ref[0] = k_sum[...].astype(k_grad_ref.dtype)
        v_grad_ref[0] = v_sum[...].astype(v_grad_ref.dtype)

    finished = step if reach is None else outer - 2 * reach

    @pl.when(outer == blocks.num_k - 1 if reach is None else finished >= 0)
    def _():
        q_grad = q_sum[finished % slots] * np.float32(call.head_size**-0.5)
        q_grad_ref[0] = q_grad.T.astype(q_grad_ref.dtype)


def _heads(call: Call) -> Iterator[tuple[int, jax.Array, jax.Array]]:
    """Yields (index, [1, W] whether a lane belongs to the head, the same as [W, 1]) for each head of a block."""
    for head in range(call.heads_of_block):
        first, end = head * call.head_size, (head + 1) * call.head_size
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, call.width), 1)
        row = jax.lax.broadcasted_iota(jnp.int32, (call.width, 1), 0)
        yield head, (lane >= first) & (lane < end), (row >= first) & (row < end)


def _only(lanes: jax.Array, x: jax.Array, scale: float = 1.0) -> jax.Array:
    return jnp.where(lanes, x.astype(jnp.float32) * np.float32(scale), 0.0).astype(x.dtype)


def _scaled(lanes: jax.Array, q: jax.Array, call: Call) -> jax.Array:
    return _only(lanes, q, call.head_size**-0.5)


def _sums_of_heads(call: Call, x: jax.Array, y: jax.Array) -> jax.Array:
    """[M, W], [M, W] -> [H, M]: the sums of x * y over the lanes of each head."""
    each = (x.astype(jnp.float32) * y.astype(jnp.float32)).T
    return jnp.concatenate([jnp.where(rows, each, 0.0).sum(axis=0, keepdims=True) for _, _, rows in _heads(call)])


def _column(ids: jax.Array) -> jax.Array:
    """[1, N] ids of keys -> [N, 128], equal in all lanes; padding equals the id of no query."""
    return jnp.broadcast_to(jnp.where(ids > 0, ids, -1), (LANES, ids.shape[1])).T


def _matmul(x: jax.Array, y: jax.Array, dims: tuple[int, int]) -> jax.Array:
    """Contracts one dim of each factor, in float32."""
    return jax.lax.dot_general(x, y, (((dims[0],), (dims[1],)), ((), ())), preferred_element_type=jnp.float32)
