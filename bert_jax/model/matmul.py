"""Matmuls with float32 accumulation, and their gradients. On a CPU they take the faster forms of `cpu.py`.

`T` tokens (any leading dims), `D` in, `F` out.
"""

import functools
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bert_jax.model import cpu
from bert_jax.model.platform import target_platform


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def project(x: jax.Array, kernel: jax.Array, dtype: str, out_dtype: str) -> jax.Array:
    """x @ kernel over the last dim, with factors in `dtype`.

    Args:
      x: [T…, D].  kernel: [D, F].  out_dtype: of the result, [T…, F].
    """
    return contract(x.astype(dtype), kernel.astype(dtype), 0, out_dtype)


def _project_forward(x: jax.Array, kernel: jax.Array, dtype: str, out_dtype: str) -> tuple:
    # Not `project`, whose custom rule would hide the matmul from the policy of `remat='dots'`, which keeps its result.
    return contract(x.astype(dtype), kernel.astype(dtype), 0, out_dtype), (x, kernel)


def _project_backward(dtype: str, out_dtype: str, residuals: tuple, gradient: jax.Array) -> tuple:
    x, kernel = residuals
    gradient = gradient.astype(dtype)
    x_gradient = contract(gradient, kernel.astype(dtype), 1, x.dtype)
    x, gradient = (factor.reshape(-1, factor.shape[-1]) for factor in (x.astype(dtype), gradient))
    kernel_gradient = cpu.kernel_gradient(x, gradient) if target_platform() == 'cpu' else x.T @ gradient
    return x_gradient, kernel_gradient.astype(kernel.dtype)


project.defvjp(_project_forward, _project_backward)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x + bias, [T…, F] in the dtype of x; bias: [F] float32."""
    return x + bias.astype(x.dtype)


def _add_bias_forward(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
    return x + bias.astype(x.dtype), None


def _add_bias_backward(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gradient, column_sums(gradient.reshape(-1, gradient.shape[-1]))


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def column_sums(x: jax.Array) -> jax.Array:
    """[T, F] -> [F] float32."""
    return cpu.column_sums(x) if target_platform() == 'cpu' else x.sum(axis=0, dtype=jnp.float32)


def transpose(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`x.transpose(axes)`, for a factor of a matmul."""
    return cpu.transpose(x, axes) if target_platform() == 'cpu' else x.transpose(axes)


def exp(x: jax.Array, dtype: jnp.dtype | str) -> jax.Array:
    """Returns exp(x) in a dtype, for float32 x <= 0."""
    if target_platform() == 'cpu' and dtype == jnp.bfloat16:
        return cpu.exp(x)
    return jnp.exp(x).astype(dtype)


def result_dtype(dtype: str) -> str:
    """Returns the dtype in which XLA writes a matmul result of `dtype`."""
    return cpu.result_dtype(dtype) if target_platform() == 'cpu' else dtype


def contract(x: jax.Array, y: jax.Array, dim: int = 0, out_dtype: str = 'float32') -> jax.Array:
    """Contracts the last dim of x with the first or second dim (0 or 1) of the matrices y; leading dims are equal."""
    batch = tuple(range(y.ndim - 2))
    dims = (((x.ndim - 1,), (len(batch) + dim,)), (batch, batch))
    return jax.lax.dot_general(x, y, dims, preferred_element_type=result_dtype(out_dtype)).astype(out_dtype)


Count = float | Fraction  # a mean is exact as a fraction


class Matmul(NamedTuple):
    """One of the matmuls of a forward pass, by which its cost is counted.

    Attributes:
      name: of what it computes, in lower case.
      batch, m, k, n: it multiplies [batch, m, k] by [batch, k, n].
      count: how often it occurs.
    """

    name: str
    batch: Count
    m: Count
    k: Count
    n: Count
    count: Count


def training_flops(forward: Iterable[Matmul]) -> float:
    """Returns the FLOPs of the matmuls of a forward pass and of its backward pass, which has two for each."""
    return float(3 * sum(2 * batch * m * k * n * count for _, batch, m, k, n, count in forward))
