"""Computes multi-head self-attention within sequences and chooses its implementation.

`B` rows, `L` positions, `D` hidden, `H` heads, `K` head size.

| compiled for | implementation | requires |
|---|---|---|
| TPU | `tpu_attention` (Pallas): scores stay on the chip | L near a multiple of 128, heads of whole tiles |
| GPU | `gpu_attention` (Pallas, Triton): the same | bfloat16, L near a multiple of 64, K at most 128 |
| anything else | local windows: `local_attention`, which stores the scores of a band | nothing |
| | `plain_attention`: scores and weights [B, H, L, L] in memory | nothing |

All drop the same weights: those whose index in [B, H, L, L] hashes to it (`model/dropout.py`). Kernels take rows that
are padded to a multiple of their block, if that adds little to compute.
"""

import functools
import importlib
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.inputs import Array
from bert_jax.model.local_attention import attend_locally, is_local
from bert_jax.model.plain_attention import attend_plainly
from bert_jax.model.platform import target_platform, tensor_parts

_SITE = 1  # of dropout in a layer
_KERNELS = {'tpu': 'bert_jax.model.tpu_attention', 'gpu': 'bert_jax.model.gpu_attention'}
_MOST_PADDING = 1 / 8  # of a row
_USE_REFERENCE = '--config.model.attention=plain'


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sequence_ids: jax.Array,
    num_heads: int,
    rate: float,
    key: DropoutKey | None,
    implementation: str,
    radius: int | None = None,
    is_causal: Array | None = None,
) -> jax.Array:
    """Computes softmax(q k' / sqrt(K)) v of each head, [B, L, D]; the values at padding are finite and undefined.

    Args:
      q, k, v: [B, L, D]. Keys and values may have fewer heads, each of which serves as many query heads.
      sequence_ids: [B, L] int32; a position attends to positions with the same id; 0 is padding.
      rate: dropout rate of the weights; no dropout without a key.
      implementation: `config.Model.attention`: 'auto' uses a kernel that supports the arguments, 'plain' never does.
      radius: a position attends to positions at most this far away; None for the whole sequence.
      is_causal: [B] bool, rows in which a position attends to none after it; None if there are none.

    Raises:
      BadInput: if `implementation` is 'fused' and no kernel of the target platform supports the arguments. A CPU has
        no kernels and always runs plain attention.
    """
    rate = 0.0 if key is None else rate
    radius = radius if is_local(radius, q.shape[1]) else None
    platform = target_platform()
    num_parts = tensor_parts()
    own, size = num_heads // num_parts, q.shape[-1] // num_heads
    if implementation != 'plain':
        reason = unsupported_reason(platform, q.shape[1], own, size, str(q.dtype))
        if reason is None:
            if platform != 'gpu' or k.shape[-1] // size % num_parts:  # the GPU kernel itself shares heads
                k, v = (_repeated(x, num_heads, size) for x in (k, v))
            row_keys = _row_keys(key, rate, q.shape[0])
            run = functools.partial(_in_whole_blocks, platform, own, rate, radius)
            first_heads = jnp.arange(0, num_heads, own, dtype=jnp.uint32)  # of each device on the tensor axis
            aheads = _aheads(is_causal, q.shape[1])
            run = _by_heads(run, len(aheads)) if num_parts > 1 else run
            return run(q, k, v, sequence_ids, row_keys, first_heads, *aheads)
        if implementation == 'fused' and platform in _KERNELS:
            raise BadInput(
                'config.model.attention', f"is 'fused', and {reason[0]}", 'what a kernel supports', reason[1]
            )
    k, v = (_repeated(x, num_heads, size) for x in (k, v))
    if radius is not None:
        return attend_locally(q, k, v, sequence_ids, num_heads, radius, rate, key, _SITE, is_causal)
    return attend_plainly(q, k, v, sequence_ids, num_heads, rate, key, _SITE, is_causal)


def attend_jointly(
    qkv: jax.Array,
    bias: jax.Array,
    sequence_ids: jax.Array,
    num_heads: int,
    rate: float,
    key: DropoutKey | None,
    is_causal: Array | None = None,
) -> jax.Array:
    """Computes what `attend` does of `q, k, v = split(qkv + bias)`, in a kernel that adds and splits them itself.

    Args:
      qkv: [B, L, 3 D], for which `has_joint_kernel`.  bias: [3 D] float32.  The others are as of `attend`.
    """
    kernels = _kernels(_KERNELS['gpu'])
    assert kernels is not None  # see `has_joint_kernel`
    rate, L = 0.0 if key is None else rate, qkv.shape[1]
    sequence_ids, qkv = _padded(kernels.BLOCK, sequence_ids, qkv)
    scalars = (_row_keys(key, rate, len(qkv)), jnp.zeros(1, jnp.uint32), *_aheads(is_causal, L))
    settings = {'num_heads': num_heads, 'rate': rate, 'row_length': L}
    return kernels.attend_jointly(qkv, bias, sequence_ids, *scalars, **settings)[:, :L]


def has_joint_kernel(implementation: str, length: int, num_heads: int, head_size: int, dtype: str) -> bool:
    """Returns whether `attend_jointly` supports the arguments (as of `attend`): on a GPU that has all heads."""
    if implementation == 'plain' or target_platform() != 'gpu' or tensor_parts() > 1:
        return False
    return unsupported_reason('gpu', length, num_heads, head_size, dtype) is None


