"""The parts of recent encoders: pre-norm layers, rotary positions, gated feed-forward layers.

`B` rows, `L` positions, `D` hidden, `F` intermediate, `H` heads, `G` key and value heads, `K` head size.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.config.families import PreNorm
from bert_jax.model.attention import attend
from bert_jax.model.dropout import DropoutKey, dropout
from bert_jax.model.inputs import Array, Inputs
from bert_jax.model.layer_stack import Gather, run_layers
from bert_jax.model.layers import Dense, LayerNorm, RMSNorm, apply_together, gated, stack
from bert_jax.model.local_attention import is_local, num_blocks
from bert_jax.model.masked_lm import MaskedLM
from bert_jax.model.matmul import Count, Matmul
from bert_jax.model.rotary import Rotations, rotate, rotations

_ATTENTION, _MLP = 2, 3  # sites of dropout in a layer; `attend` has site 1


class Attention(NamedTuple):
    """How one kind of layer attends.

    Attributes:
      theta: base of the rotary wavelengths.
      radius: positions that a position sees to either side; None for the whole sequence.
    """

    theta: float
    radius: int | None = None


class LayerInputs(NamedTuple):
    """What a layer reads besides the residual stream.

    Attributes:
      sequence_ids: [B, L] int32; attention stays within equal ids.
      by: the rotation of every position.
      radius: as in `Attention`.
      key: dropout key of the layer; None for no dropout.
      is_causal: as of `attention.attend`.
    """

    sequence_ids: jax.Array
    by: Rotations
    radius: int | None
    key: DropoutKey | None
    is_causal: Array | None = None


class RotaryAttention(nnx.Module):
    """Multi-head self-attention with rotary positions; several query heads may share a key and value head."""

    def __init__(self, model: PreNorm, out_stddev: float, rngs: nnx.Rngs):
        """Args: out_stddev, of the initial kernel that writes to the residual stream."""
        D, K = model.hidden_size, model.hidden_size // model.num_heads
        kv_size, stddev = model.num_kv_heads * K, model.initializer_range
        dense = functools.partial(Dense, dtype=model.dtype, rngs=rngs, bias=model.attention_bias)
        self.query = dense(D, D, ('embed', 'heads'), stddev)
        self.key = dense(D, kv_size, ('embed', 'heads'), stddev)
        self.value = dense(D, kv_size, ('embed', 'heads'), stddev)
        self.output = dense(D, D, ('heads', 'embed'), out_stddev)
        self.num_heads, self.num_kv_heads, self.head_size = model.num_heads, model.num_kv_heads, K
        self.rate, self.implementation = model.attention_dropout, model.attention

    def __call__(self, x: jax.Array, inputs: LayerInputs) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        sequence_ids, by, radius, key, is_causal = inputs
        q, k, v = apply_together(x, self.query, self.key, self.value)
        q = self._flat(rotate(self._heads(q, self.num_heads), by))
        k = self._flat(rotate(self._heads(k, self.num_kv_heads), by))
        settings = self.num_heads, self.rate, key, self.implementation, radius, is_causal
        attended = attend(q, k, v, sequence_ids, *settings)
        return self.output(attended)

    def _heads(self, x: jax.Array, num_heads: int) -> jax.Array:
        return x.reshape(*x.shape[:2], num_heads, self.head_size)

    def _flat(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], -1)


class GatedMlp(nnx.Module):
    """`output(activation(gate(x)) * up(x))` (Shazeer 2020, "GLU variants improve Transformer")."""

    def __init__(
        self,
        model: PreNorm,
        activation: Callable[[jax.Array], jax.Array],
        out_stddev: float,
        rate: float,
        rngs: nnx.Rngs,
    ):
        """Args: out_stddev, as of `RotaryAttention`; rate, of the dropout."""
        D, F, stddev = model.hidden_size, model.intermediate_size, model.initializer_range
        dense = functools.partial(Dense, dtype=model.dtype, rngs=rngs, bias=model.mlp_bias)
        self.gate = dense(D, F, ('embed', 'mlp'), stddev)
        self.up = dense(D, F, ('embed', 'mlp'), stddev)
        self.output = dense(F, D, ('mlp', 'embed'), out_stddev)
        self.activation, self.rate = activation, rate

    def __call__(self, x: jax.Array, key: DropoutKey | None) -> jax.Array:
        """[B, L, D] -> [B, L, D]; dropout, with a key, is on the gated values [B, L, F]."""
        gate, up = apply_together(x, self.gate, self.up)
        return self.output(dropout(gated(self.activation, gate, up), self.rate, key, _MLP))


class PreNormLayer(nnx.Module):
    """Attention and feed-forward, each after a norm of its input and added to the residual stream."""

    def __init__(
        self,
        attention: RotaryAttention,
        mlp: GatedMlp,
        new_norm: Callable[[], LayerNorm | RMSNorm],
        *,
        output_rate: float = 0.0,
        first_has_norm: bool = True,
    ):
        """Args: output_rate, of the dropout of attention's output; first_has_norm, before the attention of layer 1."""
        self.attention_norm = new_norm()
        self.attention = attention
        self.mlp_norm = new_norm()
        self.mlp = mlp
        self.rate, self.first_has_norm = output_rate, first_has_norm

    def __call__(self, x: jax.Array, index: jax.Array, inputs: LayerInputs) -> jax.Array:
        """[B, L, D] -> [B, L, D]. index: of the layer, from 1."""
        normed = self.attention_norm(x)
        if not self.first_has_norm:
            normed = jnp.where(index == 1, x, normed)
        x = x + dropout(self.attention(normed, inputs), self.rate, inputs.key, _ATTENTION)
        return x + self.mlp(self.mlp_norm(x), inputs.key)


