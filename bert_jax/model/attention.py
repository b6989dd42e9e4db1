"""Computes multi-head self-attention within sequences and chooses its implementation.

`B` rows, `L` positions, `D` hidden, `H` heads, `K` head size.

| compiled for | implementation | requires |
|---|---|---|
| TPU | `tpu_attention` (Pallas): scores stay on the chip, usual dropout | L a multiple of 128, at most 4096 |
| GPU, one sequence per row | cuDNN, by sequence lengths | bfloat16, no attention dropout |
| GPU, packed rows or no cuDNN | jax's Pallas kernel, by sequence ids | the same, L a multiple of 128 |
| anything else | `plain_attention`: scores and weights [B, H, L, L] in memory | nothing |
"""

import functools
import importlib
import re
import types
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.local_attention import attend_locally, is_local
from bert_jax.model.plain_attention import attend_plainly
from bert_jax.model.platform import target_platform, tensor_parts

_SITE = 1  # of dropout in a layer
_GPU_BLOCK = 128
_TPU_KERNELS = 'bert_jax.model.tpu_attention'
_GPU_KERNELS = 'jax.experimental.pallas.ops.gpu.attention'
_USE_REFERENCE = '--config.model.attention=plain'
_NO_DROPOUT = '--config.model.attention_dropout_rate=0.0; of families other than bert, attention_dropout=0.0'


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sequence_ids: jax.Array,
    num_heads: int,
    rate: float,
    key: DropoutKey | None,
    implementation: str,
    is_packed: bool,
    radius: int | None = None,
) -> jax.Array:
    """Computes softmax(q k' / sqrt(K)) v of each head, [B, L, D]; the values at padding are finite and undefined.

    Args:
      q, k, v: [B, L, D].
      sequence_ids: [B, L] int32; a position attends to positions with the same id; 0 is padding.
      rate: dropout rate of the weights; no dropout without a key.
      implementation: `config.Model.attention`: 'auto' uses a kernel that supports the arguments, 'plain' never does.
      is_packed: False if each row is one sequence followed by padding.
      radius: a position attends to positions at most this far away; None for the whole sequence.

    Raises:
      BadInput: if `implementation` is 'fused' and no kernel of the target platform supports the arguments. A CPU has
        no kernels and always runs plain attention.
    """
    rate = 0.0 if key is None else rate
    if is_local(radius, q.shape[1]):
        return attend_locally(q, k, v, sequence_ids, num_heads, radius, rate, key, _SITE)
    platform = target_platform()
    num_parts = tensor_parts()
    own, size = num_heads // num_parts, q.shape[-1] // num_heads
    if implementation == 'plain':
        return attend_plainly(q, k, v, sequence_ids, num_heads, rate, key, _SITE)
    reason = unsupported_reason(platform, q.shape[1], own, size, str(q.dtype), rate, is_packed)
    if reason and implementation == 'fused' and platform in _KERNELS:
        raise BadInput('config.model.attention', f"is 'fused', and {reason[0]}", 'what a kernel supports', reason[1])
    if reason:
        return attend_plainly(q, k, v, sequence_ids, num_heads, rate, key, _SITE)
    row_keys = key.of_rows(_SITE) if key is not None and rate else jnp.zeros(q.shape[0], jnp.uint32)
    run = functools.partial(_KERNELS[platform], own, rate, is_packed)
    first_heads = jnp.arange(0, num_heads, own, dtype=jnp.uint32)  # of each device on the tensor axis
    return (_by_heads(run) if num_parts > 1 else run)(q, k, v, sequence_ids, row_keys, first_heads)


