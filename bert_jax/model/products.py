"""The matrix products of the model, whose form suits the kind of device that a program is compiled for.

`T` tokens (any leading dims), `D` in, `F` out.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar('platform', default=None)


@contextlib.contextmanager
def compiled_for(platform: str) -> Iterator[None]:
    """What is traced inside is for devices of this platform; elsewhere it is for jax's default."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def target_platform() -> str | None:
    """What `compiled_for` said; None outside of it."""
    return _platform.get()


def _for_cpu() -> bool:
    return (target_platform() or jax.default_backend()) == 'cpu'


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def project(x: jax.Array, kernel: jax.Array, bias: jax.Array, dtype: str, out_dtype: str) -> jax.Array:
    """x @ kernel + bias over the last dim, the factors in `dtype`, summed in float32.

    Args:
      x: [T…, D].  kernel: [D, F].  bias: [F].  out_dtype: of the result, [T…, F].
    """
    return _dot(x.astype(dtype), kernel.astype(dtype), 0, out_dtype) + bias.astype(out_dtype)


def _forward(x: jax.Array, kernel: jax.Array, bias: jax.Array, dtype: str, out_dtype: str) -> tuple:
    return project(x, kernel, bias, dtype, out_dtype), (x, kernel)


def _backward(dtype: str, out_dtype: str, kept: tuple, gradient: jax.Array) -> tuple:
    x, kernel = kept
    gradient = gradient.astype(dtype)
    of_x = _dot(gradient, kernel.astype(dtype), 1, x.dtype)
    return of_x, _kernel_gradient(x.astype(dtype), gradient).astype(kernel.dtype), _bias_gradient(gradient)


project.defvjp(_forward, _backward)


@jax.custom_vjp
def multiply(x: jax.Array, y: jax.Array) -> jax.Array:
    """x @ y for each of the leading dims, which both have: [..., M, K], [..., K, N] -> float32 [..., M, N]."""
    return _dot(x, y, 0, jnp.float32)


def _multiply_backward(kept: tuple, gradient: jax.Array) -> tuple:
    x, y = kept
    gradient = gradient.astype(x.dtype)
    turned = permuted(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))
    return _dot(gradient, y, 1, jnp.float32).astype(x.dtype), _dot(turned, gradient, 0, jnp.float32).astype(y.dtype)


multiply.defvjp(lambda x, y: (multiply(x, y), (x, y)), _multiply_backward)


def sums_in(dtype: str) -> str:
    """The type that a product of factors in `dtype` comes out in before it is rounded to another.

    On a CPU float32: XLA has fast kernels for that, of bfloat16 factors as well.
    """
    return 'float32' if _for_cpu() else dtype


def _dot(x: jax.Array, y: jax.Array, dim: int, out_dtype: str) -> jax.Array:
    """The last dim of x against the first or second of the matrix y, or of each matrix where both have leading dims."""
    leading = tuple(range(y.ndim - 2))
    dims = (((x.ndim - 1,), (len(leading) + dim,)), (leading, leading))
    return jax.lax.dot_general(x, y, dims, preferred_element_type=sums_in(out_dtype)).astype(out_dtype)


def _kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """[T…, D], [T…, F] -> [D, F].

    On a CPU the first factor is transposed in memory and the longer dim comes last: XLA's kernels are up to twice as
    fast so.
    """
    flat_x, flat_gradient = (factor.reshape(-1, factor.shape[-1]) for factor in (x, gradient))
    if not _for_cpu():
        return flat_x.T @ flat_gradient
    keep = jax.lax.optimization_barrier
    if gradient.shape[-1] >= x.shape[-1]:
        return keep(_dot(permuted(flat_x, (1, 0)), flat_gradient, 0, jnp.float32))
    return keep(_dot(permuted(flat_gradient, (1, 0)), flat_x, 0, jnp.float32)).T


def _bias_gradient(gradient: jax.Array) -> jax.Array:
    """[T…, F] -> [F] float32, the sum. On a CPU as a product, which XLA works out ten times as fast as its sums."""
    flat = gradient.reshape(-1, gradient.shape[-1])
    if not _for_cpu():
        return flat.sum(axis=0, dtype=jnp.float32)
    rows = 1 if gradient.dtype == jnp.float32 else 8  # its kernels of bfloat16 are slow below that
    return _dot(jnp.ones((rows, len(flat)), gradient.dtype), flat, 0, jnp.float32)[0]


def permuted(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`x.transpose(axes)`, for a product.

    On a CPU in memory: the barrier keeps the compiler from folding it into the product, whose kernels want the dim that
    they sum over last. Behind the barrier each dim that can be halved lies in two, and is joined after it: XLA works
    a product of bfloat16 out in float32 where a factor is a plain transposition.
    """
    if not _for_cpu():
        return x.transpose(axes)
    halved = [(size // 2, 2) if size % 2 == 0 else (size, 1) for size in x.shape]
    order = [2 * axis + half for axis in axes for half in (0, 1)]
    apart = x.reshape([part for halves in halved for part in halves]).transpose(order)
    return jax.lax.optimization_barrier(apart).reshape([x.shape[axis] for axis in axes])
