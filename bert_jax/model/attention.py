"""Multi-head self-attention inside sequences, and which program works it out.

`B` rows, `L` positions, `D` hidden, `H` heads, `K` head size.

| compiled for | program | wants |
|---|---|---|
| TPU | `tpu_attention` (Pallas): scores stay on the chip, dropout as everywhere | L a multiple of 128, at most 4096 |
| GPU, a row one sequence | cuDNN, by the lengths of the sequences | bfloat16, no attention dropout |
| GPU, packed rows | jax's Pallas kernel, by the ids of the sequences | the same, L a multiple of 128 |
| else | `plain`: scores and weights [B, H, L, L] go through memory | nothing |
"""

import functools
import importlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from bert_jax.errors import BadInput
from bert_jax.model import tpu_attention
from bert_jax.model.dropout import DropoutKey, dropout
from bert_jax.model.products import target_platform

_SITE = 1  # of dropout in a layer
_GPU_BLOCK = 128


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
    rate, size = 0.0 if key is None else rate, q.shape[-1] // num_heads
    platform = target_platform()
    if how == 'plain' or platform not in ('tpu', 'gpu'):
        return plain(q, k, v, sequence_ids, num_heads, rate, key)
    mesh = jax.sharding.get_abstract_mesh()
    split = dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get('tensor') == AxisType.Auto
    num_parts = mesh.shape['tensor'] if split else 1
    reason = _why_not(platform, q.shape[1], num_heads // num_parts, size, str(q.dtype), rate, is_packed)
    if reason and how == 'fused':
        raise BadInput('config.model.attention', "is 'fused', " + reason[0], 'what a kernel suits', reason[1])
    if reason:
        return plain(q, k, v, sequence_ids, num_heads, rate, key)
    row_keys = key.of_rows(_SITE) if rate else jnp.zeros(q.shape[0], jnp.uint32)
    run = functools.partial(_KERNELS[platform, is_packed], num_heads // num_parts, rate)
    arguments = (q, k, v, sequence_ids, row_keys, jnp.zeros((), jnp.uint32))
    return _by_heads(run, num_heads // num_parts)(*arguments) if num_parts > 1 else run(*arguments)


def _why_not(
    platform: str, length: int, num_heads: int, head_size: int, dtype: str, rate: float, is_packed: bool
) -> tuple[str, str] | None:
    """(What keeps a kernel from being used, what would mend it); None where one is."""
    if platform == 'tpu':
        if tpu_attention.suits(length, num_heads, head_size):
            return None
        found = f'and a TPU has no kernel for rows of {length}, {num_heads} heads of {head_size} on a device'
        return found, f'a sequence_length that is a multiple of 128, at most {tpu_attention.LONGEST}, and whole tiles'
    if rate:
        return 'and the kernels of a GPU drop nothing out', '--config.model.attention_dropout_rate=0.0'
    if dtype != 'bfloat16':
        return f'and the kernels of a GPU are for bfloat16, not {dtype}', '--config.model.dtype=bfloat16'
    if head_size % 8 or head_size > 128:
        return f'and the kernels of a GPU have no heads of {head_size}', 'num_heads so that a head has 64'
    if is_packed and length % _GPU_BLOCK:
        return f'and rows are packed to {length}', f'--config.data.sequence_length a multiple of {_GPU_BLOCK}'
    if is_packed and _gpu_kernels() is None:
        return f'and jax {jax.__version__} brings no kernel for packed rows', '--config.data.packing=False'
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
    heads = (*q.shape[:2], num_heads, q.shape[2] // num_heads)
    q, k, v = (x.reshape(heads) for x in (q, k, v))  # BLHK
    scores = jnp.einsum('blhk,bmhk->bhlm', q, k, preferred_element_type=jnp.float32) * heads[-1] ** -0.5
    sees = (sequence_ids[:, :, None] == sequence_ids[:, None, :]) & (sequence_ids[:, None, :] > 0)  # BLM
    scores = jnp.where(sees[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(v.dtype), rate, key, _SITE)
    return jnp.einsum('bhlm,bmhk->blhk', weights, v).reshape(*heads[:2], -1)


def _by_heads(run: Callable[..., jax.Array], num_heads: int) -> Callable[..., jax.Array]:
    """A kernel for the heads of each device on the `tensor` axis: XLA cannot split one by itself."""

    def own_heads(*arguments: jax.Array) -> jax.Array:
        first_head = jax.lax.axis_index('tensor').astype(jnp.uint32) * jnp.uint32(num_heads)
        return run(*arguments[:-1], first_head)

    whole, heads = PartitionSpec(), PartitionSpec(None, None, 'tensor')
    in_specs = (heads, heads, heads, whole, whole, whole)
    return jax.shard_map(own_heads, in_specs=in_specs, out_specs=heads, axis_names={'tensor'}, check_vma=False)


# --- Kernels: (number of heads, dropout rate, q, k, v, sequence ids, keys of rows, first head) -> [B, L, D]. ---


def _on_tpu(num_heads: int, rate: float, *arguments: jax.Array) -> jax.Array:
    return tpu_attention.attend(*arguments, num_heads=num_heads, rate=rate)


def _by_cudnn(
    num_heads: int, _: float, q: jax.Array, k: jax.Array, v: jax.Array, sequence_ids: jax.Array, *__: jax.Array
) -> jax.Array:
    """What cuDNN does past a sequence is not said: zeros on the way in (their gradients are 0) and on the way out."""
    is_real = sequence_ids[..., None] > 0
    heads = (*q.shape[:2], num_heads, q.shape[2] // num_heads)
    q, k, v = (jnp.where(is_real, x, 0).reshape(heads) for x in (q, k, v))
    lengths = jnp.maximum(is_real.sum(axis=(1, 2), dtype=jnp.int32), 1)  # rows that only fill up a batch have none
    out = jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation='cudnn'
    )
    return jnp.where(is_real, out.reshape(*heads[:2], -1), 0)


def _by_ids(
    num_heads: int, _: float, q: jax.Array, k: jax.Array, v: jax.Array, sequence_ids: jax.Array, *__: jax.Array
) -> jax.Array:
    heads = (*q.shape[:2], num_heads, q.shape[2] // num_heads)
    q, k, v = (x.reshape(heads) for x in (q, k, v))
    return _gpu_kernels().mha(q, k, v, sequence_ids, sm_scale=heads[-1] ** -0.5).reshape(*heads[:2], -1)


@functools.cache
def _gpu_kernels() -> object | None:
    """jax's module of GPU attention, where this version of jax has it: its place is experimental."""
    try:
        return importlib.import_module('jax.experimental.pallas.ops.gpu.attention')
    except ImportError:
        return None


_KERNELS = {('tpu', False): _on_tpu, ('tpu', True): _on_tpu, ('gpu', False): _by_cudnn, ('gpu', True): _by_ids}
