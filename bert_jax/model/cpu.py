"""Forms of matmuls and related operations that XLA:CPU runs fast. `matmul.py` decides when to use them.

`T` tokens, `D` in, `F` out.
"""

import jax
import jax.numpy as jnp

_FEWEST_ROWS = 8  # bfloat16 kernels are slow for fewer


def kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """x' @ gradient: [T, D], [T, F] -> [D, F] float32.

    The first factor is transposed in memory and the longer dim comes last, which is up to twice as fast.
    """
    if gradient.shape[-1] >= x.shape[-1]:
        return jax.lax.optimization_barrier(_matmul(transpose(x, (1, 0)), gradient))
    return jax.lax.optimization_barrier(_matmul(transpose(gradient, (1, 0)), x)).T


def column_sums(x: jax.Array) -> jax.Array:
    """[T, F] -> [F] float32: a matmul with ones is ten times as fast as XLA's sum."""
    num_rows = 1 if x.dtype == jnp.float32 else _FEWEST_ROWS
    return _matmul(jnp.ones((num_rows, len(x)), x.dtype), x)[0]


def row_sums(x: jax.Array, scale: jax.Array) -> jax.Array:
    """[F, T], [T] -> [F] float32: the sums over T of `x * scale`, as a matmul."""
    num_columns = 1 if x.dtype == jnp.float32 else _FEWEST_ROWS
    return _matmul(x, jnp.broadcast_to(scale[:, None], (len(scale), num_columns)).astype(x.dtype))[:, 0]


def sum_over_last(x: jax.Array) -> jax.Array:
    """[..., M, N] -> [..., M, 1] float32; of bfloat16 as a matmul with ones, which is faster than XLA's sum."""
    if x.dtype == jnp.float32:
        return x.sum(axis=-1, keepdims=True)
    batch = tuple(range(x.ndim - 2))
    ones = jnp.ones((*x.shape[:-2], x.shape[-1], _FEWEST_ROWS), x.dtype)
    dims = (((x.ndim - 1,), (x.ndim - 2,)), (batch, batch))
    return jax.lax.dot_general(x, ones, dims, preferred_element_type=jnp.float32)[..., :1]


def transpose(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Computes `x.transpose(axes)` in memory.

    The barrier keeps XLA from folding the transposition into a matmul, whose kernels want the contracted dim last.
    Behind it every even dim is split in two, and joined again afterwards: XLA computes a bfloat16 matmul in float32
    if it sees that a factor is a plain transposition.
    """
    halves = [(size // 2, 2) if size % 2 == 0 else (size, 1) for size in x.shape]
    order = [2 * axis + half for axis in axes for half in (0, 1)]
    split = x.reshape([size for pair in halves for size in pair]).transpose(order)
    return jax.lax.optimization_barrier(split).reshape([x.shape[axis] for axis in axes])


def _matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.lax.dot(x, y, preferred_element_type=jnp.float32)
