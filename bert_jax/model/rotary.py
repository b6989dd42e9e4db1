"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864).

`B` rows, `L` positions, `H` heads, `K` head size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.model.inputs import Array


class Rotations(NamedTuple):
    """The angles by which queries and keys are rotated; cosines and sines are float32 [B, L, 1, K / 2]."""

    cos: jax.Array
    sin: jax.Array


def rotations(position_ids: Array, head_size: int, theta: float) -> Rotations:
    """Angles for every position: `position * theta^(-2i / K)` for the i-th pair of a head.

    Args:
      position_ids: [B, L] int32, the position within its own sequence.
      theta: the base of the wavelengths.
    """
    inverse_frequencies = (1.0 / theta ** (np.arange(0, head_size, 2, dtype=np.float32) / head_size)).astype(np.float32)
    angles = jnp.asarray(position_ids, jnp.float32)[..., None, None] * inverse_frequencies
    # XLA fuses what is cheap into every use; it would compute these again for each head, layer and pass.
    return jax.lax.optimization_barrier(Rotations(jnp.cos(angles), jnp.sin(angles)))


def rotate(x: jax.Array, by: Rotations) -> jax.Array:
    """[B, L, H, K] with element i of the first half of each head rotated against element i of the second half.

    Computed in float32, returned in the dtype of `x`.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate((first * by.cos - second * by.sin, second * by.cos + first * by.sin), axis=-1)
    return rotated.astype(x.dtype)