def unsupported_reason(
    platform: str, length: int, num_heads: int, head_size: int, dtype: str, rate: float, is_packed: bool
) -> tuple[str, str] | None:
    """Returns (why no kernel supports this, how to change that), or None if one does.

    Args:
      platform: 'tpu' or 'gpu'; others have no kernels.  num_heads: on one device.  rate: of attention dropout.
    """
    if platform == 'tpu':
        tpu_attention = _kernels(_TPU_KERNELS)
        if tpu_attention is None:
            return f'jax {jax.__version__} does not support the TPU kernels of this version', _USE_REFERENCE
        if tpu_attention.suits(length, num_heads, head_size):
            return None
        found = (
            f'no TPU kernel supports rows of {length} positions with {num_heads} heads of size {head_size} per device'
        )
        return (
            found,
            f'data.sequence_length a multiple of 128, at most {tpu_attention.LONGEST}; heads of size 64 or 128',
        )
    if platform != 'gpu':
        return f'there is no kernel for {platform}', _USE_REFERENCE
    if rate:
        return 'the GPU kernels do not support attention dropout', _NO_DROPOUT
    if dtype != 'bfloat16':
        return f'the GPU kernels support bfloat16, not {dtype}', '--config.model.dtype=bfloat16'
    if head_size % 8 or head_size > 128:
        return (
            f'the GPU kernels do not support heads of size {head_size}',
            'config.model.num_heads so that heads have size 64',
        )
    if not is_packed and _is_cudnn_here():
        return None
    if _kernels(_GPU_KERNELS) is None:
        found = f'cuDNN is missing or rows are packed, and jax {jax.__version__} has no kernel for that'
        return found, _USE_REFERENCE
    if length % _GPU_BLOCK:
        return (
            f'the GPU kernel for sequence ids does not support rows of {length} positions',
            f'data.sequence_length a multiple of {_GPU_BLOCK}',
        )
    return None


def unsupported_reason_of(
    model: config.Model, platform: str, length: int, tensor: int, is_packed: bool
) -> tuple[str, str] | None:
    """What `unsupported_reason` says of a model that trains.

    Args:
      length: positions of a row.  tensor: devices that heads are split over.
    """
    num_heads, head_size = model.num_heads // tensor, model.hidden_size // model.num_heads
    rate = float(model.drops_attention_weights)
    return unsupported_reason(platform, length, num_heads, head_size, model.dtype, rate, is_packed)


def _by_heads(run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Runs a kernel on the heads of each device on the `tensor` axis, because XLA cannot split a kernel."""
    whole, heads = PartitionSpec(), PartitionSpec(None, None, 'tensor')
    in_specs = (heads, heads, heads, whole, whole, PartitionSpec('tensor'))
    return jax.shard_map(run, in_specs=in_specs, out_specs=heads, axis_names={'tensor'}, check_vma=False)


# --- Kernels: (heads, dropout rate, is_packed, q, k, v, sequence ids, keys of rows, first head) -> [B, L, D]. ---


def _on_tpu(num_heads: int, rate: float, _: bool, *arguments: jax.Array) -> jax.Array:
    kernels = _kernels(_TPU_KERNELS)
    assert kernels is not None  # see `unsupported_reason`
    return kernels.attend(*arguments, num_heads=num_heads, rate=rate)


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
        kernels = _kernels(_GPU_KERNELS)
        assert kernels is not None  # see `unsupported_reason`
        return kernels.mha(q, k, v, sequence_ids, sm_scale=heads[-1] ** -0.5).reshape(*heads[:2], -1)
    # cuDNN leaves the values past a sequence undefined: zero them before (so that gradients are 0) and after.
    is_real = sequence_ids[..., None] > 0
    q, k, v = (jnp.where(is_real, x, 0).reshape(heads) for x in (q, k, v))
    lengths = jnp.maximum(is_real.sum(axis=(1, 2), dtype=jnp.int32), 1)  # padding rows have length 0
    return jnp.where(is_real, _by_cudnn(q, k, v, lengths).reshape(*heads[:2], -1), 0)


def _by_cudnn(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """[B, L, H, K]; lengths [B] int32."""
    return jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation='cudnn'
    )


@functools.cache
def _is_cudnn_here() -> bool:
    """Tests for cuDNN with the shapes of a call; it may be missing where `plan` compiles for an absent GPU."""
    heads, lengths = jax.ShapeDtypeStruct((1, 128, 1, 64), jnp.bfloat16), jax.ShapeDtypeStruct((1,), jnp.int32)
    try:
        jax.eval_shape(_by_cudnn, heads, heads, heads, lengths)
    except RuntimeError:  # no cuDNN, or one that is too old
        return False
    return True


@functools.cache
def _kernels(module: str) -> types.ModuleType | None:
    """Imports a module of kernels; None if this version of jax lacks the experimental APIs that it needs."""
    with warnings.catch_warnings():
        # jax 0.12 recommends tokamax instead of its own GPU kernel; tokamax requires Python 3.12.
        warnings.filterwarnings('ignore', f'{re.escape(_GPU_KERNELS)} is deprecated', DeprecationWarning)
        try:
            return importlib.import_module(module)
        except ImportError:
            return None


_KERNELS = {'tpu': _on_tpu, 'gpu': _on_gpu}
