"""Attention on a GPU whose scores never leave the chip: one Pallas kernel (Triton) forward, one backward.

`B` rows, `L` positions, `D` = `H` heads x `K`; `P` = K padded to a power of two. A program has a block of `M` positions
and loops over blocks of `N` positions of the other side: keys for queries, queries for keys.

After Dao 2023, "FlashAttention-2". The forward pass keeps the logarithm of softmax's sum, [B, H, L]; the backward pass
recomputes weights and dropout masks from it, once for the gradients of keys and values and once for those of queries.
It sums in registers, without atomic additions, so that gradients do not depend on the order in which programs run.
Arrays keep the layout [B, L, D] of the dense layers around; queries, keys and values may be parts of one. Only blocks
that hold positions of the same sequence within the window are visited, and no block of padding; in causal rows, none
above the diagonal.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from bert_jax.model.gpu_kernels import Call, Size, backward_kernel, forward_kernel

BLOCK = 64  # L is a multiple of it
LARGEST_HEAD = 128  # K; larger accumulators do not fit into the registers


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
      q, k, v: [B, L, D]; L a multiple of `BLOCK`, K at most `LARGEST_HEAD`. Keys and values may have fewer heads, each
        of which serves as many query heads.  sequence_ids: [B, L] int32.
      row_keys: [B] uint32 (`DropoutKey.of_rows`).  first_head: [1] uint32, the index of the first of
        these heads in the model.
      aheads: [B] int32, how far after itself a position of the row attends at most: 0 in a causal row; None: any.
      rate: of dropout, as `dropout` on the weights [B, H, L, L] of all heads; 0 for none.
      radius: positions attend to positions at most this far away; None for any distance.
      row_length: L of those weights, if padding follows it; by default, all of L.
    """
    call = Call(num_heads, rate, radius, row_length or q.shape[1], aheads is not None, False, interpret)
    scalars = (row_keys, first_head) if aheads is None else (row_keys, first_head, aheads)
    parts = tuple(x.reshape(*x.shape[:2], 1, -1, q.shape[2] // num_heads) for x in (q, k, v))
    return _attend(call, parts, None, sequence_ids, *scalars).reshape(q.shape)


def attend_jointly(
    qkv: jax.Array,
    bias: jax.Array,
    sequence_ids: jax.Array,
    row_keys: jax.Array,
    first_head: jax.Array,
    aheads: jax.Array | None = None,
    *,
    num_heads: int,
    rate: float,
    row_length: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Computes what `attend` does of `q, k, v = split(qkv + bias)`, without storing any of these.

    The bias of keys is not added: it shifts all scores of a query alike, which softmax ignores.

    Args:
      qkv: [B, L, 3 D], the result of a matmul.  bias: [3 D] float32.  The others are as of `attend`.
    """
    B, L, columns = qkv.shape
    call = Call(num_heads, rate, None, row_length or L, aheads is not None, True, interpret)
    scalars = (row_keys, first_head) if aheads is None else (row_keys, first_head, aheads)
    heads = (3, num_heads, columns // (3 * num_heads))
    parts, bias = (qkv.reshape(B, L, *heads),), bias.reshape(heads)
    return _attend(call, parts, bias, sequence_ids, *scalars).reshape(B, L, -1)


def num_scores(length: int, radius: int | None, blocks: _Blocks) -> int:
    """Returns how many scores a kernel computes for a head of a row that is one sequence."""
    own, step = blocks.own_of(length), blocks.step
    return int(_near(length, own, step, radius).sum()) * own * step


# Registers limit the blocks. Before the kernels added biases, none of these spilled with dropout (benchmarks/LOG.md);
# that has not been checked since. Two programs fit on a multiprocessor, so that one multiplies while the other computes
# weights; of the forward pass of large heads, one.
def _forward_blocks(head_size: int, radius: int | None) -> _Blocks:
    if radius is not None:  # fewer scores outside the window
        return _Blocks(64, 64, num_warps=4)
    return _Blocks(128, 64, num_warps=4 if head_size <= 64 else 8)


def _backward_blocks(head_size: int) -> _Blocks:
    return _Blocks(64, 64 if head_size <= 64 else 32, num_warps=4)


# Queries, keys and values are three arrays [B, L, 1, H, K] or the parts of one, [B, L, 3, H, K], from here on. Of keys
# and values there may be fewer heads. The bias [3, H, K] is None or belongs to the parts of one array.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    call: Call, parts: tuple[jax.Array, ...], bias: jax.Array | None, ids: jax.Array, *scalars: jax.Array
) -> jax.Array:
    return _attend_forward(call, parts, bias, ids, *scalars)[0]


def _attend_forward(
    call: Call, parts: tuple[jax.Array, ...], bias: jax.Array | None, ids: jax.Array, *scalars: jax.Array
) -> tuple[jax.Array, tuple]:
    B, L, _, H, K = parts[0].shape
    blocks = _forward_blocks(K, call.radius)
    grid = _Grid(L, blocks.own_of(L), H, K)
    q, k, v = _each(parts)
    out, log_sums = _pallas(
        call,
        forward_kernel,
        'attention_forward',
        grid,
        blocks,
        (*scalars, ids),
        ins=[grid.of_heads(*q), grid.of_heads(*k, whole=True), grid.of_heads(*v, whole=True), *grid.of_bias(bias)],
        outs=[
            grid.of_heads(jax.ShapeDtypeStruct((B, L, 1, H, K), parts[0].dtype)),
            grid.of_positions(jax.ShapeDtypeStruct((B, H, L), jnp.float32)),
        ],
    )
    return out, (parts, bias, ids, scalars, out, log_sums)


def _attend_backward(call: Call, kept: tuple, gradient: jax.Array) -> tuple:
    parts, bias, ids, scalars, out, log_sums = kept
    deltas = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)[:, :, 0].swapaxes(1, 2)  # BHL
    B, L, _, H, K = parts[0].shape
    blocks = _backward_blocks(K)
    grid = _Grid(L, blocks.own_of(L), H, K)
    of_row = functools.partial(grid.of_heads, whole=True)
    rows = [of_row(*each) for each in _each(parts)]
    positions = [grid.of_positions(each, whole=True) for each in (log_sums, deltas)]
    outs = [grid.of_all_parts(jax.ShapeDtypeStruct((*x.shape[:3], H, K), x.dtype)) for x in parts]
    if bias is not None:
        outs.append(grid.of_all_parts(jax.ShapeDtypeStruct((B, L // grid.own, 3, H, K), jnp.float32), summed=True))
    found = _pallas(
        call,
        backward_kernel,
        'attention_backward',
        grid,
        blocks,
        (*scalars, ids),
        ins=[*rows, of_row(gradient), *positions, *grid.of_bias(bias)],
        outs=outs,
    )
    gradients = tuple(_of_shared(x, part.shape[3]) for x, part in zip(found, parts, strict=False))
    of_bias = None if bias is None else found[-1].sum(axis=(0, 1))
    return gradients, of_bias, None, *(None for _ in scalars)


_attend.defvjp(_attend_forward, _attend_backward)


def _each(parts: tuple[jax.Array, ...]) -> list[tuple[jax.Array, int]]:
    """Returns (array, index of the part) of queries, keys and values."""
    return [(array, part) for array in parts for part in range(array.shape[2])]


def _of_shared(gradient: jax.Array, num_heads: int) -> jax.Array:
    """Sums the gradients of query heads, [B, L, parts, H, K], that share one of `num_heads` heads."""
    B, L, parts, H, K = gradient.shape
    if H == num_heads:
        return gradient
    by_head = gradient.reshape(B, L, parts, num_heads, H // num_heads, K)
    return by_head.sum(axis=4, dtype=jnp.float32).astype(gradient.dtype)


_Array = jax.Array | jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class _Grid:
    """What the programs (blocks of M positions, heads, rows) see of arrays; returns arrays with specifications.

    Attributes:
      own: M.
    """

    length: int
    own: int
    num_heads: int
    head_size: int

    @property
    def padded(self) -> int:
        """P."""
        return max(16, pl.next_power_of_2(self.head_size))

    def of_heads(self, x: _Array, part: int = 0, *, whole: bool = False) -> tuple[_Array, pl.BlockSpec]:
        """A part of [B, L, parts, H, K]: the program's block, or the whole row. Heads may share those of x."""
        sharing, length = self.num_heads // x.shape[3], self.length if whole else self.own

        def index(i: jax.Array, h: jax.Array, b: jax.Array) -> tuple:
            return b, 0 if whole else i, part, h if sharing == 1 else jax.lax.div(h, jnp.int32(sharing)), 0

        return x, pl.BlockSpec((None, length, None, None, self.padded), index)

    def of_all_parts(self, x: _Array, *, summed: bool = False) -> tuple[_Array, pl.BlockSpec]:
        """All parts of [B, L, parts, H, K], or of their sums over the blocks, [B, L / M, parts, H, K]."""
        rows = None if summed else self.own
        return x, pl.BlockSpec((None, rows, x.shape[2], None, self.padded), lambda i, h, b: (b, i, 0, h, 0))

    def of_positions(self, x: _Array, *, whole: bool = False) -> tuple[_Array, pl.BlockSpec]:
        """[B, H, L]: the program's block, or the whole row."""
        length = self.length if whole else self.own
        return x, pl.BlockSpec((None, None, length), lambda i, h, b: (b, h, 0 if whole else i))

    def of_bias(self, bias: jax.Array | None) -> list[tuple[_Array, pl.BlockSpec]]:
        """[3, H, K], if there is one."""
        return [] if bias is None else [(bias, pl.BlockSpec((3, None, self.padded), lambda i, h, b: (0, h, 0)))]


def _pallas(
    call: Call,
    kernel: Callable[..., None],
    name: str,
    grid: _Grid,
    blocks: _Blocks,
    row_inputs: Sequence[jax.Array],
    *,
    ins: Sequence[tuple[_Array, pl.BlockSpec]],
    outs: Sequence[tuple[_Array, pl.BlockSpec]],
) -> list[jax.Array]:
    """Runs a kernel over the grid.

    Args:
      row_inputs: row_keys, first_head and perhaps aheads as of `attend`, and the ids.  ins, outs: from the grid.
    """
    *scalars, ids = row_inputs
    (B, L), M, N = ids.shape, grid.own, blocks.step
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
        functools.partial(kernel, size=Size(grid.head_size, M, N), call=call),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outs],
        grid=(L // M, grid.num_heads, B),
        in_specs=[*in_specs, *(spec for _, spec in ins)],
        out_specs=[spec for _, spec in outs],
        compiler_params=plgpu.CompilerParams(num_warps=blocks.num_warps, num_stages=2),
        interpret=call.interpret,
        name=f'{name}_of_{num_scores(L, call.radius, blocks)}_scores',  # `plan` reads it
    )(*scalars, ids, firsts, ends, *(x for x, _ in ins))


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
