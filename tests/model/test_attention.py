"""Fused attention kernels, interpreted on a CPU, compute the same as the reference."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from bert_jax.errors import BadInput
from bert_jax.model import attention, gpu_attention, tpu_attention
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.platform import target_platform

pytestmark = pytest.mark.compiles

ROWS, LENGTH, HEADS = 2, 128, 2


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernels in (tpu_attention, gpu_attention):
        monkeypatch.setattr(kernels, 'attend', functools.partial(kernels.attend, interpret=True))


def _packed(length: int) -> np.ndarray:
    """Returns sequence ids, [B, L]: a row of three sequences and a row of one, both with padding."""
    ids = np.zeros((ROWS, length), np.int32)
    ids[0, :50], ids[0, 50:90], ids[0, 90:120], ids[1, :77] = 1, 2, 3, 1
    return ids


def _outputs(
    platform: str,
    size: int,
    rate: float,
    dtype: str,
    length: int = LENGTH,
    radius: int | None = None,
    split: Callable[[Callable], Callable] = lambda attend: attend,
) -> list[np.ndarray]:
    """Returns the output and the gradients of q, k and v, [B, L, D] each, zero in padding."""
    ids, rows = _packed(length), jnp.arange(3, 3 + ROWS, dtype=jnp.uint32)
    real = ids[..., None] > 0
    rng = np.random.default_rng(0)
    q, k, v, gradient = (jnp.asarray(rng.standard_normal((ROWS, length, HEADS * size)), dtype) for _ in range(4))

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
        return attention.attend(q, k, v, ids, HEADS, rate, DropoutKey(jnp.uint32(7), rows, 2), 'auto', radius)

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple:
        out, pull = jax.vjp(lambda *qkv: split(attend)(*qkv, ids, rows), q, k, v)
        return out, *pull(jnp.where(real, gradient, 0))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, 'target_platform', lambda: platform)
        found = [np.asarray(array, np.float32) for array in run(q, k, v)]
    assert all(np.isfinite(array).all() for array in found)
    return [np.where(real, array, 0) for array in found]


@pytest.mark.parametrize(
    'platform, size, rate, dtype, length, radius, within',
    [
        ('tpu', 64, 0.1, 'float32', 128, None, 1e-5),  # two heads per tile
        ('tpu', 128, 0.0, 'bfloat16', 128, None, 0.02),
        ('gpu', 64, 0.1, 'bfloat16', 128, None, 0.02),
        # no multiple of the kernels' blocks
        ('tpu', 64, 0.1, 'float32', 123, None, 1e-5),
        ('tpu', 64, 0.1, 'float32', 363, 16, 1e-5),
        ('gpu', 64, 0.1, 'bfloat16', 123, None, 0.02),
        ('gpu', 64, 0.1, 'bfloat16', 291, 16, 0.02),
    ],
)
def test_kernels_match_the_reference_on_packed_rows(
    interpreted: None,
    platform: str,
    size: int,
    rate: float,
    dtype: str,
    length: int,
    radius: int | None,
    within: float,
) -> None:
    both = (_outputs(on, size, rate, dtype, length, radius) for on in (platform, 'cpu'))
    for found, expected in zip(*both, strict=True):
        assert np.abs(found - expected).max() < within * np.abs(expected).max()


def test_heads_split_over_tensor_give_the_same_result(interpreted: None) -> None:
    """As in a training step: `shard_map` splits rows, XLA splits heads, and the backward pass recomputes."""
    whole = _outputs('tpu', 64, 0.1, 'float32')
    mesh = jax.make_mesh((2, 2), ('data', 'tensor'), (AxisType.Auto,) * 2, devices=jax.devices()[:4])
    rows, heads = PartitionSpec('data'), NamedSharding(mesh, PartitionSpec(None, None, 'tensor'))

    def split(attend: Callable) -> Callable:
        own = jax.shard_map(
            jax.checkpoint(attend), mesh=mesh, in_specs=rows, out_specs=rows, axis_names={'data'}, check_vma=False
        )
        return lambda q, k, v, *others: own(*jax.lax.with_sharding_constraint((q, k, v), heads), *others)

    for found, expected in zip(_outputs('tpu', 64, 0.1, 'float32', split=split), whole, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    'platform, length, dtype, heads, size, fix',
    [
        ('tpu', 100, 'bfloat16', 2, 64, 'multiple of 128'),
        ('gpu', 100, 'bfloat16', 1, 64, 'multiple of 64'),
        ('tpu', 128, 'bfloat16', 3, 64, 'an even number of heads of size 64'),
        ('gpu', 128, 'float32', 1, 64, 'model.dtype=bfloat16'),
        ('gpu', 128, 'bfloat16', 1, 256, 'num_heads so that heads have size 64'),
    ],
)
def test_without_a_kernel_auto_runs_plain_and_fused_is_rejected(
    monkeypatch: pytest.MonkeyPatch, platform: str, length: int, dtype: str, heads: int, size: int, fix: str
) -> None:
    monkeypatch.setattr(attention, 'target_platform', lambda: platform)
    x, ids = jnp.ones((1, length, heads * size), dtype), jnp.ones((1, length), jnp.int32)
    key = DropoutKey(jnp.uint32(0), jnp.arange(1, dtype=jnp.uint32))
    run = functools.partial(attention.attend, x, x, x, ids, heads, 0.1, key)
    assert 'pallas_call' not in str(jax.make_jaxpr(functools.partial(run, 'auto'))())
    with pytest.raises(BadInput, match=fix):
        run('fused')


def test_mesh_decides_the_target_platform() -> None:
    assert target_platform() == jax.default_backend()
    with jax.sharding.use_abstract_mesh(_tpus('data')):
        assert target_platform() == 'tpu'
    seen = []
    mesh = jax.make_mesh((2,), ('data',), (AxisType.Auto,), devices=jax.devices()[:2])
    jax.shard_map(lambda: seen.append(target_platform()), mesh=mesh, in_specs=(), out_specs=None)()
    assert seen == ['cpu']


def test_mesh_of_absent_tpus_compiles_the_tpu_kernel() -> None:
    def attend(x: jax.Array, ids: jax.Array) -> jax.Array:
        return attention.attend(x, x, x, ids, HEADS, 0.0, None, 'fused')

    rows = PartitionSpec('data')
    split = jax.shard_map(attend, mesh=_tpus('data'), in_specs=rows, out_specs=rows, check_vma=False)
    x, ids = jnp.ones((ROWS, LENGTH, HEADS * 64)), jnp.ones((ROWS, LENGTH), jnp.int32)
    program = jax.jit(split).trace(x, ids).lower(lowering_platforms=('tpu',)).as_text()
    assert 'tpu_custom_call' in program


def _tpus(axis: str) -> AbstractMesh:
    """Returns a mesh of two TPUs along an axis; this machine needs none."""
    device = AbstractDevice('TPU v5 lite', num_cores=1, platform='tpu')
    return AbstractMesh((2,), (axis,), (AxisType.Auto,), abstract_device=device)
