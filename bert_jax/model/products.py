"""Matrix products of the model: one function, whose gradient suits each kind of device.

`T` tokens (any leading dims), `D` in, `F` out.
"""

import jax


@jax.custom_vjp
def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel over the last dim: [..., D], [D, F] -> [..., F]."""
    return x @ kernel


def _forward(x: jax.Array, kernel: jax.Array) -> tuple:
    return project(x, kernel), (x, kernel)


def _backward(kept: tuple, gradient: jax.Array) -> tuple:
    x, kernel = kept
    flat_x, flat_gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return gradient @ kernel.T, jax.lax.platform_dependent(
        flat_x, flat_gradient, cpu=_kernel_gradient_on_cpu, default=_kernel_gradient
    )


def _kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """[T, D], [T, F] -> [D, F]."""
    return x.T @ gradient


def _kernel_gradient_on_cpu(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """The same with the first factor transposed in memory and the longer dim last.

    XLA's CPU kernels are up to twice as fast so; the barriers keep the compiler from undoing it.
    """
    keep = jax.lax.optimization_barrier
    if gradient.shape[1] >= x.shape[1]:
        return keep(x.T) @ gradient
    return keep(keep(gradient.T) @ x).T


project.defvjp(_forward, _backward)
