"""Word embeddings, and the decoder that predicts tokens of the vocabulary.

`B` rows, `L` positions, `D` hidden, `V` vocabulary (padded), `P` predictions per row.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.inputs import Array
from bert_jax.model.layers import parameter, truncated_normal

VOCABULARY_MULTIPLE = 128


def padded_vocab_size(vocab_size: int) -> int:
    """Returns the size of the vocabulary dim as stored: the next multiple of 128, on any mesh."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def word_embeddings(vocab_size: int, size: int, stddev: float, rngs: nnx.Rngs) -> nnx.Param:
    """Creates word embeddings [V, D]; padding rows are 0, so that they add nothing to the norm of the table."""
    rows = padded_vocab_size(vocab_size)
    values = truncated_normal(stddev)(rngs.params(), (rows, size))
    return parameter(jnp.where(jnp.arange(rows)[:, None] < vocab_size, values, 0.0), 'vocab', 'embed')


def at_positions(hidden: jax.Array, positions: Array) -> jax.Array:
    """[B, L, D] at [B, P] -> [B, P, D]."""
    return jnp.take_along_axis(hidden, positions[..., None], axis=1)
