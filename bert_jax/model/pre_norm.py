"""Layers of today's encoders: pre-norm, rotary positions, gated feed-forward.

`B` rows, `L` positions, `D` hidden, `F` intermediate, `H` heads, `G` key and value heads, `K` head size.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax import config
from bert_jax.model.attention import attend
from bert_jax.model.dropout import DropoutKey, dropout
from bert_jax.model.layers import Dense, LayerNorm, RMSNorm
from bert_jax.model.local_attention import attend_locally
from bert_jax.model.matmul import Count, Matmul
from bert_jax.model.rotary import Rotations, rotate

_WEIGHTS, _ATTENTION, _MLP = 1, 2, 3  # sites of dropout in a layer


class Attention(NamedTuple):
    """How one kind of layer attends.

    Attributes:
      theta: base of the rotary wavelengths.
      radius: positions that a position sees to either side; None for the whole sequence.
    """

    theta: float
    radius: int | None = None


class Sizes(NamedTuple):
    """What a layer is built from.

    Attributes:
      hidden, intermediate: D and F.
      num_heads, num_kv_heads: H and G; H is a multiple of G.
      in_stddev: of the initial kernels that read the residual stream.  out_stddev: of those that write to it.
    """

    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    in_stddev: float
    out_stddev: float
    dtype: str


class RotaryAttention(nnx.Module):
    """Multi-head self-attention with rotary positions; several query heads may share a key and value head."""

    def __init__(self, sizes: Sizes, *, bias: bool, rate: float, implementation: str, rngs: nnx.Rngs):
        D, K = sizes.hidden, sizes.hidden // sizes.num_heads
        kv_size = sizes.num_kv_heads * K

        def dense(num_in: int, num_out: int, axes: tuple[str, str], stddev: float) -> Dense:
            return Dense(num_in, num_out, axes, stddev, sizes.dtype, rngs, bias=bias)

        self.query = dense(D, D, ('embed', 'heads'), sizes.in_stddev)
        self.key = dense(D, kv_size, ('embed', 'heads'), sizes.in_stddev)
        self.value = dense(D, kv_size, ('embed', 'heads'), sizes.in_stddev)
        self.output = dense(D, D, ('heads', 'embed'), sizes.out_stddev)
        self.num_heads, self.num_kv_heads, self.head_size = sizes.num_heads, sizes.num_kv_heads, K
        self.rate, self.implementation = rate, implementation

    def __call__(
        self,
        x: jax.Array,
        sequence_ids: jax.Array,
        by: Rotations,
        radius: int | None,
        key: DropoutKey | None,
        is_packed: bool,
    ) -> jax.Array:
        """[B, L, D] -> [B, L, D].

        Args:
          sequence_ids: [B, L] int32.
          by: the rotation of every position.
          radius: as in `Attention`.
          is_packed: whether a row may hold several sequences.
        """
        q = self._flat(rotate(self._heads(self.query(x), self.num_heads), by))
        k = self._flat(self._shared(rotate(self._heads(self.key(x), self.num_kv_heads), by)))
        v = self._flat(self._shared(self._heads(self.value(x), self.num_kv_heads)))
        if radius is not None and radius < x.shape[1] - 1:
            attended = attend_locally(q, k, v, sequence_ids, self.num_heads, radius, self.rate, key, _WEIGHTS)
        else:
            attended = attend(q, k, v, sequence_ids, self.num_heads, self.rate, key, self.implementation, is_packed)
        return self.output(attended)

    def _heads(self, x: jax.Array, num_heads: int) -> jax.Array:
        return x.reshape(*x.shape[:2], num_heads, self.head_size)

    def _shared(self, x: jax.Array) -> jax.Array:
        """[B, L, G, K] -> [B, L, H, K]: each key or value head serves H / G query heads."""
        return x if self.num_kv_heads == self.num_heads else jnp.repeat(x, self.num_heads // self.num_kv_heads, axis=2)

    def _flat(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], -1)


class GatedMlp(nnx.Module):
    """`output(activation(gate(x)) * up(x))` (Shazeer 2020, "GLU variants improve Transformer")."""

    def __init__(
        self,
        sizes: Sizes,
        activation: Callable[[jax.Array], jax.Array],
        *,
        bias: bool,
        rate: float,
        rngs: nnx.Rngs,
    ):
        D, F = sizes.hidden, sizes.intermediate
        self.gate = Dense(D, F, ('embed', 'mlp'), sizes.in_stddev, sizes.dtype, rngs, bias=bias)
        self.up = Dense(D, F, ('embed', 'mlp'), sizes.in_stddev, sizes.dtype, rngs, bias=bias)
        self.output = Dense(F, D, ('mlp', 'embed'), sizes.out_stddev, sizes.dtype, rngs, bias=bias)
        self.activation, self.rate = activation, rate

    def __call__(self, x: jax.Array, key: DropoutKey | None) -> jax.Array:
        """[B, L, D] -> [B, L, D]; dropout, with a key, is on the gated values [B, L, F]."""
        return self.output(dropout(self.activation(self.gate(x)) * self.up(x), self.rate, key, _MLP))


class PreNormLayer(nnx.Module):
    """Attention and feed-forward, each after a norm of its input and added to the residual stream.

    Args of the constructor: attention_rate is the dropout rate of the attention weights and of the attention's output.
    """

    def __init__(
        self,
        attention: RotaryAttention,
        mlp: GatedMlp,
        new_norm: Callable[[], LayerNorm | RMSNorm],
        *,
        attention_rate: float,
        first_has_norm: bool = True,
    ):
        self.attention_norm = new_norm()
        self.attention = attention
        self.mlp_norm = new_norm()
        self.mlp = mlp
        self.rate, self.first_has_norm = attention_rate, first_has_norm

    def __call__(
        self,
        x: jax.Array,
        index: jax.Array,
        sequence_ids: jax.Array,
        by: Rotations,
        radius: int | None,
        key: DropoutKey | None,
        is_packed: bool,
    ) -> jax.Array:
        """[B, L, D] -> [B, L, D]. index: of the layer, from 1; the first may skip the norm before its attention."""
        normed = self.attention_norm(x)
        if not self.first_has_norm:
            normed = jnp.where(index == 1, x, normed)
        attended = self.attention(normed, sequence_ids, by, radius, key, is_packed)
        x = x + dropout(attended, self.rate, key, _ATTENTION)
        return x + self.mlp(self.mlp_norm(x), key)


# --- What a layer costs. ---


def layer_matmuls(
    model: config.Model,
    num_kv_heads: int,
    windows: Sequence[int | None],
    *,
    rows: int,
    length: Count,
    visible_length: Count,
    tensor: int = 1,
    **_: Any,
) -> list[Matmul]:
    """The matmuls of all layers, those of attention apart by window.

    Args:
      windows: for each layer, the positions that a position sees at most; None for all of its sequence.
      rows, length, visible_length, tensor: as in `family.matmuls`.
    """
    layers, size, tokens = len(windows), model.hidden_size, rows * length
    inner, num_heads = model.intermediate_size // tensor, model.num_heads // tensor
    head_size = size // model.num_heads
    attention = []
    for window in dict.fromkeys(windows):
        count, name = windows.count(window), '' if window is None else ' (local)'
        visible = visible_length if window is None else min(visible_length, window)
        attention += [
            Matmul(f'attention scores{name}', rows * num_heads, length, head_size, visible, count),
            Matmul(f'attention values{name}', rows * num_heads, length, visible, head_size, count),
        ]
    return [
        Matmul('query', 1, tokens, size, num_heads * head_size, layers),
        Matmul('key, value', 1, tokens, size, max(1, num_kv_heads // tensor) * head_size, 2 * layers),
        *attention,
        Matmul('attention output', 1, tokens, num_heads * head_size, size, layers),
        Matmul('gate, up', 1, tokens, size, inner, 2 * layers),
        Matmul('output', 1, tokens, inner, size, layers),
    ]


def vocabulary_matmul(model: config.Model, vocab_size: int, *, predictions: Count, tensor: int = 1, **_: Any) -> Matmul:
    """The matmul of the decoder over the vocabulary."""
    return Matmul('vocabulary', 1, predictions, model.hidden_size, vocab_size // tensor, 1)


def layer_kept_per_token(model: config.Model, num_kv_heads: int, activation_bytes: int, tensor: int) -> float:
    """Bytes that a layer keeps of a token for the backward pass, without attention scores and dropout masks.

    The inputs of its matmuls, queries and keys before and after their rotation, gate, up and their product, and the
    float32 values of two norms.
    """
    size, a = model.hidden_size, activation_bytes
    kv_size = size * num_kv_heads / model.num_heads
    heads = (2 * size + 3 * kv_size) * a / tensor
    return size * (2 * a + 16) + heads + 4 * a * model.intermediate_size / tensor
