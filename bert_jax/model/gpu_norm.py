"""Layer norm of a residual sum with dropout on a GPU: one pass over memory forward, one backward (Pallas, Triton).

XLA computes the same in three passes each: it does not fuse sums over rows with what uses them and with sums over
columns.

`B` rows, `L` positions, `D` features, `T` = B x L tokens; `P` = D padded to a power of two. A program has `S` tokens of
a row, of which it computes `R` at a time.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from bert_jax.model.dropout import is_kept

_LARGEST = 4096  # D; a program holds whole tokens in its registers
_FEWEST_TOKENS, _MOST_TOKENS = 8, 64  # S
_ELEMENTS, _WARPS = 4096, 8  # R x P, at most


@dataclasses.dataclass(frozen=True)
class _Call:
    """The static arguments of both kernels. interpret: run them without a GPU."""

    eps: float
    rate: float
    num_uses: int
    interpret: bool


def suits(x: jax.Array, branch: jax.Array) -> bool:
    """Returns whether the kernels support the arguments of `add_and_normalize`."""
    return x.dtype == branch.dtype and x.shape[-1] <= _LARGEST and x.shape[1] % _FEWEST_TOKENS == 0


def add_and_normalize(
    x: jax.Array,
    branch: jax.Array,
    branch_bias: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    row_keys: jax.Array,
    *,
    eps: float,
    rate: float,
    num_uses: int = 1,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """Computes the layer norm of `x + dropout(branch + branch_bias)`, [B, L, D] in the dtype of x, for several uses.

    The sum is rounded to the dtype of x, in which the backward pass keeps it.

    Args:
      x, branch: [B, L, D] that `suits` accepts.  branch_bias, scale, bias: [D] float32.
      row_keys: [B] uint32 (`DropoutKey.of_rows`).  eps: added to the variance.
      rate: of dropout, as `dropout` on [B, L, D]; 0 for none.
      num_uses: how often the result is returned, so that the backward kernel adds the gradients of its uses.
    """
    return _normalize(_Call(eps, rate, num_uses, interpret), x, branch, branch_bias, scale, bias, row_keys)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalize(call: _Call, x: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
    return _forward(call, x, *others)[0]


def _forward(
    call: _Call,
    x: jax.Array,
    branch: jax.Array,
    branch_bias: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    row_keys: jax.Array,
) -> tuple[tuple[jax.Array, ...], tuple]:
    blocks = _Blocks.of(x)
    total, mean, factor, y = blocks.run(
        functools.partial(_forward_kernel, call, blocks),
        'norm_forward',
        call.interpret,
        (row_keys, x, branch, branch_bias, scale, bias),
        (x, (jnp.float32, 'tokens'), (jnp.float32, 'tokens'), x),
    )
    return (y,) * call.num_uses, (total, mean, factor, branch_bias, scale, bias, row_keys)


def _backward(call: _Call, kept: tuple, gradients: tuple[jax.Array, ...]) -> tuple:
    total, mean, factor, branch_bias, scale, bias, row_keys = kept
    blocks = _Blocks.of(total)
    sums = (jnp.float32, 'sums')
    of_x, *of_branch, of_branch_bias, of_scale, of_bias = blocks.run(
        functools.partial(_backward_kernel, call, blocks),
        'norm_backward',
        call.interpret,
        (row_keys, *gradients, total, mean, factor, scale),
        (total, *([total] if call.rate else []), sums, sums, sums),
    )
    of_vectors = [each.sum(axis=0) for each in (of_branch_bias, of_scale, of_bias)]
    return of_x, *(of_branch or [of_x]), *of_vectors, None


_normalize.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """How the kernels divide [B, L, D]: sizes as at the top of the file."""

    rows: int
    length: int
    features: int

    @classmethod
    def of(cls, x: jax.Array) -> '_Blocks':
        return cls(*x.shape)

    @property
    def tokens(self) -> int:
        """S."""
        return math.gcd(self.length, _MOST_TOKENS)

    @property
    def at_once(self) -> int:
        """R."""
        return math.gcd(self.tokens, max(1, _ELEMENTS // self.padded))

    @property
    def padded(self) -> int:
        """P."""
        return pl.next_power_of_2(self.features)

    def run(self, kernel: Any, name: str, interpret: bool, inputs: tuple, outputs: tuple) -> list[jax.Array]:
        """Runs a kernel over the blocks of S tokens.

        Args:
          inputs, outputs: arrays [B, L, D], [D], [B, L, 1] or [B] uint32; of outputs also (dtype, what) for [B, L, 1]
            ('tokens') or one [D] per program ('sums').
        """
        B, L, D, S, P = self.rows, self.length, self.features, self.tokens, self.padded
        shapes = {'tokens': (B, L, 1), 'sums': (B * (L // S), D)}
        specs = {
            (B, L, D): pl.BlockSpec((None, S, P), lambda b, i: (b, i, 0)),
            (B, L, 1): pl.BlockSpec((None, S, 1), lambda b, i: (b, i, 0)),
            shapes['sums']: pl.BlockSpec((None, P), lambda b, i: (b * (L // S) + i, 0)),
            (D,): pl.BlockSpec((P,), lambda b, i: (0,)),
            (B,): pl.BlockSpec((1,), lambda b, i: (b,)),
        }
        out_shape = [
            jax.ShapeDtypeStruct(shapes[each[1]], each[0])
            if isinstance(each, tuple)
            else jax.ShapeDtypeStruct(each.shape, each.dtype)
            for each in outputs
        ]
        return pl.pallas_call(
            kernel,
            out_shape=out_shape,
            grid=(B, L // S),
            in_specs=[specs[each.shape] if each.dtype != jnp.uint32 else specs[B,] for each in inputs],
            out_specs=[specs[each.shape] for each in out_shape],
            compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=2),
            interpret=interpret,
            name=name,
        )(*inputs)

    # --- Within a program. ---

    def load(self, ref: Any, *at: Any) -> jax.Array:
        """Returns float32 [R, P] or [P], with zeros after the D features."""
        mask = jnp.arange(self.padded) < self.features
        mask = jnp.broadcast_to(mask, (self.at_once, self.padded)) if at else mask
        return plgpu.load(ref.at[(*at, slice(None))], mask=mask, other=0.0).astype(jnp.float32)

    def store(self, ref: Any, x: jax.Array, *at: Any) -> None:
        """Writes [R, P] or [P], without what follows the D features."""
        mask = jnp.broadcast_to(jnp.arange(self.padded) < self.features, x.shape)
        plgpu.store(ref.at[(*at, slice(None))], x.astype(ref.dtype), mask=mask)

    def keep(self, start: jax.Array, row_key: jax.Array, rate: float) -> jax.Array:
        """Returns bool [R, P], the mask of dropout of R tokens. start: the first one's position in the row."""
        token = (start + jnp.arange(self.at_once)).astype(jnp.uint32)
        element = token[:, None] * jnp.uint32(self.features) + jnp.arange(self.padded).astype(jnp.uint32)[None]
        return is_kept(element, row_key, rate)


