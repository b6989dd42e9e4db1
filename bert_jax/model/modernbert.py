"""ModernBERT (Warner et al. 2024, arXiv 2412.13663).

`B` rows, `L` positions, `D` hidden, `V` vocabulary (padded), `P` predictions and `E` sequences per row.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.config.families import FULL, ModernBert
from bert_jax.model.dropout import DropoutKey, dropout
from bert_jax.model.inputs import Array, Inputs
from bert_jax.model.layer_stack import Gather, run_layers
from bert_jax.model.layers import Dense, LayerNorm, gelu, parameter, stack
from bert_jax.model.matmul import Matmul
from bert_jax.model.pre_norm import (
    Attention,
    GatedMlp,
    PreNormLayer,
    RotaryAttention,
    Sizes,
    layer_kept_per_token,
    layer_matmuls,
    vocabulary_matmul,
)
from bert_jax.model.rotary import Rotations, rotations
from bert_jax.model.vocabulary import at_positions, padded_vocab_size, vocabulary_logits, word_embeddings


class Embeddings(nnx.Module):
    """Word embeddings, normalised; there are no position or token-type embeddings."""

    def __init__(self, model: ModernBert, vocab_size: int, rngs: nnx.Rngs):
        self.word = word_embeddings(vocab_size, model.hidden_size, model.initializer_range, rngs)
        self.norm = LayerNorm(model.hidden_size, model.norm_eps, model.dtype, bias=model.norm_bias)
        self.rate = model.embedding_dropout

    def __call__(self, input_ids: Array, key: DropoutKey | None) -> jax.Array:
        return dropout(self.norm(self.word[...][input_ids]), self.rate, key and key.at(0), site=0)


class ModernBertEncoder(nnx.Module):
    """Embeddings, layers of global and local attention, and a final norm."""

    def __init__(self, model: ModernBert, vocab_size: int, rngs: nnx.Rngs):
        self.embeddings = Embeddings(model, vocab_size, rngs)
        self.layers = stack(functools.partial(_new_layer, model), model.num_layers, rngs)
        self.final_norm = LayerNorm(model.hidden_size, model.norm_eps, model.dtype, bias=model.norm_bias)
        local = Attention(model.local_rope_theta, model.local_attention // 2)
        attention = {kind: Attention(model.global_rope_theta) if kind == FULL else local for kind in model.kinds}
        self.attention = tuple(attention[kind] for kind in model.kinds)
        self.head_size = model.hidden_size // model.num_heads
        self.remat, self.scan = model.remat, model.scan_layers

    def __call__(
        self,
        inputs: Inputs,
        key: DropoutKey | None = None,
        is_packed: bool = True,
        gather: Gather | None = None,
    ) -> jax.Array:
        """Contextual vectors [B, L, D]; without a key nothing is dropped out.

        Args:
          is_packed: False promises that each row is one sequence followed by padding.
          gather: as of `run_layers`.
        """
        by, sequence_ids = self._rotations(inputs), jnp.asarray(inputs.sequence_ids)

        def apply(layer: PreNormLayer, x: jax.Array, index: jax.Array, kind: Attention) -> jax.Array:
            layer_key = key and key.at(index)
            return layer(x, index, sequence_ids, by[kind.theta], kind.radius, layer_key, is_packed)

        x = self.embeddings(inputs.input_ids, key)
        x = run_layers(self.layers, x, apply, self.attention, remat=self.remat, scan=self.scan, gather=gather)
        return self.final_norm(x)

    def _rotations(self, inputs: Inputs) -> dict[float, Rotations]:
        """Computed once for all layers with the same theta."""
        return {each.theta: rotations(inputs.position_ids, self.head_size, each.theta) for each in self.attention}


def _new_layer(model: ModernBert, rngs: nnx.Rngs) -> PreNormLayer:
    """Initialized as Megatron: what writes to the residual stream is smaller by sqrt(2 layers)."""
    sizes = Sizes(
        hidden=model.hidden_size,
        intermediate=model.intermediate_size,
        num_heads=model.num_heads,
        num_kv_heads=model.num_heads,
        in_stddev=model.initializer_range,
        out_stddev=out_stddev(model),
        dtype=model.dtype,
    )
    rate, implementation = model.attention_dropout, model.attention
    return PreNormLayer(
        RotaryAttention(sizes, bias=model.attention_bias, rate=rate, implementation=implementation, rngs=rngs),
        GatedMlp(sizes, gelu, bias=model.mlp_bias, rate=model.mlp_dropout, rngs=rngs),
        functools.partial(LayerNorm, model.hidden_size, model.norm_eps, model.dtype, bias=model.norm_bias),
        attention_rate=rate,
        first_has_norm=False,
    )


def out_stddev(model: ModernBert) -> float:
    """Standard deviation of the initial kernels that write to the residual stream."""
    return model.initializer_range / math.sqrt(2 * model.num_layers)


class PredictionHead(nnx.Module):
    """norm(gelu(dense(x))), before the decoder and before the classifier of a task."""

    def __init__(self, model: ModernBert, rngs: nnx.Rngs):
        size, dtype, bias = model.hidden_size, model.dtype, model.classifier_bias
        self.dense = Dense(size, size, ('embed', 'pooled'), out_stddev(model), dtype, rngs, bias=bias)
        self.norm = LayerNorm(size, model.norm_eps, dtype, bias=model.norm_bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(gelu(self.dense(x)))


class ModernBertForMaskedLM(nnx.Module):
    """The encoder with its masked-LM head, whose decoder is tied to the word embeddings."""

    def __init__(self, model: ModernBert, vocab_size: int, rngs: nnx.Rngs):
        """Args: vocab_size, unpadded, from the tokenizer."""
        self.encoder = ModernBertEncoder(model, vocab_size, rngs)
        self.head = PredictionHead(model, rngs)
        bias = jnp.zeros(padded_vocab_size(vocab_size))
        self.decoder_bias = parameter(bias, 'vocab') if model.decoder_bias else None
        self.vocab_size, self.dtype = vocab_size, model.dtype

    def encode(
        self,
        inputs: Inputs,
        key: DropoutKey | None = None,
        is_packed: bool = True,
        gather: Gather | None = None,
    ) -> jax.Array:
        """Contextual vectors [B, L, D]; arguments as of the encoder."""
        return self.encoder(inputs, key, is_packed, gather)

    def mlm_logits(self, hidden: jax.Array, positions: Array) -> jax.Array:
        """float32 [B, P, V] at the given positions ([B, P] int32) of [B, L, D]; -inf in the padding of V."""
        bias = None if self.decoder_bias is None else self.decoder_bias[...]
        x = self.head(at_positions(hidden, positions))
        return vocabulary_logits(x, self.encoder.embeddings.word[...], bias, self.vocab_size, self.dtype)

    def nsp_logits(self, hidden: jax.Array, cls_positions: Array) -> None:
        """None: there is no head for pairs."""


def layer_types(model: ModernBert, length: int) -> list[tuple[int, bool]]:
    """For each layer, the columns of scores that a position has, and whether a kernel may compute them."""
    local = 3 * (model.local_attention // 2)
    return [(length, True) if kind == FULL or local >= 2 * length else (local, False) for kind in model.kinds]


def matmuls(model: ModernBert, vocab_size: int, **counts: Any) -> list[Matmul]:
    """The matmuls of one forward pass; see `family.matmuls`. Local layers count what their window lets them see."""
    window = 2 * (model.local_attention // 2) + 1
    windows = [None if kind == FULL else window for kind in model.kinds]
    size = model.hidden_size
    layers = layer_matmuls(model, model.num_heads, windows, **counts)
    head = Matmul('masked-LM dense', 1, counts['predictions'], size, size, 1)
    return [*layers, head, vocabulary_matmul(model, vocab_size, **counts)]


def kept_per_token(model: ModernBert, activation_bytes: int, tensor: int) -> float:
    """Bytes that a layer keeps of a token for the backward pass, without its attention scores."""
    masks = model.hidden_size * bool(model.attention_dropout) + model.intermediate_size * bool(model.mlp_dropout)
    return layer_kept_per_token(model, model.num_heads, activation_bytes, tensor) + masks
