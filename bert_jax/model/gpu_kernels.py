"""The kernels of `gpu_attention.py`. References are to arrays in memory, as Pallas passes them.

`K` head size, `P` = K padded to a power of two, `M` positions of a program's block, `N` positions of the blocks that it
visits.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from bert_jax.model.dropout import is_kept_at, spread

_NO = -1e30  # the score of a key that a query does not attend to
_LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Call:
    """The static arguments of both kernels.

    Attributes:
      num_heads, rate, radius, row_length: as of `gpu_attention.attend`.
      has_aheads: whether `aheads` is the last of the scalars.
      has_bias: whether a bias [3, K] of queries, keys and values follows the inputs, and its gradient the outputs.
      interpret: run them without a GPU.
    """

    num_heads: int
    rate: float
    radius: int | None
    row_length: int
    has_aheads: bool
    has_bias: bool
    interpret: bool


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of a program's arrays: of a head, of its block (M) and of the blocks it visits (N)."""

    head: int
    own: int
    step: int

    def load(self, ref: Any, at: Any, bias: jax.Array | None = None) -> jax.Array:
        """Returns [n, P], positions of a head with zeros after its K columns, plus a bias [1, P]."""
        mask = self._mask(ref)
        x = plgpu.load(ref.at[at, :], mask=mask, other=None if mask is None else 0.0)
        return x if bias is None else x + bias.astype(x.dtype)

    def load_bias(self, biases: Sequence[Any], part: int) -> jax.Array | None:
        """Returns [1, P], the bias of one of the parts [3, K]; None without biases."""
        return self.load(biases[0], pl.ds(part, 1)) if biases else None

    def store(self, ref: Any, x: jax.Array) -> None:
        """Writes [..., P] to [..., K]."""
        mask = self._mask(ref)
        plgpu.store(ref, x.astype(ref.dtype), mask=None if mask is None else jnp.broadcast_to(mask, x.shape))

    def _mask(self, ref: Any) -> jax.Array | None:
        """Returns bool [1, P], whether a column is one of the head; None if all are."""
        width = ref.shape[-1]
        return None if width == self.head else (jnp.arange(width) < self.head)[None]


@dataclasses.dataclass(frozen=True)
class _Scores:
    """The pairs of a block of M positions with a block of N.

    Attributes:
      ids: those of the row.
      own: [M], positions in the row.
      row_key, head: for dropout; `head` is an index among the heads of the model.
      ahead: of the row (`gpu_attention.attend`); None: any distance.
      own_is_query: whether the M positions are queries and the N positions keys, or the reverse.
    """

    size: Size
    call: Call
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


def _own_positions(size: Size) -> jax.Array:
    """Returns [M]."""
    return pl.program_id(0) * size.own + jnp.arange(size.own)


def _matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


def _scalars(refs: Sequence[Any], call: Call) -> tuple[Any, Any, Any, Sequence[Any]]:
    """Returns the key of the row, the first head, `ahead` of the row or None, and the references that follow."""
    row_keys, first_head, *refs = refs
    ahead, refs = (refs[0][0], refs[1:]) if call.has_aheads else (None, refs)
    return row_keys[0], first_head[0], ahead, refs


def forward_kernel(*refs, size, call):
    row_key, first_head, ahead, refs = _scalars(refs, call)
    ids, first, end, q_ref, k_ref, v_ref, *biases, out_ref, log_sum_ref = refs
    q_bias, v_bias = (size.load_bias(biases, part) for part in (0, 2))
    head = first_head + pl.program_id(1).astype(jnp.uint32)
    scores_of = _Scores(size, call, ids, _own_positions(size), row_key, head, ahead, own_is_query=True)
    q = size.load(q_ref, slice(None), q_bias)  # MP
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
        v = size.load(v_ref, at, v_bias)
        return out * correction[:, None] + _matmul(used.astype(v.dtype), v), new_highest, total

    start = (jnp.zeros(q.shape, jnp.float32), jnp.full(size.own, _NO, jnp.float32), jnp.zeros(size.own, jnp.float32))
    out, highest, total = jax.lax.fori_loop(*scores_of.visited(first[0], end[0]), visit, start)
    total = jnp.where(total > 0, total, 1.0)  # 0 in a block of padding
    size.store(out_ref, out * (1.0 / (total * (1.0 - call.rate)))[:, None])
    log_sum_ref[...] = highest + jnp.log2(total)


