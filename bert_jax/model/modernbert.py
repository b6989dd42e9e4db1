"""ModernBERT (Warner et al. 2024, arXiv 2412.13663).

`B` rows, `L` positions, `D` hidden, `V` vocabulary (padded), `P` predictions and `E` sequences per row.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.config.families import FULL, SLIDING, ModernBert
from bert_jax.model.dropout import DropoutKey, dropout
from bert_jax.model.inputs import Array
from bert_jax.model.layers import Dense, LayerNorm, gelu, parameter
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
    """Word embeddings, normalised; there are no position or token-type embeddings."""

    def __init__(self, model: ModernBert, vocab_size: int, rngs: nnx.Rngs):
        self.word = word_embeddings(vocab_size, model.hidden_size, model.initializer_range, rngs)
        self.norm = LayerNorm(model.hidden_size, model.norm_eps, model.dtype, bias=model.norm_bias)
        self.rate = model.embedding_dropout

    def __call__(self, input_ids: Array, key: DropoutKey | None) -> jax.Array:
        return dropout(self.norm(self.word[...][input_ids]), self.rate, key and key.at(0), site=0)


def new_encoder(model: ModernBert, vocab_size: int, rngs: nnx.Rngs, embeddings: Any = None) -> PreNormEncoder:
    """Returns an encoder with layers of global and local attention, with random weights.

    Args: embeddings: others than new ones.
    """
    attention = {
        FULL: Attention(model.global_rope_theta),
        SLIDING: Attention(model.local_rope_theta, model.local_attention // 2),
    }
    embeddings = embeddings or Embeddings(model, vocab_size, rngs)
    kinds = [attention[kind] for kind in model.kinds]
    return PreNormEncoder(model, embeddings, functools.partial(new_layer, model), _new_norm(model), kinds, rngs)


def new_layer(model: ModernBert, rngs: nnx.Rngs) -> PreNormLayer:
    """Returns a layer with random weights."""
    return PreNormLayer(
        RotaryAttention(model, out_stddev(model), rngs),
        GatedMlp(model, gelu, out_stddev(model), model.mlp_dropout, rngs),
        functools.partial(_new_norm, model),
        output_rate=model.attention_dropout,
        first_has_norm=False,
    )


def _new_norm(model: ModernBert) -> LayerNorm:
    return LayerNorm(model.hidden_size, model.norm_eps, model.dtype, bias=model.norm_bias)


def out_stddev(model: ModernBert) -> float:
    """Returns the standard deviation of the initial kernels that write to the residual stream, as in Megatron."""
    return model.initializer_range / math.sqrt(2 * model.num_layers)


class PredictionHead(nnx.Module):
    """norm(gelu(dense(x))), before the decoder and before the classifier of a task."""

    def __init__(self, model: ModernBert, rngs: nnx.Rngs):
        size, dtype, bias = model.hidden_size, model.dtype, model.classifier_bias
        self.dense = Dense(size, size, ('embed', 'pooled'), out_stddev(model), dtype, rngs, bias=bias)
        self.norm = LayerNorm(size, model.norm_eps, dtype, bias=model.norm_bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(gelu(self.dense(x)))


class ModernBertForMaskedLM(PreNormForMaskedLM):
    """The encoder with its masked-LM head, whose decoder is tied to the word embeddings."""

    def __init__(self, model: ModernBert, vocab_size: int, rngs: nnx.Rngs):
        """Args: vocab_size: rows of the word embeddings, without padding."""
        self.encoder = new_encoder(model, vocab_size, rngs)
        self.head = PredictionHead(model, rngs)
        bias = jnp.zeros(padded_vocab_size(vocab_size))
        self.decoder_bias = parameter(bias, 'vocab') if model.decoder_bias else None
        self.vocab_size, self.dtype = vocab_size, model.dtype

    def decoder_inputs(self, hidden: jax.Array, positions: Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        bias = None if self.decoder_bias is None else self.decoder_bias[...]
        return self.head(at_positions(hidden, positions)), self.encoder.embeddings.word[...], bias


def attention_radii(model: ModernBert) -> list[int | None]:
    """Returns for each layer the positions that a position sees to either side; None for all."""
    return [None if kind == FULL else model.local_attention // 2 for kind in model.kinds]


def matmuls(model: ModernBert, vocab_size: int, **counts: Any) -> list[Matmul]:
    """Returns the matmuls of one forward pass; see `family.matmuls`."""
    size = model.hidden_size
    layers = layer_matmuls(model, attention_radii(model), **counts)
    head = Matmul('masked-LM dense', 1, counts['predictions'], size, size, 1)
    return [*layers, head, vocabulary_matmul(model, vocab_size, **counts)]
