"""The parts of a BERT encoder, as Flax NNX modules.

`B` rows, `L` positions, `D` hidden, `F` intermediate.

Parameters are float32; a module computes in its `dtype`, layer norms in float32. Every
parameter names its dims in its metadata (`logical_axes`), which `train/sharding.py` maps onto a mesh. The first name of
parameters that are stacked over layers is `LAYERS`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax import config
from bert_jax.model.attention import attend, attend_jointly, has_joint_kernel
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.inputs import Array
from bert_jax.model.matmul import add_bias, project
from bert_jax.model.norm import add_and_normalize, normalize
from bert_jax.model.platform import target_platform, tensor_parts

LAYERS = 'layers'  # the logical axis of a stack of layers
KERNEL_INIT_BOUND = 2.0  # the original's truncated_normal keeps within two standard deviations


def truncated_normal(stddev: float) -> nnx.Initializer:
    """Returns the original's initializer: a normal truncated at two `stddev`, not rescaled (`create_initializer`)."""

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return stddev * jax.random.truncated_normal(key, -KERNEL_INIT_BOUND, KERNEL_INIT_BOUND, shape, dtype)

    return initialize


def parameter(value: jax.Array, *logical_axes: str) -> nnx.Param:
    """Makes a parameter with named dims."""
    return nnx.Param(value, logical_axes=logical_axes)


def is_variable(node: Any) -> bool:
    """Returns whether a node of a tree is a parameter, or derived from one: for `is_leaf` of `jax.tree`."""
    return isinstance(node, nnx.Variable)


def logical_axes(variable: nnx.Variable) -> tuple[str, ...]:
    """Returns the names of the dims of a parameter, or of anything derived from it (its sharding, its moments)."""
    return variable.get_metadata('logical_axes')


def is_stacked(variable: nnx.Variable) -> bool:
    """Returns whether a parameter holds the weights of several layers along its first dim."""
    return logical_axes(variable)[0] == LAYERS


def axes_in_layer(variable: nnx.Variable) -> tuple[str, ...]:
    """Returns the logical axes within one layer, or all axes of a parameter that is not stacked."""
    names = logical_axes(variable)
    return names[1:] if is_stacked(variable) else names


def stack(create: Callable[[nnx.Rngs], nnx.Module], num_layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """Makes layers as one module whose parameters have a first dim `LAYERS`, each initialized independently."""
    layers = nnx.split_rngs(splits=num_layers)(nnx.vmap(create, in_axes=0, out_axes=0))(rngs)
    for _, variable in nnx.to_flat_state(nnx.state(layers, nnx.Param)):
        variable.set_metadata(logical_axes=(LAYERS, *logical_axes(variable)))
    return layers


class Dense(nnx.Module):
    """x @ kernel + bias over the last dim; without the bias where `bias` is False."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        axes: tuple[str, str],
        stddev: float,
        dtype: str,
        rngs: nnx.Rngs,
        initializer: Callable[[float], nnx.Initializer] = truncated_normal,
        bias: bool = True,
    ):
        self.kernel = parameter(initializer(stddev)(rngs.params(), (num_in, num_out)), *axes)
        self.bias = parameter(jnp.zeros(num_out), axes[1]) if bias else None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.matmul(x)
        return y if self.bias is None else add_bias(y, self.bias[...])

    def matmul(self, x: jax.Array) -> jax.Array:
        """Returns x @ kernel, without the bias."""
        return project(x, self.kernel[...], self.dtype, self.dtype)


def apply_together(x: jax.Array, *layers: Dense) -> list[jax.Array]:
    """Applies several dense layers to the same x: on a CPU in one matmul, unless XLA splits them over devices.

    Accelerators would copy the parts of its result, and of its gradient.
    """
    if tensor_parts() > 1 or target_platform() != 'cpu':
        return [layer(x) for layer in layers]
    kernel = jnp.concatenate([layer.kernel[...] for layer in layers], axis=1)
    y = project(x, kernel, layers[0].dtype, layers[0].dtype)
    biases = [layer.bias[...] for layer in layers if layer.bias is not None]
    ends = np.cumsum([layer.kernel.shape[1] for layer in layers])[:-1]
    return jnp.split(add_bias(y, jnp.concatenate(biases)) if biases else y, ends, axis=-1)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last dim, computed in float32 (Ba et al. 2016)."""

    def __init__(self, num_features: int, eps: float, dtype: str, bias: bool = True):
        self.scale = parameter(jnp.ones(num_features), 'norm')
        self.bias = parameter(jnp.zeros(num_features), 'norm') if bias else None
        self.eps, self.dtype = eps, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        bias = None if self.bias is None else self.bias[...]
        return normalize(x, self.scale[...], bias, self.eps, self.dtype, True)


def add_and_norm(
    norm: LayerNorm,
    x: jax.Array,
    dense: Dense,
    inner: jax.Array,
    rate: float,
    key: DropoutKey | None,
    site: int,
    num_uses: int = 1,
) -> tuple[jax.Array, ...]:
    """Computes norm(x + dropout(dense(inner))), in one pass over memory where a kernel does it.

    Args:
      x: [B, L, D].  inner: [B, L, F].  norm, dense: with biases.  rate, key, site: as of `dropout`.
      num_uses: how often the result is returned, once for each use.
    """
    assert norm.bias is not None and dense.bias is not None
    scale, bias = norm.scale[...], norm.bias[...]
    branch, branch_bias = dense.matmul(inner), dense.bias[...]
    return add_and_normalize(x, branch, branch_bias, scale, bias, norm.eps, rate, key, site, num_uses)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last dim, computed in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, num_features: int, eps: float, dtype: str):
        self.scale = parameter(jnp.ones(num_features), 'norm')
        self.eps, self.dtype = eps, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        return normalize(x, self.scale[...], None, self.eps, self.dtype, False)


