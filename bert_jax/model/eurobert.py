"""EuroBERT (Boizard et al. 2025, arXiv 2503.05500): RMSNorm, SwiGLU, rotary positions, grouped-query attention.

`B` rows, `L` positions, `D` hidden, `V` vocabulary (padded), `P` predictions and `E` sequences per row.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.config.families import EuroBert
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.inputs import Array
from bert_jax.model.layers import RMSNorm, parameter, silu
from bert_jax.model.matmul import Matmul
from bert_jax.model.pre_norm import (
    Attention,
    GatedMlp,
    PreNormEncoder,
    PreNormForMaskedLM,
    PreNormLayer,
    RotaryAttention,
    layer_matmuls,
    vocabulary_matmul,
)
from bert_jax.model.vocabulary import at_positions, padded_vocab_size, word_embeddings


class Embeddings(nnx.Module):
    """Word embeddings; there are no position or token-type embeddings."""

    def __init__(self, model: EuroBert, vocab_size: int, rngs: nnx.Rngs):
        self.word = word_embeddings(vocab_size, model.hidden_size, model.initializer_range, rngs)
        self.dtype = model.dtype

    def __call__(self, input_ids: Array, _: DropoutKey | None) -> jax.Array:
        return self.word[...][input_ids].astype(self.dtype)


def new_encoder(model: EuroBert, vocab_size: int, rngs: nnx.Rngs) -> PreNormEncoder:
    """Returns an encoder with random weights."""
    embeddings = Embeddings(model, vocab_size, rngs)
    attention = [Attention(model.rope_theta)] * model.num_layers
    return PreNormEncoder(model, embeddings, functools.partial(new_layer, model), _new_norm(model), attention, rngs)


def new_layer(model: EuroBert, rngs: nnx.Rngs) -> PreNormLayer:
    """Returns a layer with random weights."""
    mlp = GatedMlp(model, silu, model.initializer_range, 0.0, rngs)
    return PreNormLayer(RotaryAttention(model, model.initializer_range, rngs), mlp, functools.partial(_new_norm, model))


def _new_norm(model: EuroBert) -> RMSNorm:
    return RMSNorm(model.hidden_size, model.rms_norm_eps, model.dtype)


class EuroBertForMaskedLM(PreNormForMaskedLM):
    """The encoder with a decoder over the vocabulary, tied to the word embeddings or not."""

    def __init__(self, model: EuroBert, vocab_size: int, rngs: nnx.Rngs):
        """Args: vocab_size: rows of the word embeddings, without padding."""
        self.encoder = new_encoder(model, vocab_size, rngs)
        new_decoder = functools.partial(word_embeddings, vocab_size, model.hidden_size, model.initializer_range)
        self.decoder = None if model.tie_word_embeddings else new_decoder(rngs)
        bias = jnp.zeros(padded_vocab_size(vocab_size))
        self.decoder_bias = parameter(bias, 'vocab') if model.mlp_bias else None
        self.vocab_size, self.dtype = vocab_size, model.dtype

    def decoder_inputs(self, hidden: jax.Array, positions: Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        decoder = self.encoder.embeddings.word if self.decoder is None else self.decoder
        bias = None if self.decoder_bias is None else self.decoder_bias[...]
        return at_positions(hidden, positions), decoder[...], bias


def matmuls(model: EuroBert, vocab_size: int, **counts: Any) -> list[Matmul]:
    """Returns the matmuls of one forward pass; see `family.matmuls`."""
    layers = layer_matmuls(model, [None] * model.num_layers, **counts)
    return [*layers, vocabulary_matmul(model, vocab_size, **counts)]
