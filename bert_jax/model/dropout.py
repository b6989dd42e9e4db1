"""Dropout with hashed masks: the same on any mesh, for any split into microbatches, in any kernel."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from bert_jax.model.platform import target_platform

_GOLDEN = 0x9E3779B9  # 2**32 / the golden ratio


@dataclasses.dataclass(frozen=True)
class DropoutKey:
    """The key of dropout masks, independent of the mesh, the microbatch and any generator state.

    base: uint32 scalar from (seed, step), see `dropout_base`.  rows: [B] uint32, global row indices in the batch.
    layer: uint32 scalar.
    """

    base: jax.Array
    rows: jax.Array
    layer: jax.Array | int = 0

    def at(self, layer: jax.Array | int) -> 'DropoutKey':
        """Returns the key of a layer (0 is the embeddings)."""
        return dataclasses.replace(self, layer=layer)

    def of_part(self, part: int) -> 'DropoutKey':
        """Returns the key of another part of a model, which has its own layers; part: from 1."""
        return dataclasses.replace(self, base=_hash32(self.base + jnp.uint32(part)))

    def of_rows(self, site: int) -> jax.Array:
        """Returns [B] uint32, the keys of the rows for `is_kept`. site: distinguishes the dropouts of one layer."""
        site_key = _hash32(self.base ^ _hash32(jnp.uint32(site) + 16 * jnp.asarray(self.layer, jnp.uint32) + 1))
        return _hash32(site_key ^ (self.rows * jnp.uint32(_GOLDEN)))


jax.tree_util.register_dataclass(DropoutKey, data_fields=['base', 'rows', 'layer'], meta_fields=[])


def _hash32(x: jax.Array) -> jax.Array:
    """Applies the 32-bit finaliser `lowbias32` (Wellons 2018, "Prospecting for hash functions")."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def dropout_base(seed: int | jax.Array, step: jax.Array) -> jax.Array:
    """Derives a uint32 scalar from a run's seed and a step."""
    return _hash32(_hash32(jnp.uint32(seed) + jnp.uint32(_GOLDEN)) ^ step.astype(jnp.uint32))


def is_kept(element: jax.Array, row_keys: jax.Array, rate: float) -> jax.Array:
    """Returns bool, False with probability `rate`.

    Args:
      element: uint32, the index of an element in its row.  row_keys: `DropoutKey.of_rows`, broadcast to it.
    """
    return is_kept_at(spread(element), row_keys, rate)


def spread(element: jax.Array) -> jax.Array:
    """Returns uint32 for `is_kept_at`. It is linear: kernels spread rows and columns and add, one per element."""
    return element * jnp.uint32(_GOLDEN)


def is_kept_at(spread_element: jax.Array, row_keys: jax.Array, rate: float) -> jax.Array:
    """Returns what `is_kept` does, for an element that is already `spread`."""
    return _hash32(spread_element ^ row_keys) >= jnp.uint32(round(rate * 2**32))


def uniform(element: jax.Array, row_keys: jax.Array) -> jax.Array:
    """Returns float32 above 0 and below 1 by the hash of `is_kept`, with the same arguments."""
    return ((_hash32(spread(element) ^ row_keys) >> 9).astype(jnp.float32) + 0.5) * 2.0**-23


def dropout(x: jax.Array, rate: float, key: DropoutKey | None, site: int) -> jax.Array:
    """Zeroes each element with probability `rate` and scales the rest (Srivastava et al. 2014).

    The mask is a hash of (seed, step, layer, site, global row, element of the row): the same on any mesh and for any
    split into microbatches, and on a CPU an order of magnitude cheaper than `jax.random.bernoulli`.

    Args:
      x: [B, ...].  key: None switches dropout off.  site: distinguishes the dropouts of one layer.
    """
    return x if key is None or rate == 0.0 else _dropout(x, key, rate, site)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dropout(x: jax.Array, key: DropoutKey, rate: float, site: int) -> jax.Array:
    zero = jnp.zeros((), x.dtype)
    if target_platform() != 'cpu':  # else XLA:GPU keeps an array of zeros, from which all dropouts of a step read
        zero = jax.lax.optimization_barrier(zero)
    scaled = x * jnp.asarray(1.0 / (1.0 - rate), x.dtype)
    return jnp.where(kept(x.shape, rate, key, site), scaled, zero)


def _forward(x: jax.Array, key: DropoutKey, rate: float, site: int) -> tuple[jax.Array, DropoutKey]:
    return _dropout(x, key, rate, site), key


def _backward(rate: float, site: int, key: DropoutKey, gradient: jax.Array) -> tuple[jax.Array, None]:
    if target_platform() != 'cpu':  # else XLA keeps the mask instead of computing it again
        key = jax.lax.optimization_barrier(key)
    return _dropout(gradient, key, rate, site), None


_dropout.defvjp(_forward, _backward)


def kept(shape: tuple[int, ...], rate: float, key: DropoutKey, site: int) -> jax.Array:
    """Returns bool [shape], the mask of `dropout`: False with probability `rate`. The first dim is that of the rows."""
    row_keys = key.of_rows(site).reshape((shape[0],) + (1,) * (len(shape) - 1))
    element = jnp.zeros((1,) * len(shape), jnp.uint32)
    for dim in range(1, len(shape)):
        iota = jax.lax.broadcasted_iota(jnp.uint32, (1,) + shape[1:], dim)
        element = element * jnp.uint32(shape[dim]) + iota
    return is_kept(element, row_keys, rate)
