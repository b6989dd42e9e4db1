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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def project(x: jax.Array, kernel: jax.Array, dtype: str, out_dtype: str) -> jax.Array:
    """x @ kernel over the last dim, the factors in `dtype`, summed in float32.

    Args:
      x: [T…, D].  kernel: [D, F].  out_dtype: of the result, [T…, F].
    """
    return _dot(x.astype(dtype), kernel.astype(dtype), 0, out_dtype)


def _forward(x: jax.Array, kernel: jax.Array, dtype: str, out_dtype: str) -> tuple:
    return project(x, kernel, dtype, out_dtype), (x, kernel)


def _backward(dtype: str, out_dtype: str, kept: tuple, gradient: jax.Array) -> tuple:
    x, kernel = kept
    gradient = gradient.astype(dtype)
    of_x = _dot(gradient, kernel.astype(dtype), 1, x.dtype)
    flat_x, flat_gradient = x.astype(dtype).reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return of_x, _kernel_gradient(flat_x, flat_gradient).astype(kernel.dtype)


project.defvjp(_forward, _backward)


def _dot(x: jax.Array, y: jax.Array, dim: int, out_dtype: str) -> jax.Array:
    """The last dim of x against a dim of the matrix y.

    On a CPU the product comes out in float32 first: XLA has fast kernels for that, of bfloat16 factors as well.
    """
    dims = (((x.ndim - 1,), (dim,)), ((), ()))
    product = jax.lax.dot_general(x, y, dims, preferred_element_type=jnp.float32 if _for_cpu() else out_dtype)
    return product.astype(out_dtype)


def _kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """[T, D], [T, F] -> [D, F].

    On a CPU the first factor is transposed in memory and the longer dim comes last: XLA's kernels are up to twice as
    fast so. The barriers keep the compiler from undoing it.
    """
    if not _for_cpu():
        return x.T @ gradient
    keep = jax.lax.optimization_barrier
    if gradient.shape[1] >= x.shape[1]:
        return _dot(keep(x.T), gradient, 0, jnp.float32)
    return keep(_dot(keep(gradient.T), x, 0, jnp.float32)).T
