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
from bert_jax.model.inputs import Array, Inputs
from bert_jax.model.layer_stack import Gather, run_layers
from bert_jax.model.layers import RMSNorm, parameter, stack
from bert_jax.model.matmul import Matmul
from bert_jax.model.pre_norm import (
    GatedMlp,
    PreNormLayer,
    RotaryAttention,
    Sizes,
    layer_kept_per_token,
    layer_matmuls,
    vocabulary_matmul,
)
from bert_jax.model.rotary import rotations
from bert_jax.model.vocabulary import at_positions, padded_vocab_size, vocabulary_logits, word_embeddings


class EuroBertEncoder(nnx.Module):
    """Word embeddings, layers and a final norm."""

    def __init__(self, model: EuroBert, vocab_size: int, rngs: nnx.Rngs):
        self.word = word_embeddings(vocab_size, model.hidden_size, model.initializer_range, rngs)
        self.layers = stack(functools.partial(_new_layer, model), model.num_layers, rngs)
        self.final_norm = RMSNorm(model.hidden_size, model.rms_norm_eps, model.dtype)
        self.num_layers, self.head_size = model.num_layers, model.hidden_size // model.num_heads
        self.theta, self.dtype = model.rope_theta, model.dtype
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
        by = rotations(inputs.position_ids, self.head_size, self.theta)
        sequence_ids = jnp.asarray(inputs.sequence_ids)

        def apply(layer: PreNormLayer, x: jax.Array, index: jax.Array, _: None) -> jax.Array:
            return layer(x, index, sequence_ids, by, None, key and key.at(index), is_packed)

        x = self.word[...][inputs.input_ids].astype(self.dtype)
        kinds = [None] * self.num_layers
        x = run_layers(self.layers, x, apply, kinds, remat=self.remat, scan=self.scan, gather=gather)
        return self.final_norm(x)


def _new_layer(model: EuroBert, rngs: nnx.Rngs) -> PreNormLayer:
    sizes = Sizes(
        hidden=model.hidden_size,
        intermediate=model.intermediate_size,
        num_heads=model.num_heads,
        num_kv_heads=_num_kv_heads(model),
        in_stddev=model.initializer_range,
        out_stddev=model.initializer_range,
        dtype=model.dtype,
    )
    rate, implementation = model.attention_dropout, model.attention
    return PreNormLayer(
        RotaryAttention(sizes, bias=model.attention_bias, rate=rate, implementation=implementation, rngs=rngs),
        GatedMlp(sizes, jax.nn.silu, bias=model.mlp_bias, rate=0.0, rngs=rngs),
        functools.partial(RMSNorm, model.hidden_size, model.rms_norm_eps, model.dtype),
        attention_rate=0.0,
    )


class EuroBertForMaskedLM(nnx.Module):
    """The encoder with a decoder over the vocabulary, tied to the word embeddings or not."""

    def __init__(self, model: EuroBert, vocab_size: int, rngs: nnx.Rngs):
        """Args: vocab_size, unpadded, from the tokenizer."""
        self.encoder = EuroBertEncoder(model, vocab_size, rngs)
        new_decoder = functools.partial(word_embeddings, vocab_size, model.hidden_size, model.initializer_range)
        self.decoder = None if model.tie_word_embeddings else new_decoder(rngs)
        bias = jnp.zeros(padded_vocab_size(vocab_size))
        self.decoder_bias = parameter(bias, 'vocab') if model.mlp_bias else None
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
        decoder = self.encoder.word if self.decoder is None else self.decoder
        bias = None if self.decoder_bias is None else self.decoder_bias[...]
        x = at_positions(hidden, positions)
        return vocabulary_logits(x, decoder[...], bias, self.vocab_size, self.dtype)

    def nsp_logits(self, hidden: jax.Array, cls_positions: Array) -> None:
        """None: there is no head for pairs."""


def matmuls(model: EuroBert, vocab_size: int, **counts: Any) -> list[Matmul]:
    """The matmuls of one forward pass; see `family.matmuls`."""
    layers = layer_matmuls(model, _num_kv_heads(model), [None] * model.num_layers, **counts)
    return [*layers, vocabulary_matmul(model, vocab_size, **counts)]


def kept_per_token(model: EuroBert, activation_bytes: int, tensor: int) -> float:
    """Bytes that a layer keeps of a token for the backward pass, without its attention scores."""
    return layer_kept_per_token(model, _num_kv_heads(model), activation_bytes, tensor)


def _num_kv_heads(model: EuroBert) -> int:
    return model.num_key_value_heads or model.num_heads