class SelfAttention(nnx.Module):
    """Multi-head self-attention; a token sees the tokens of its own sequence only."""

    def __init__(self, model: config.Bert, rngs: nnx.Rngs):
        self.num_heads, self.rate = model.num_heads, model.attention_dropout_rate
        self.implementation = model.attention
        size, stddev = model.hidden_size, model.initializer_range
        into: dict[str, Any] = {'axes': ('embed', 'heads'), 'stddev': stddev, 'dtype': model.dtype, 'rngs': rngs}
        self.query = Dense(size, size, **into)
        self.key = Dense(size, size, **into)
        self.value = Dense(size, size, **into)
        self.output = Dense(size, size, ('heads', 'embed'), stddev, model.dtype, rngs)

    def __call__(
        self, x: jax.Array, sequence_ids: jax.Array, key: DropoutKey | None, is_causal: Array | None = None
    ) -> jax.Array:
        """Returns what `output` is to project, [B, L, D].

        Args: as for `attend`; x [B, L, D].
        """
        parts, size = (self.query, self.key, self.value), x.shape[-1] // self.num_heads
        if has_joint_kernel(self.implementation, x.shape[1], self.num_heads, size, self.query.dtype):
            kernel = jnp.concatenate([part.kernel[...] for part in parts], axis=1)
            bias = jnp.concatenate([part.bias[...] for part in parts if part.bias is not None])
            qkv = project(x, kernel, self.query.dtype, self.query.dtype)
            return attend_jointly(qkv, bias, sequence_ids, self.num_heads, self.rate, key, is_causal)
        q, k, v = apply_together(x, *parts)
        settings = self.num_heads, self.rate, key, self.implementation
        return attend(q, k, v, sequence_ids, *settings, is_causal=is_causal)


def gelu(x: jax.Array) -> jax.Array:
    """Computes x Φ(x) with `erf`, as in the original (Hendrycks and Gimpel 2016), in float32."""
    wide = x.astype(jnp.float32)
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def silu(x: jax.Array) -> jax.Array:
    """Computes x * sigmoid(x) (Elfwing et al. 2017)."""
    return jax.nn.silu(x)


# For the backward pass both keep their inputs only: recomputing the rest costs less than storing and reading it.


@jax.checkpoint
def biased_gelu(x: jax.Array, bias: jax.Array) -> jax.Array:
    """gelu(x + bias): x [T…, F] is the result of a matmul, and bias [F] float32."""
    return gelu(add_bias(x, bias))


@functools.partial(jax.checkpoint, static_argnums=0)
def gated(activation: Callable[[jax.Array], jax.Array], gate: jax.Array, up: jax.Array) -> jax.Array:
    """activation(gate) * up, both [T…, F]."""
    return activation(gate) * up


class EncoderLayer(nnx.Module):
    """Attention and feed-forward, each with dropout, residual and a layer norm after it (the original's post-norm)."""

    def __init__(self, model: config.Bert, rngs: nnx.Rngs):
        stddev, dtype = model.initializer_range, model.dtype
        self.attention = SelfAttention(model, rngs)
        self.attention_norm = LayerNorm(model.hidden_size, model.layer_norm_eps, dtype)
        self.intermediate = Dense(model.hidden_size, model.intermediate_size, ('embed', 'mlp'), stddev, dtype, rngs)
        self.output = Dense(model.intermediate_size, model.hidden_size, ('mlp', 'embed'), stddev, dtype, rngs)
        self.output_norm = LayerNorm(model.hidden_size, model.layer_norm_eps, dtype)
        self.rate = model.dropout_rate

    def __call__(
        self,
        uses: tuple[jax.Array, ...],
        sequence_ids: jax.Array,
        key: DropoutKey | None,
        is_causal: Array | None = None,
    ) -> tuple[jax.Array, ...]:
        """[B, L, D] -> [B, L, D], once or for two uses: by attention and by the residual sum (see `add_and_norm`).

        Args: sequence_ids [B, L] int32; is_causal as of `attend`.
        """
        x, residual = uses[0], uses[-1]
        attended = self.attention(x, sequence_ids, key, is_causal)
        norm, output = self.attention_norm, self.attention.output
        x, residual = add_and_norm(norm, residual, output, attended, self.rate, key, site=2, num_uses=2)
        bias = self.intermediate.bias
        assert bias is not None
        inner = biased_gelu(self.intermediate.matmul(x), bias[...])  # BLF
        return add_and_norm(self.output_norm, residual, self.output, inner, self.rate, key, site=3, num_uses=len(uses))