class Embeddings(Protocol):
    """[B, L] token ids and a dropout key -> [B, L, D]; `word` is the table, [V, D]."""

    word: nnx.Param

    def __call__(self, input_ids: Array, key: DropoutKey | None, /) -> jax.Array: ...


class PreNormEncoder(nnx.Module):
    """Embeddings, pre-norm layers and a final norm."""

    def __init__(
        self,
        model: PreNorm,
        embeddings: Embeddings,
        new_layer: Callable[[nnx.Rngs], PreNormLayer],
        final_norm: LayerNorm | RMSNorm,
        attention: Sequence[Attention],
        rngs: nnx.Rngs,
    ):
        """Args: attention, that of each layer."""
        self.embeddings = embeddings
        self.layers = stack(new_layer, model.num_layers, rngs)
        self.final_norm = final_norm
        self.attention = tuple(attention)
        self.head_size = model.hidden_size // model.num_heads
        self.remat, self.scan = model.remat, model.scan_layers

    def __call__(self, inputs: Inputs, key: DropoutKey | None = None, gather: Gather | None = None) -> jax.Array:
        """Returns contextual vectors [B, L, D]; arguments as for `PretrainingModel.encode`."""
        thetas = {each.theta for each in self.attention}
        by = {theta: rotations(inputs.position_ids, self.head_size, theta) for theta in thetas}
        sequence_ids = jnp.asarray(inputs.sequence_ids)

        def apply(layer: PreNormLayer, x: jax.Array, index: jax.Array, kind: Attention) -> jax.Array:
            own = key and key.at(index)
            return layer(x, index, LayerInputs(sequence_ids, by[kind.theta], kind.radius, own, inputs.is_causal))

        x = self.embeddings(inputs.input_ids, key)
        x = run_layers(self.layers, x, apply, self.attention, remat=self.remat, scan=self.scan, gather=gather)
        return self.final_norm(x)


class PreNormForMaskedLM(MaskedLM):
    """What the masked-LM models have in common; a subclass sets `encoder`."""

    encoder: PreNormEncoder

    def encode(self, inputs: Inputs, key: DropoutKey | None = None, gather: Gather | None = None) -> jax.Array:
        """Returns contextual vectors [B, L, D]; arguments as for `PretrainingModel.encode`."""
        return self.encoder(inputs, key, gather)

    def nsp_logits(self, hidden: jax.Array, cls_positions: Array) -> None:
        """Returns None, because there is no head for pairs."""


# --- What a layer costs. ---


def layer_matmuls(
    model: PreNorm,
    radii: Sequence[int | None],
    *,
    rows: int,
    length: Count,
    visible_length: Count,
    tensor: int = 1,
    as_computed: bool = False,
    **_: Any,
) -> list[Matmul]:
    """Returns the matmuls of all layers; those of attention are listed for each radius.

    Args:
      radii: for each layer, as in `Attention`.
      rows, length, visible_length, tensor, as_computed: as in `family.matmuls`.
    """
    layers, size, tokens = len(radii), model.hidden_size, rows * length
    inner, num_heads = model.intermediate_size // tensor, model.num_heads // tensor
    head_size = size // model.num_heads
    attention = []
    for radius in dict.fromkeys(radii):
        count, name = radii.count(radius), '' if radius is None else ' (local)'
        batch, m, n = rows * num_heads, length, visible_length
        if as_computed and is_local(radius, int(length)):
            batch, m, n = batch * num_blocks(radius, int(length)), radius, 3 * radius
        elif radius is not None and not as_computed:
            n = min(visible_length, 2 * radius + 1)
        attention += [
            Matmul(f'attention scores{name}', batch, m, head_size, n, count),
            Matmul(f'attention values{name}', batch, m, n, head_size, count),
        ]
    return [
        Matmul('query', 1, tokens, size, num_heads * head_size, layers),
        Matmul('key, value', 1, tokens, size, model.num_kv_heads * head_size // tensor, 2 * layers),
        *attention,
        Matmul('attention output', 1, tokens, num_heads * head_size, size, layers),
        Matmul('gate, up', 1, tokens, size, inner, 2 * layers),
        Matmul('output', 1, tokens, inner, size, layers),
    ]


def vocabulary_matmul(model: PreNorm, vocab_size: int, *, predictions: Count, tensor: int = 1, **_: Any) -> Matmul:
    """Returns the matmul of the decoder over the vocabulary."""
    return Matmul('vocabulary', 1, predictions, model.hidden_size, vocab_size // tensor, 1)


def layer_kept_per_token(model: PreNorm, activation_bytes: int, tensor: int) -> float:
    """Returns the bytes that a layer keeps per token for the backward pass, without attention scores.

    The inputs of the matmuls of attention and feed-forward (queries, keys and values of all heads, and the gated values
    among them), gate and up, and the inputs of two norms.
    """
    size, a = model.hidden_size, activation_bytes
    return size * (4 * a + 4 * a / tensor) + 3 * a * model.intermediate_size / tensor
