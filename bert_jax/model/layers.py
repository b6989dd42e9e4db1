"""The parts of a BERT encoder, as Flax NNX modules.

`B` rows, `L` positions, `D` hidden, `H` heads, `K` head size, `F` intermediate.

Parameters are float32; a module computes in its `dtype`, layer norms and softmax in float32. Every
parameter names its dims in its metadata (`logical_axes`), which `train/sharding.py` maps onto a mesh.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax import config
from bert_jax.model.products import project

KERNEL_INIT_BOUND = 2.0  # the original's truncated_normal keeps within two standard deviations


def truncated_normal(stddev: float) -> nnx.Initializer:
    """The original's initialiser: a normal of `stddev` cut at two of it, not rescaled (`create_initializer`)."""

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return stddev * jax.random.truncated_normal(key, -KERNEL_INIT_BOUND, KERNEL_INIT_BOUND, shape, dtype)

    return initialize


def parameter(value: jax.Array, *logical_axes: str) -> nnx.Param:
    """A parameter whose dims have names."""
    return nnx.Param(value, logical_axes=logical_axes)


@dataclasses.dataclass(frozen=True)
class DropoutKey:
    """What dropout masks depend on: never on the mesh, the microbatch or a generator's state.

    base: uint32 scalar from (seed, step), see `dropout_base`.  rows: [B] uint32, global row numbers in the batch.
    layer: uint32 scalar.
    """

    base: jax.Array
    rows: jax.Array
    layer: jax.Array | int = 0

    def at(self, layer: jax.Array | int) -> 'DropoutKey':
        """The key of a layer (0 is the embeddings)."""
        return dataclasses.replace(self, layer=layer)


jax.tree_util.register_dataclass(DropoutKey, data_fields=['base', 'rows', 'layer'], meta_fields=[])


def _hash32(x: jax.Array) -> jax.Array:
    """The 32-bit finaliser `lowbias32` (Wellons 2018, "Prospecting for hash functions")."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def dropout_base(seed: int | jax.Array, step: jax.Array) -> jax.Array:
    """uint32 scalar from a run's seed and a step."""
    return _hash32(_hash32(jnp.uint32(seed) + jnp.uint32(0x9E3779B9)) ^ step.astype(jnp.uint32))


def dropout(x: jax.Array, rate: float, key: DropoutKey | None, site: int) -> jax.Array:
    """Zeroes each element with probability `rate` and scales the rest (Srivastava et al. 2014).

    The mask is a hash of (seed, step, layer, site, global row, place in the row): the same on any mesh and for any
    split into microbatches, and on a CPU an order of magnitude cheaper than `jax.random.bernoulli`.

    Args:
      x: [B, ...].  key: None switches dropout off.  site: tells apart the dropouts of one layer.
    """
    if key is None or rate == 0.0:
        return x
    site_key = _hash32(key.base ^ _hash32(jnp.uint32(site) + 16 * jnp.asarray(key.layer, jnp.uint32) + 1))
    row_keys = _hash32(site_key ^ (key.rows * jnp.uint32(0x9E3779B9)))
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    row_keys = row_keys.reshape(shape)
    place = jnp.zeros((1,) * x.ndim, jnp.uint32)
    for dim in range(1, x.ndim):
        iota = jax.lax.broadcasted_iota(jnp.uint32, (1,) + x.shape[1:], dim)
        place = place * jnp.uint32(x.shape[dim]) + iota
    bits = _hash32((place * jnp.uint32(0x9E3779B9)) ^ row_keys)
    keep = bits >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


class Dense(nnx.Module):
    """x @ kernel + bias over the last dim."""

    def __init__(self, num_in: int, num_out: int, axes: tuple[str, str], stddev: float, dtype: str, rngs: nnx.Rngs):
        self.kernel = parameter(truncated_normal(stddev)(rngs.params(), (num_in, num_out)), *axes)
        self.bias = parameter(jnp.zeros(num_out), axes[1])
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        return project(x, self.kernel[...], self.dtype, self.dtype) + self.bias[...].astype(self.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last dim, computed in float32 (Ba et al. 2016)."""

    def __init__(self, num_features: int, eps: float, dtype: str):
        self.scale = parameter(jnp.ones(num_features), 'norm')
        self.bias = parameter(jnp.zeros(num_features), 'norm')
        self.eps, self.dtype = eps, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.eps)
        return (normal * self.scale[...] + self.bias[...]).astype(self.dtype)


class SelfAttention(nnx.Module):
    """Multi-head self-attention; a token sees the tokens of its own sequence only."""

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        self.num_heads, self.rate, self.dtype = model.num_heads, model.attention_dropout_rate, model.dtype
        size, stddev = model.hidden_size, model.initializer_range
        into = {'axes': ('embed', 'heads'), 'stddev': stddev, 'dtype': model.dtype, 'rngs': rngs}
        self.query = Dense(size, size, **into)
        self.key = Dense(size, size, **into)
        self.value = Dense(size, size, **into)
        self.output = Dense(size, size, ('heads', 'embed'), stddev, model.dtype, rngs)

    def __call__(self, x: jax.Array, sequence_ids: jax.Array, key: DropoutKey | None) -> jax.Array:
        """Args: x [B, L, D]; sequence_ids [B, L] int32, 0 is padding."""
        heads = (*x.shape[:2], self.num_heads, x.shape[2] // self.num_heads)
        q, k, v = (dense(x).reshape(heads) for dense in (self.query, self.key, self.value))  # BLHK
        scores = jnp.einsum('blhk,bmhk->bhlm', q, k, preferred_element_type=jnp.float32) * heads[-1] ** -0.5
        sees = (sequence_ids[:, :, None] == sequence_ids[:, None, :]) & (sequence_ids[:, None, :] > 0)  # BLM
        scores = jnp.where(sees[:, None], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        weights = dropout(weights, self.rate, key, site=1)
        return self.output(jnp.einsum('bhlm,bmhk->blhk', weights, v).reshape(x.shape))


class EncoderLayer(nnx.Module):
    """Attention and feed-forward, each with dropout, residual and a layer norm after it (the original's post-norm)."""

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        stddev, dtype = model.initializer_range, model.dtype
        self.attention = SelfAttention(model, rngs)
        self.attention_norm = LayerNorm(model.hidden_size, model.layer_norm_eps, dtype)
        self.intermediate = Dense(model.hidden_size, model.intermediate_size, ('embed', 'mlp'), stddev, dtype, rngs)
        self.output = Dense(model.intermediate_size, model.hidden_size, ('mlp', 'embed'), stddev, dtype, rngs)
        self.output_norm = LayerNorm(model.hidden_size, model.layer_norm_eps, dtype)
        self.rate = model.dropout_rate

    def __call__(self, x: jax.Array, sequence_ids: jax.Array, key: DropoutKey | None) -> jax.Array:
        """Args: x [B, L, D]; sequence_ids [B, L] int32."""
        attended = dropout(self.attention(x, sequence_ids, key), self.rate, key, site=2)
        x = self.attention_norm(x + attended)
        inner = jax.nn.gelu(self.intermediate(x), approximate=False)  # BLF
        return self.output_norm(x + dropout(self.output(inner), self.rate, key, site=3))
