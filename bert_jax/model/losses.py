"""Cross entropies.

`T` tokens to predict, `D` hidden, `V` vocabulary (padded), `C` classes; `...` any leading dims.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bert_jax.model import cpu
from bert_jax.model.inputs import Array
from bert_jax.model.matmul import column_sums, contract, exp, transpose
from bert_jax.model.platform import target_platform, tensor_parts
from bert_jax.model.vocabulary import VOCABULARY_MULTIPLE

_CHUNK = 4096  # tokens of the vocabulary whose logits are in memory at once; 8192 is slower on a CPU
_MOST_CHUNKS = 16  # each is compiled by itself


def cross_entropy(logits: jax.Array, labels: Array) -> tuple[jax.Array, jax.Array]:
    """Returns (losses, hits), both [...] float32: -log softmax(logits)[label] in nats, and 1 for a hit.

    Args:
      logits: [..., C] float32.  labels: [...] int32.
    """
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses, (chosen >= logits.max(axis=-1)).astype(jnp.float32)


def vocabulary_cross_entropy(
    x: jax.Array, decoder: jax.Array, bias: jax.Array, labels: Array, dtype: str
) -> tuple[jax.Array, jax.Array]:
    """Returns (losses, hits), both [T] float32, of the logits `x @ decoder.T + bias` without storing the logits.

    The vocabulary is processed in chunks. For the gradient only exp(logits - largest logit of the chunk) is kept, in
    `dtype`; the sums by which they are to be divided are known after the last chunk, and scale the factors of the
    matmuls of the backward pass instead. So each logit is computed once, and in bfloat16 what is
    kept of it takes half the memory.

    Args:
      x: [T, D].  decoder: [V, D] float32.  bias: [V] float32; -inf for tokens that do not exist.  labels: [T] int32.
      dtype: of the factors of matmuls.
    """
    losses, hits = _vocabulary_cross_entropy(x, decoder, bias, jnp.asarray(labels), dtype)
    return losses, hits.astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _vocabulary_cross_entropy(
    x: jax.Array, decoder: jax.Array, bias: jax.Array, labels: jax.Array, dtype: str
) -> tuple[jax.Array, jax.Array]:
    return _forward(x, decoder, bias, labels, dtype)[0]


def vocabulary_bytes(num_tokens: int, activation_bytes: int, tensor: int) -> float:
    """Returns the bytes per predicted token: the kept weights, and the float32 logits of a chunk.

    Args: num_tokens: V.  tensor: devices over which XLA splits the vocabulary.
    """
    chunk = vocabulary_parts(num_tokens, tensor)[0].stop
    return (activation_bytes * num_tokens + 2 * 4 * chunk) / tensor


class _Chunk(NamedTuple):
    """What the forward pass computes of a chunk of `C` tokens of the vocabulary.

    Attributes:
      largest: [T] float32, the largest logit.
      weights: [C, T] in the dtype of the matmuls, exp(logit - largest).
      total: [T] float32, the sum of the weights.
      weighted: [D, T] float32, the sum of the decoder's rows with these weights.
      chosen: [T] float32, the logit of the label; -inf if it is in another chunk.
    """

    largest: jax.Array
    weights: jax.Array
    total: jax.Array
    weighted: jax.Array
    chosen: jax.Array


def _forward(x: jax.Array, decoder: jax.Array, bias: jax.Array, labels: jax.Array, dtype: str) -> tuple:
    x = jax.lax.optimization_barrier(x)  # else XLA computes it once for each chunk
    x_transposed = transpose(x.astype(dtype), (1, 0))
    factor = cpu.with_ones(x_transposed) if _adds_bias_in_matmul(x_transposed) else x_transposed
    chunks = [
        _chunk(factor, decoder[part].astype(dtype), bias[part], labels - part.start)
        for part in vocabulary_parts(len(decoder), tensor_parts())
    ]
    largest_of = jnp.stack([chunk.largest for chunk in chunks])
    largest = largest_of.max(axis=0)
    scales = jnp.exp(largest_of - largest)  # from a chunk's largest logit to that of all chunks
    total = sum(chunk.total * scale for chunk, scale in zip(chunks, scales, strict=True))
    weighted = sum(chunk.weighted * scale for chunk, scale in zip(chunks, scales, strict=True))
    chosen = functools.reduce(jnp.maximum, [chunk.chosen for chunk in chunks])
    losses = largest + jnp.log(total) - chosen
    kept = (x, decoder, labels, weighted / total, scales / total, [chunk.weights for chunk in chunks])
    return (losses, chosen >= largest), kept


def _chunk(factor: jax.Array, decoder: jax.Array, bias: jax.Array, labels: jax.Array) -> _Chunk:
    """Computes a chunk from its rows of the decoder [C, D] and its bias [C].

    Args:
      factor: x transposed, [D, T], or the same `with_ones`.
      labels: [T], counted from the first token of the chunk.
    """
    size, dtype = len(decoder), decoder.dtype
    if _adds_bias_in_matmul(factor):
        logits = jax.lax.optimization_barrier(contract(cpu.with_bias(decoder, bias), factor))  # CT
    else:
        logits = contract(decoder, factor) + bias[:, None]
    largest = logits.max(axis=0)
    weights = jax.lax.optimization_barrier(exp(logits - largest, dtype))
    chosen = jnp.take_along_axis(logits, jnp.clip(labels, 0, size - 1)[None], axis=0)[0]
    chosen = jnp.where((labels >= 0) & (labels < size), chosen, -jnp.inf)
    total = column_sums(weights)
    return _Chunk(largest, weights, total, contract(transpose(decoder, (1, 0)), weights), chosen)


def _backward(dtype: str, kept: tuple, gradients: tuple) -> tuple:
    x, decoder, labels, mean_row, scales, weights_of = kept
    gradient, wide = gradients[0], x.astype(dtype).astype(jnp.float32)
    x_gradient = transpose(mean_row, (1, 0)) - decoder[labels].astype(dtype)
    x_gradient = (x_gradient * gradient[:, None]).astype(x.dtype)
    of_decoder = jnp.zeros(decoder.shape).at[labels].add(-gradient[:, None] * wide)
    of_bias = jnp.zeros(len(decoder)).at[labels].add(-gradient)
    scales = jax.lax.optimization_barrier(scales * gradient)
    for part, weights, scale in zip(vocabulary_parts(len(decoder), tensor_parts()), weights_of, scales, strict=True):
        of_decoder = _added(of_decoder, part, contract(weights, (wide * scale[:, None]).astype(dtype)))
        of_bias = _added(of_bias, part, _weighted_sum(weights, scale))
    return x_gradient, of_decoder, of_bias, None


_vocabulary_cross_entropy.defvjp(_forward, _backward)


def vocabulary_parts(num_tokens: int, tensor: int) -> list[slice]:
    """Returns the chunks of a vocabulary; a single one if XLA splits the vocabulary over devices."""
    num_chunks = 1 if tensor > 1 else min(-(-num_tokens // _CHUNK), _MOST_CHUNKS)
    size = -(-num_tokens // (num_chunks * VOCABULARY_MULTIPLE)) * VOCABULARY_MULTIPLE
    return [slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]


def _added(total: jax.Array, part: slice, values: jax.Array) -> jax.Array:
    """Adds the values to a part of the rows; XLA changes `total` in place."""
    return jax.lax.dynamic_update_slice_in_dim(total, total[part] + values, part.start, axis=0)


def _adds_bias_in_matmul(factor: jax.Array) -> bool:
    # Longer float32 factors would cost more than they save.
    return target_platform() == 'cpu' and factor.dtype == jnp.bfloat16


def _weighted_sum(weights: jax.Array, scale: jax.Array) -> jax.Array:
    """[C, T], [T] -> [C] float32: the sum over T of `weights * scale`."""
    return cpu.row_sums(weights, scale) if target_platform() == 'cpu' else (weights * scale).sum(axis=1)
