"""BERT: embeddings, encoder, pooler, and the two pretraining heads (Devlin et al. 2019).

`B` rows, `L` positions, `D` hidden, `V` vocabulary (padded), `P` predictions and `E` sequences per row, `N` layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax import config
from bert_jax.model.dropout import DropoutKey, dropout
from bert_jax.model.inputs import Array, Inputs
from bert_jax.model.layer_stack import Gather, is_scanned, run_layers
from bert_jax.model.layers import Dense, EncoderLayer, LayerNorm, gelu, parameter, stack, truncated_normal
from bert_jax.model.masked_lm import MaskedLM
from bert_jax.model.matmul import Count, Matmul
from bert_jax.model.platform import target_platform
from bert_jax.model.vocabulary import at_positions, padded_vocab_size, word_embeddings


class Embeddings(nnx.Module):
    """Word, position and token-type embeddings, summed, normalised, dropped out."""

    def __init__(self, model: config.Bert, vocab_size: int, rngs: nnx.Rngs):
        size, init = model.hidden_size, truncated_normal(model.initializer_range)
        self.word = word_embeddings(vocab_size, size, model.initializer_range, rngs)
        self.position = parameter(init(rngs.params(), (model.max_positions, size)), 'positions', 'embed')
        self.token_type = parameter(init(rngs.params(), (2, size)), 'types', 'embed')
        self.norm = LayerNorm(size, model.layer_norm_eps, model.dtype)
        self.rate = model.dropout_rate

    def __call__(self, inputs: Inputs, key: DropoutKey | None) -> jax.Array:
        types = self.token_type[...]
        x = self.word[...][inputs.input_ids] + self.position[...][inputs.position_ids]
        x = x + types[0] + inputs.token_type_ids[..., None] * (types[1] - types[0])
        return dropout(self.norm(x), self.rate, key and key.at(0), site=0)


class Encoder(nnx.Module):
    """N layers whose parameters are stacked along a first dim, run by one `jax.lax.scan` or unrolled."""

    def __init__(self, model: config.Bert, rngs: nnx.Rngs):
        self.layers = stack(lambda rngs: EncoderLayer(model, rngs), model.num_layers, rngs)
        self.num_layers, self.remat, self.scan = model.num_layers, model.remat, model.scan_layers

    def __call__(
        self,
        x: jax.Array,
        sequence_ids: Array,
        key: DropoutKey | None,
        gather: Gather | None = None,
        is_causal: Array | None = None,
    ) -> jax.Array:
        """[B, L, D] -> [B, L, D].

        Args:
          gather: applied to each layer's weights where they are used, and again in the backward pass.
          is_causal: as of `attention.attend`.
        """

        def apply(layer: EncoderLayer, uses: tuple, index: jax.Array, _: None) -> tuple:
            return layer(uses, jnp.asarray(sequence_ids), key and key.at(index), is_causal)

        scan = is_scanned(self.num_layers, self.remat, gather is not None) if self.scan is None else self.scan
        uses = (x,) if scan or target_platform() != 'gpu' else (x, x)  # a loop would copy the second
        kinds = [None] * self.num_layers
        return run_layers(self.layers, uses, apply, kinds, remat=self.remat, scan=scan, gather=gather)[0]


class Bert(nnx.Module):
    """The encoder with its pooler."""

    def __init__(self, model: config.Bert, vocab_size: int, rngs: nnx.Rngs, embeddings: Any = None):
        """Args: vocab_size: rows of the word embeddings, without padding; embeddings: others than new ones."""
        self.embeddings = embeddings or Embeddings(model, vocab_size, rngs)
        self.encoder = Encoder(model, rngs)
        self.pooler = new_pooler(model, rngs)

    def __call__(
        self,
        inputs: Inputs,
        key: DropoutKey | None = None,
        gather: Gather | None = None,
    ) -> jax.Array:
        """Returns contextual vectors [B, L, D]; without a key, no dropout.

        Args:
          gather: as for `Encoder`.
        """
        x = self.embeddings(inputs, key)
        return self.encoder(x, inputs.sequence_ids, key, gather, inputs.is_causal)

    def pool(self, hidden: jax.Array, cls_positions: Array) -> jax.Array:
        """tanh of a dense layer over the [CLS] vectors: [B, L, D], [B, E] -> [B, E, D]."""
        return jnp.tanh(self.pooler(at_positions(hidden, cls_positions)))


def new_encoder(model: config.Bert, vocab_size: int, rngs: nnx.Rngs, embeddings: Any = None) -> Bert:
    """Returns an encoder without a pooler, with random weights; arguments as for `Bert`."""
    encoder = Bert(model, vocab_size, rngs, embeddings)
    del encoder.pooler
    return encoder


def new_pooler(
    model: config.Bert, rngs: nnx.Rngs, initializer: Callable[[float], nnx.Initializer] = truncated_normal
) -> Dense:
    """Creates the dense layer of `Bert.pool` with random weights; initializer: standard deviation -> distribution."""
    size = model.hidden_size
    return Dense(size, size, ('embed', 'pooled'), model.initializer_range, model.dtype, rngs, initializer)


class BertForPreTraining(MaskedLM):
    """BERT with its masked-LM head (decoder tied to the word embeddings) and its next-sentence head."""

    def __init__(self, model: config.Bert, vocab_size: int, rngs: nnx.Rngs):
        size, stddev, dtype = model.hidden_size, model.initializer_range, model.dtype
        self.bert = Bert(model, vocab_size, rngs)
        self.mlm_transform = Dense(size, size, ('embed', 'pooled'), stddev, dtype, rngs)
        self.mlm_norm = LayerNorm(size, model.layer_norm_eps, dtype)
        self.mlm_bias = parameter(jnp.zeros(padded_vocab_size(vocab_size)), 'vocab')
        self.nsp = Dense(size, 2, ('embed', 'labels'), stddev, 'float32', rngs)
        self.vocab_size, self.dtype = vocab_size, dtype

    def encode(
        self,
        inputs: Inputs,
        key: DropoutKey | None = None,
        gather: Gather | None = None,
    ) -> jax.Array:
        """Returns contextual vectors [B, L, D]; arguments as for `Bert`."""
        return self.bert(inputs, key, gather)

    def decoder_inputs(self, hidden: jax.Array, positions: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = self.mlm_transform(at_positions(hidden, positions))
        return self.mlm_norm(gelu(x)), self.bert.embeddings.word[...], self.mlm_bias[...]

    def nsp_logits(self, hidden: jax.Array, cls_positions: Array) -> jax.Array:
        """Returns float32 [B, E, 2]: column 0 'B follows A', column 1 'it does not'."""
        return self.nsp(self.bert.pool(hidden, cls_positions).astype(jnp.float32))


def matmuls(
    model: config.Bert,
    vocab_size: int,
    *,
    rows: int,
    length: Count,
    visible_length: Count,
    predictions: Count,
    sequences: Count,
    tensor: int = 1,
    as_computed: bool = False,  # there is no local attention, which alone depends on it
) -> list[Matmul]:
    """Returns the matmuls of one forward pass; see `family.matmuls`."""
    layers, size, tokens = model.num_layers, model.hidden_size, rows * length
    inner, num_heads = model.intermediate_size // tensor, model.num_heads // tensor
    head_size = size // model.num_heads
    heads_size = num_heads * head_size
    return [
        Matmul('query, key, value', 1, tokens, size, heads_size, 3 * layers),
        Matmul('attention scores', rows * num_heads, length, head_size, visible_length, layers),
        Matmul('attention values', rows * num_heads, length, visible_length, head_size, layers),
        Matmul('attention output', 1, tokens, heads_size, size, layers),
        Matmul('intermediate', 1, tokens, size, inner, layers),
        Matmul('output', 1, tokens, inner, size, layers),
        Matmul('masked-LM transform', 1, predictions, size, size, 1),
        Matmul('vocabulary', 1, predictions, size, vocab_size // tensor, 1),
        Matmul('pooler', 1, sequences, size, size, 1),
        Matmul('next-sentence logits', 1, sequences, size, 2, 1),
    ]


def kept_per_token(model: config.Bert, activation_bytes: int, tensor: int) -> float:
    """Returns the bytes that a layer keeps per token for the backward pass, without its attention scores.

    The inputs of six matmuls, queries, keys and values, the intermediate values before and after gelu, and the inputs
    of two layer norms: read off compiled programs of this model.
    """
    size, a = model.hidden_size, activation_bytes
    return size * (4 * a + 4 * a / tensor) + 2 * a * model.intermediate_size / tensor
