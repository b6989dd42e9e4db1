"""Multi-head self-attention inside sequences, and which program works it out.

`B` rows, `L` positions, `D` hidden, `H` heads, `K` head size.

| compiled for | program | wants |
|---|---|---|
| TPU | `tpu_attention` (Pallas): scores stay on the chip, dropout as everywhere | L a multiple of 128, at most 4096 |
| GPU, a row one sequence | cuDNN, by the lengths of the sequences | bfloat16, no attention dropout |
| GPU, packed rows, or no cuDNN | jax's Pallas kernel, by the ids of the sequences | the same, L a multiple of 128 |
| else | `plain`: scores and weights [B, H, L, L] go through memory | nothing |
"""

import functools
import importlib
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from bert_jax.errors import BadInput
from bert_jax.model.dropout import DropoutKey, dropout
from bert_jax.model.products import multiply, permuted, target_platform

_SITE = 1  # of dropout in a layer
_GPU_BLOCK = 128
_FOR_TPU, _FOR_GPU = 'bert_jax.model.tpu_attention', 'jax.experimental.pallas.ops.gpu.attention'
_PLAINLY = '--config.model.attention=plain'


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sequence_ids: jax.Array,
    num_heads: int,
    rate: float,
    key: DropoutKey | None,
    how: str,
    is_packed: bool,
) -> jax.Array:
    """[B, L, D]: softmax(q k' / sqrt(K)), dropped out, times v, for each head; in padding anything that is finite.

    Args:
      q, k, v: [B, L, D].  sequence_ids: [B, L] int32; positions see those of their own id; 0 is padding.
      rate: of the dropout of weights; without a key there is none.
      how: `config.Model.attention`.  is_packed: False where each row is one sequence, padding after it.

    Raises:
      BadInput: when `how` is 'fused' and the platform that is compiled for has no kernel for this; a CPU has none
        for anything, and computes plainly.
    """
    rate = 0.0 if key is None else rate
    platform = target_platform()
    mesh = jax.sharding.get_abstract_mesh()
    is_split = dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get('tensor') == AxisType.Auto
    num_parts = mesh.shape['tensor'] if is_split else 1
    own, size = num_heads // num_parts, q.shape[-1] // num_heads
    reason = None if how == 'plain' else why_plain(platform, q.shape[1], own, size, str(q.dtype), rate, is_packed)
    if reason and how == 'fused' and platform in _KERNELS:
        raise BadInput('config.model.attention', f"is 'fused', and {reason[0]}", 'what a kernel suits', reason[1])
    if reason or how == 'plain':
        return plain(q, k, v, sequence_ids, num_heads, rate, key)
    row_keys = key.of_rows(_SITE) if rate else jnp.zeros(q.shape[0], jnp.uint32)
    run = functools.partial(_KERNELS[platform], own, rate, is_packed)
    first_heads = jnp.arange(0, num_heads, own, dtype=jnp.uint32)  # of each device on the tensor axis
    return (_by_heads(run) if num_parts > 1 else run)(q, k, v, sequence_ids, row_keys, first_heads)


def why_plain(
    platform: str | None, length: int, num_heads: int, head_size: int, dtype: str, rate: float, is_packed: bool
) -> tuple[str, str] | None:
    """(What keeps a kernel from being used, what would mend it); None where one is.

    Args:
      platform: 'tpu', 'gpu', or another, which has no kernels.  num_heads: of one device.  rate: of dropout.
    """
    if platform == 'tpu':
        tpu_attention = _kernels(_FOR_TPU)
        if tpu_attention is None:
            return f'jax {jax.__version__} makes no kernels for TPUs as this version does', _PLAINLY
        if tpu_attention.suits(length, num_heads, head_size):
            return None
        found = f'a TPU has no kernel for rows of {length}, {num_heads} heads of {head_size} on a device'
        return found, f'data.sequence_length a multiple of 128, at most {tpu_attention.LONGEST}; heads of 64 or 128'
    if platform != 'gpu':
        return f'there is no kernel for {platform}', _PLAINLY
    if rate:
        return 'the kernels of a GPU drop nothing out', '--config.model.attention_dropout_rate=0.0'
    if dtype != 'bfloat16':
        return f'the kernels of a GPU are for bfloat16, not {dtype}', '--config.model.dtype=bfloat16'
    if head_size % 8 or head_size > 128:
        return f'the kernels of a GPU have no heads of {head_size}', 'num_heads so that a head has 64'
    if not is_packed and _is_cudnn_here():
        return None
    if _kernels(_FOR_GPU) is None:
        found = f'cuDNN is not found, or rows are packed, for which jax {jax.__version__} brings no kernel'
        return found, _PLAINLY
    if length % _GPU_BLOCK:
        return f'rows of {length} go by their ids', f'data.sequence_length a multiple of {_GPU_BLOCK}'
    return None


