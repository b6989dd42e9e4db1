"""Layer normalisation and RMS normalisation; their backward pass reads the input instead of stored float32 values.

`T` tokens (any leading dims), `D` features.
"""

import functools
import importlib
import types
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.model.dropout import DropoutKey, dropout
from bert_jax.model.matmul import add_bias, column_sums
from bert_jax.model.platform import target_platform, tensor_parts

_GPU_KERNELS = 'bert_jax.model.gpu_norm'


def add_and_normalize(
    x: jax.Array,
    branch: jax.Array,
    branch_bias: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    eps: float,
    rate: float,
    key: DropoutKey | None,
    site: int,
    num_uses: int = 1,
) -> tuple[jax.Array, ...]:
    """Returns the layer norm of `x + dropout(branch + branch_bias)`, [B, L, D] in the dtype of x, for several uses.

    A kernel adds the gradients of the uses where it reads them, so that their sum is not stored.

    Args:
      x, branch: [B, L, D], the residual stream and the result of a matmul.  branch_bias: [D] float32.
      scale, bias, eps: as of `normalize`.  rate, key, site: as of `dropout`.
    """
    rate = 0.0 if key is None else rate
    kernels = _gpu_kernels() if target_platform() == 'gpu' and tensor_parts() == 1 else None
    if kernels is not None and kernels.suits(x, branch):
        row_keys = key.of_rows(site) if key is not None and rate else jnp.zeros(x.shape[0], jnp.uint32)
        settings = {'eps': eps, 'rate': rate, 'num_uses': num_uses}
        return kernels.add_and_normalize(x, branch, branch_bias, scale, bias, row_keys, **settings)
    total = x + dropout(add_bias(branch, branch_bias), rate, key, site)
    return (normalize(total, scale, bias, eps, str(x.dtype), True),) * num_uses


@functools.cache
def _gpu_kernels() -> types.ModuleType | None:
    """Imports the kernels; None if this version of jax lacks the experimental APIs that they need."""
    try:
        return importlib.import_module(_GPU_KERNELS)
    except ImportError:
        return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float, dtype: str, centre: bool
) -> jax.Array:
    """Divides x by its root mean square over the last dim, computed in float32; returns [T…, D] in `dtype`.

    The backward pass keeps x in its own dtype, and one or two float32 values per token.

    Args:
      x: [T…, D].  scale: [D] float32.  bias: [D] float32, or None.  eps: added to the mean square.
      centre: True subtracts the mean first (layer norm), False does not (RMS norm).
    """
    return _forward(x, scale, bias, eps, dtype, centre)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float, dtype: str, centre: bool
) -> tuple[jax.Array, tuple]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True) if centre else None
    centred = wide if mean is None else wide - mean
    if mean is None or target_platform() == 'cpu':
        square = jnp.square(centred).mean(axis=-1, keepdims=True)
    else:  # both means in one pass over x
        square = jnp.maximum(jnp.square(wide).mean(axis=-1, keepdims=True) - jnp.square(mean), 0.0)
    factor = jax.lax.rsqrt(square + eps)
    normal = centred * factor * scale
    return (normal if bias is None else normal + bias).astype(dtype), (x, scale, bias, mean, factor)


def _backward(eps: float, dtype: str, centre: bool, kept: tuple, gradient: jax.Array) -> tuple:
    x, scale, bias, mean, factor = kept
    # Else XLA computes the gradient from its parts in each of the two passes over it.
    gradient, x, mean, factor = _in_memory((gradient, x, mean, factor))
    wide, of_y = x.astype(jnp.float32), gradient.astype(jnp.float32)
    normal = (wide if mean is None else wide - mean) * factor
    scaled = of_y * scale
    of_x = scaled - normal * (scaled * normal).mean(axis=-1, keepdims=True)
    if centre:
        of_x = of_x - scaled.mean(axis=-1, keepdims=True)
    size = x.shape[-1]
    of_scale = column_sums((of_y * normal).reshape(-1, size))
    # Not by `column_sums`: another matmul that reads the gradient keeps XLA:CPU from fusing the passes over it.
    of_bias = None if bias is None else gradient.reshape(-1, size).sum(axis=0, dtype=jnp.float32)
    # Else XLA computes it again for the dropout of the branch.
    return _in_memory((of_x * factor).astype(x.dtype)), of_scale, of_bias


def _in_memory(values: Any) -> Any:
    return values if target_platform() == 'cpu' else jax.lax.optimization_barrier(values)


normalize.defvjp(_forward, _backward)
