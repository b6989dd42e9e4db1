"""Predicts masked tokens: what the pretraining models have in common.

`B` rows, `L` positions, `D` hidden, `V` vocabulary (padded), `P` predictions per row.
"""

import abc

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.dropout import uniform
from bert_jax.model.inputs import Array
from bert_jax.model.losses import vocabulary_cross_entropy, vocabulary_parts
from bert_jax.model.matmul import add_bias, project
from bert_jax.model.platform import tensor_parts


class MaskedLM(nnx.Module):
    """A model with a decoder over the vocabulary. A subclass sets the attributes and defines `decoder_inputs`.

    Attributes:
      vocab_size: rows of the word embeddings, without padding.
      dtype: of the factors of matmuls.
    """

    vocab_size: int
    dtype: str

    @abc.abstractmethod
    def decoder_inputs(self, hidden: jax.Array, positions: Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Returns the vectors [B, P, D] to decode, the decoder [V, D] and its bias [V], if it has one."""

    def mlm_logits(self, hidden: jax.Array, positions: Array) -> jax.Array:
        """Returns float32 [B, P, V] at the given positions ([B, P] int32) of [B, L, D]; -inf in the padding of V."""
        x, decoder, bias = self.decoder_inputs(hidden, positions)
        return add_bias(project(x, decoder.T, self.dtype, 'float32'), self._masked(bias, decoder))

    def mlm_losses(self, hidden: jax.Array, positions: Array, labels: Array) -> tuple[jax.Array, jax.Array]:
        """Returns (losses, hits), both float32 [B, P]: -log p(label) in nats, and 1 where the label is most likely.

        Args: as of `mlm_logits`; labels: [B, P] int32, the original tokens.
        """
        x, decoder, bias = self.decoder_inputs(hidden, positions)
        bias = self._masked(bias, decoder)
        losses, hits = vocabulary_cross_entropy(
            x.reshape(-1, x.shape[-1]), decoder, bias, labels.reshape(-1), self.dtype
        )
        return losses.reshape(labels.shape), hits.reshape(labels.shape)

    def sample(self, hidden: jax.Array, positions: Array, row_keys: jax.Array) -> jax.Array:
        """Returns [B, P] int32, tokens drawn from the distributions at the given positions, without a gradient.

        By the Gumbel-max trick with hashed noise, in chunks of the vocabulary: the same tokens on any mesh, but for
        logits that are equal within rounding.

        Args:
          row_keys: [B] uint32 (`DropoutKey.of_rows`).
        """
        x, decoder, bias = jax.lax.stop_gradient(self.decoder_inputs(hidden, positions))
        bias, shape = self._masked(bias, decoder), jnp.shape(positions)
        slot = jnp.arange(shape[1], dtype=jnp.uint32)[:, None] * jnp.uint32(self.vocab_size)
        best, token = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
        for part in vocabulary_parts(len(decoder), tensor_parts()):
            logits = add_bias(project(x, decoder[part].T, self.dtype, 'float32'), bias[part])  # BPC
            index = jnp.arange(part.start, part.stop, dtype=jnp.uint32)
            logits -= jnp.log(-jnp.log(uniform(slot + index, row_keys[:, None, None])))
            is_better = logits.max(axis=-1) > best
            token = jnp.where(is_better, part.start + jnp.argmax(logits, axis=-1), token).astype(jnp.int32)
            best = jnp.maximum(best, logits.max(axis=-1))
        return token

    def _masked(self, bias: jax.Array | None, decoder: jax.Array) -> jax.Array:
        bias = jnp.zeros(len(decoder)) if bias is None else bias
        return jnp.where(jnp.arange(len(decoder)) < self.vocab_size, bias, -jnp.inf)