def backward_kernel(*refs, size, call) -> None:
    row_key, first_head, ahead, refs = _scalars(refs, call)
    ids, first, end, q_ref, k_ref, v_ref, gradient_ref, log_sums, deltas, *refs = refs
    biases, gradient_refs, sum_refs = (refs[:1], refs[1:-1], refs[-1:]) if call.has_bias else ((), refs, ())
    q_bias, v_bias = (size.load_bias(biases, part) for part in (0, 2))
    head = first_head + pl.program_id(1).astype(jnp.uint32)
    own = pl.ds(pl.program_id(0) * size.own, size.own)
    own_ids = ids[own]
    scale, kept_scale = size.head**-0.5, 1.0 / (1.0 - call.rate)

    def dropped(x: jax.Array, keep: jax.Array | None) -> jax.Array:
        return x if keep is None else jnp.where(keep, x * kept_scale, 0.0)

    def weights_of(scores: jax.Array, attends: jax.Array, log_sums: jax.Array) -> jax.Array:
        return jnp.where(attends, jnp.exp2(scores * (scale * _LOG2_E) - log_sums), 0.0)

    of_keys = _Scores(size, call, ids, _own_positions(size), row_key, head, ahead, own_is_query=False)
    k, v = size.load(k_ref, own), size.load(v_ref, own, v_bias)  # MP

    def visit_queries(block: jax.Array, carry: tuple) -> tuple:
        k_gradient, v_gradient = carry
        at = pl.ds(block * size.step, size.step)
        q, gradient = size.load(q_ref, at, q_bias), size.load(gradient_ref, at)  # NP
        weights = weights_of(_matmul(k, q.T), of_keys.attends(own_ids, block), log_sums[at][None, :])
        keep = of_keys.keep(block)
        v_gradient += _matmul(dropped(weights, keep).astype(q.dtype), gradient)
        of_weights = dropped(_matmul(v, gradient.T), keep)
        of_scores = weights * (of_weights - deltas[at][None, :])
        return k_gradient + _matmul(of_scores.astype(q.dtype), q), v_gradient

    zeros = jnp.zeros(k.shape, jnp.float32)
    k_gradient, v_gradient = jax.lax.fori_loop(*of_keys.visited(first[0], end[0]), visit_queries, (zeros, zeros))

    of_queries = dataclasses.replace(of_keys, own_is_query=True)
    q, gradient = size.load(q_ref, own, q_bias), size.load(gradient_ref, own)  # MP
    own_log_sums, own_deltas = log_sums[own][:, None], deltas[own][:, None]

    def visit_keys(block: jax.Array, q_gradient: jax.Array) -> jax.Array:
        at = pl.ds(block * size.step, size.step)
        k, v = size.load(k_ref, at), size.load(v_ref, at, v_bias)  # NP
        weights = weights_of(_matmul(q, k.T), of_queries.attends(own_ids, block), own_log_sums)
        of_weights = dropped(_matmul(gradient, v.T), of_queries.keep(block))
        return q_gradient + _matmul((weights * (of_weights - own_deltas)).astype(k.dtype), k)

    q_gradient = jax.lax.fori_loop(*of_queries.visited(first[0], end[0]), visit_keys, zeros)
    gradients = (q_gradient * scale, k_gradient * scale, v_gradient)
    places = [ref.at[:, pl.ds(part, 1), :] for ref in gradient_refs for part in range(ref.shape[1])]
    for place, each in zip(places, gradients, strict=True):
        size.store(place, each[:, None])
    for ref in sum_refs:
        for part, each in enumerate(gradients):
            size.store(ref.at[pl.ds(part, 1), :], each.sum(axis=0, keepdims=True))