def _forward_kernel(
    call: _Call, blocks: _Blocks,
    row_keys, x_ref, branch_ref, branch_bias_ref, scale_ref, bias_ref, total_ref, mean_ref, factor_ref, y_ref,
) -> None:  # fmt: skip
    row_key, D, first = row_keys[0], blocks.features, pl.program_id(1) * blocks.tokens
    branch_bias, scale, bias = (blocks.load(ref) for ref in (branch_bias_ref, scale_ref, bias_ref))
    is_feature = (jnp.arange(blocks.padded) < D)[None]

    def some(step: jax.Array, _: None) -> None:
        start = step * blocks.at_once
        at = pl.ds(start, blocks.at_once)
        branch = blocks.load(branch_ref, at) + branch_bias[None]
        if call.rate:
            branch = jnp.where(blocks.keep(first + start, row_key, call.rate), branch * (1.0 / (1.0 - call.rate)), 0.0)
        total = (blocks.load(x_ref, at) + branch).astype(total_ref.dtype)
        blocks.store(total_ref, total, at)
        total = total.astype(jnp.float32)
        mean = total.sum(axis=-1, keepdims=True) * (1.0 / D)
        centred = jnp.where(is_feature, total - mean, 0.0)
        factor = jax.lax.rsqrt(jnp.square(centred).sum(axis=-1, keepdims=True) * (1.0 / D) + call.eps)
        mean_ref[at, :] = mean
        factor_ref[at, :] = factor
        blocks.store(y_ref, centred * factor * scale[None] + bias[None], at)

    jax.lax.fori_loop(0, blocks.tokens // blocks.at_once, some, None)


def _backward_kernel(call: _Call, blocks: _Blocks, row_keys, *refs) -> None:
    gradient_refs, refs = refs[: call.num_uses], refs[call.num_uses :]
    total_ref, mean_ref, factor_ref, scale_ref, of_x_ref, *refs = refs
    *of_branch_refs, of_branch_bias_ref, of_scale_ref, of_bias_ref = refs
    row_key, D, first = row_keys[0], blocks.features, pl.program_id(1) * blocks.tokens
    scale = blocks.load(scale_ref)

    def some(step: jax.Array, sums: tuple) -> tuple:
        start = step * blocks.at_once
        at = pl.ds(start, blocks.at_once)
        gradient, *others = (blocks.load(ref, at) for ref in gradient_refs)
        gradient, factor = sum(others, gradient), factor_ref[at, :]
        normal = (blocks.load(total_ref, at) - mean_ref[at, :]) * factor
        scaled = gradient * scale[None]
        mean = scaled.sum(axis=-1, keepdims=True) * (1.0 / D)
        along = (scaled * normal).sum(axis=-1, keepdims=True) * (1.0 / D)
        of_x = (scaled - mean - normal * along) * factor
        blocks.store(of_x_ref, of_x, at)
        of_branch = of_x
        for ref in of_branch_refs:
            of_branch = jnp.where(blocks.keep(first + start, row_key, call.rate), of_x * (1.0 / (1.0 - call.rate)), 0.0)
            blocks.store(ref, of_branch, at)
        columns = (of_branch, gradient * normal, gradient)
        return tuple(total + each.sum(axis=0) for total, each in zip(sums, columns, strict=True))

    zeros = jnp.zeros(blocks.padded, jnp.float32)
    sums = jax.lax.fori_loop(0, blocks.tokens // blocks.at_once, some, (zeros, zeros, zeros))
    for ref, each in zip((of_branch_bias_ref, of_scale_ref, of_bias_ref), sums, strict=True):
        blocks.store(ref, each)