def plain(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sequence_ids: jax.Array,
    num_heads: int,
    rate: float = 0.0,
    key: DropoutKey | None = None,
) -> jax.Array:
    """What the kernels are held against; softmax in float32. Arguments as of `attend`."""
    q, k, v = (x.reshape(*x.shape[:2], num_heads, -1) for x in (q, k, v))  # BLHK
    scores = multiply(permuted(q, (0, 2, 1, 3)), permuted(k, (0, 2, 3, 1))) * q.shape[-1] ** -0.5
    sees = (sequence_ids[:, :, None] == sequence_ids[:, None, :]) & (sequence_ids[:, None, :] > 0)  # BLM
    scores = jnp.where(sees[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(v.dtype), rate, key, _SITE)
    attended = permuted(multiply(weights, permuted(v, (0, 2, 1, 3))).astype(v.dtype), (0, 2, 1, 3))
    return attended.reshape(*attended.shape[:2], -1)


def _by_heads(run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A kernel for the heads of each device on the `tensor` axis: XLA cannot split one by itself."""
    whole, heads = PartitionSpec(), PartitionSpec(None, None, 'tensor')
    in_specs = (heads, heads, heads, whole, whole, PartitionSpec('tensor'))
    return jax.shard_map(run, in_specs=in_specs, out_specs=heads, axis_names={'tensor'}, check_vma=False)


# --- Kernels: (heads, dropout rate, is_packed, q, k, v, sequence ids, keys of rows, first head) -> [B, L, D]. ---


def _on_tpu(num_heads: int, rate: float, _: bool, *arguments: jax.Array) -> jax.Array:
    return _kernels(_FOR_TPU).attend(*arguments, num_heads=num_heads, rate=rate)


def _on_gpu(
    num_heads: int,
    _: float,
    is_packed: bool,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sequence_ids: jax.Array,
    *__: jax.Array,
) -> jax.Array:
    heads = (*q.shape[:2], num_heads, q.shape[2] // num_heads)
    if is_packed or not _is_cudnn_here():
        q, k, v = (x.reshape(heads) for x in (q, k, v))
        return _kernels(_FOR_GPU).mha(q, k, v, sequence_ids, sm_scale=heads[-1] ** -0.5).reshape(*heads[:2], -1)
    # What cuDNN leaves past a sequence is not said: zeros go in (so that gradients there are 0), and come out.
    is_real = sequence_ids[..., None] > 0
    q, k, v = (jnp.where(is_real, x, 0).reshape(heads) for x in (q, k, v))
    lengths = jnp.maximum(is_real.sum(axis=(1, 2), dtype=jnp.int32), 1)  # rows that only fill up a batch have none
    return jnp.where(is_real, _by_cudnn(q, k, v, lengths).reshape(*heads[:2], -1), 0)


def _by_cudnn(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """[B, L, H, K]; lengths [B] int32."""
    return jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation='cudnn'
    )


@functools.cache
def _is_cudnn_here() -> bool:
    """Asked with the shapes of a call. Where `plan` compiles for an absent GPU, there may be none."""
    heads, lengths = jax.ShapeDtypeStruct((1, 128, 1, 64), jnp.bfloat16), jax.ShapeDtypeStruct((1,), jnp.int32)
    try:
        jax.eval_shape(_by_cudnn, heads, heads, heads, lengths)
    except RuntimeError:  # jax found none, or none that will do
        return False
    return True


@functools.cache
def _kernels(module: str) -> types.ModuleType | None:
    """A module of kernels, imported only for a device that has a use for it; None where this jax has moved what it is
    made of, which is experimental there.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


_KERNELS = {'tpu': _on_tpu, 'gpu': _on_gpu}
