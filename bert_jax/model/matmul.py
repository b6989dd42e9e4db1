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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def project(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, dtype: str, out_dtype: str) -> jax.Array:
    """x @ kernel + bias over the last dim, with factors in `dtype`.

    Args:
      x: [T…, D].  kernel: [D, F].  bias: [F], or None.  out_dtype: of the result, [T…, F].
    """
    return _project(x, kernel, bias, dtype, out_dtype)


def _project(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, dtype: str, out_dtype: str) -> jax.Array:
    result = contract(x.astype(dtype), kernel.astype(dtype), 0, out_dtype)
    return result if bias is None else result + bias.astype(out_dtype)


def _project_forward(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, dtype: str, out_dtype: str) -> tuple:
    # Not `project`, whose custom rule would hide the matmul from the policy of `remat='dots'`, which keeps its result.
    return _project(x, kernel, bias, dtype, out_dtype), (x, kernel, bias)


def _project_backward(dtype: str, out_dtype: str, residuals: tuple, gradient: jax.Array) -> tuple:
    x, kernel, bias = residuals
    gradient = gradient.astype(dtype)
    x_gradient = contract(gradient, kernel.astype(dtype), 1, x.dtype)
    x, gradient = (factor.reshape(-1, factor.shape[-1]) for factor in (x.astype(dtype), gradient))
    kernel_gradient = cpu.kernel_gradient(x, gradient) if target_platform() == 'cpu' else x.T @ gradient
    bias_gradient = None
    if bias is not None:
        bias_gradient = column_sums(gradient)
    return x_gradient, kernel_gradient.astype(kernel.dtype), bias_gradient


project.defvjp(_project_forward, _project_backward)


def column_sums(x: jax.Array) -> jax.Array:
    """[T, F] -> [F] float32."""
    return cpu.column_sums(x) if target_platform() == 'cpu' else x.sum(axis=0, dtype=jnp.float32)


def transpose(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`x.transpose(axes)`, for a factor of a matmul."""
    return cpu.transpose(x, axes) if target_platform() == 'cpu' else x.transpose(axes)


def result_dtype(dtype: str) -> str:
    """Returns the dtype in which XLA writes a matmul result of `dtype`: a CPU has float32 kernels only."""
    return 'float32' if target_platform() == 'cpu' else dtype


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