def unsupported_reason(
    platform: str, length: int, num_heads: int, head_size: int, dtype: str
) -> tuple[str, str] | None:
    """Returns (why no kernel supports this, how to change that), or None if one does.

    Args:
      platform: 'tpu' or 'gpu'; others have no kernels.  num_heads: on one device.
    """
    if platform == 'tpu':
        tpu_attention = _kernels(_KERNELS['tpu'])
        if tpu_attention is None:
            return f'jax {jax.__version__} does not support the TPU kernels of this version', _USE_REFERENCE
        if tpu_attention.suits(num_heads, head_size):
            return _unsupported_length(platform, length, tpu_attention.BLOCK)
        found = f'no TPU kernel supports {num_heads} heads of size {head_size} per device'
        return found, 'per device heads of size 128, or an even number of heads of size 64'
    if platform != 'gpu':
        return f'there is no kernel for {platform}', _USE_REFERENCE
    if dtype != 'bfloat16':
        return f'the GPU kernel supports bfloat16, not {dtype}', '--config.model.dtype=bfloat16'
    gpu_attention = _kernels(_KERNELS['gpu'])
    if gpu_attention is None:
        return f'jax {jax.__version__} does not support the GPU kernel of this version', _USE_REFERENCE
    if head_size > gpu_attention.LARGEST_HEAD:
        found = f'the GPU kernel does not support heads of size {head_size}'
        return found, f'config.model.num_heads so that heads have size 64, at most {gpu_attention.LARGEST_HEAD}'
    return _unsupported_length(platform, length, gpu_attention.BLOCK)


def _unsupported_length(platform: str, length: int, block: int) -> tuple[str, str] | None:
    if -length % block <= _MOST_PADDING * length:
        return None
    found = f'the {platform.upper()} kernel does not support rows of {length} positions'
    return found, f'data.sequence_length a multiple of {block}'


def unsupported_reason_of(model: config.Model, platform: str, length: int, tensor: int) -> tuple[str, str] | None:
    """What `unsupported_reason` says of a model.

    Args:
      length: positions of a row.  tensor: devices that heads are split over.
    """
    num_heads, head_size = model.num_heads // tensor, model.hidden_size // model.num_heads
    return unsupported_reason(platform, length, num_heads, head_size, model.dtype)


def _by_heads(run: Callable[..., jax.Array], num_aheads: int) -> Callable[..., jax.Array]:
    """Runs a kernel on the heads of each device on the `tensor` axis, because XLA cannot split a kernel."""
    whole, heads = PartitionSpec(), PartitionSpec(None, None, 'tensor')
    in_specs = (heads, heads, heads, whole, whole, PartitionSpec('tensor'), *(whole for _ in range(num_aheads)))
    return jax.shard_map(run, in_specs=in_specs, out_specs=heads, axis_names={'tensor'}, check_vma=False)


def _in_whole_blocks(
    platform: str,
    num_heads: int,
    rate: float,
    radius: int | None,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sequence_ids: jax.Array,
    *scalars: jax.Array,
) -> jax.Array:
    """Runs a kernel on rows that end with padding where they are no multiple of its block."""
    kernels = _kernels(_KERNELS[platform])
    assert kernels is not None  # see `unsupported_reason`
    L = q.shape[1]
    sequence_ids, q, k, v = _padded(kernels.BLOCK, sequence_ids, q, k, v)
    settings = {'num_heads': num_heads, 'rate': rate, 'radius': radius, 'row_length': L}
    return kernels.attend(q, k, v, sequence_ids, *scalars, **settings)[:, :L]


def _repeated(x: jax.Array, num_heads: int, head_size: int) -> jax.Array:
    """Repeats the heads of keys or values, one for each query head: [B, L, G K] -> [B, L, H K]."""
    repeats = num_heads * head_size // x.shape[-1]
    if repeats == 1:
        return x
    heads = x.reshape(*x.shape[:-1], -1, head_size)
    return jnp.repeat(heads, repeats, axis=-2).reshape(*x.shape[:-1], -1)


def _padded(block: int, *arrays: jax.Array) -> list[jax.Array]:
    """Pads [B, L] or [B, L, D] to a multiple of a block of positions."""
    return [jnp.pad(x, [(0, 0), (0, -x.shape[1] % block), *[(0, 0)] * (x.ndim - 2)]) for x in arrays]


def _row_keys(key: DropoutKey | None, rate: float, num_rows: int) -> jax.Array:
    """Returns [B] uint32 for a kernel."""
    return key.of_rows(_SITE) if key is not None and rate else jnp.zeros(num_rows, jnp.uint32)


def _aheads(is_causal: Array | None, length: int) -> list[jax.Array]:
    """Returns how far after itself a position of each row attends, [B] int32, for a kernel; [] without causal rows."""
    return [] if is_causal is None else [jnp.where(jnp.asarray(is_causal), 0, length).astype(jnp.int32)]


@functools.cache
def _kernels(module: str) -> types.ModuleType | None:
    """Imports a module of kernels; None if this version of jax lacks the experimental APIs that it needs."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None
