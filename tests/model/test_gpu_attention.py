"""The GPU kernels, interpreted on a CPU, compute the same as attention with all scores in memory."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.config import Bert, EuroBert
from bert_jax.model import attention, gpu_attention, pre_norm
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.layers import SelfAttention
from bert_jax.model.plain_attention import attend_by_scores
from bert_jax.model.rotary import rotations

pytestmark = pytest.mark.compiles

HEADS = 2
KEY = DropoutKey(jnp.uint32(7), jnp.arange(3, 6, dtype=jnp.uint32), 2)


def _ids(length: int) -> np.ndarray:
    """Returns sequence ids, [3, L]: a row of three sequences, one of a sequence and padding, one of padding."""
    ids = np.zeros((3, length), np.int32)
    ids[0, : length // 2], ids[0, length // 2 : -30], ids[0, -30:-5], ids[1, : length // 3] = 1, 2, 3, 1
    return ids


def _with_gradients(
    attend: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, gradient: jax.Array
) -> list[np.ndarray]:
    out, pull = jax.vjp(attend, q, k, v)
    found = [np.asarray(x) for x in (out, *pull(gradient))]
    assert all(np.isfinite(x).all() for x in found)
    return found


def _kernel(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, rate: float, radius: int | None) -> jax.Array:
    first_head, row_keys = jnp.zeros(1, jnp.uint32), KEY.of_rows(1)[: len(ids)]
    return gpu_attention.attend(
        q, k, v, ids, row_keys, first_head, num_heads=HEADS, rate=rate, radius=radius, interpret=True
    )


def _reference(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, rate: float, radius: int | None) -> jax.Array:
    B, L, D = q.shape
    q, k, v = (x.reshape(B, L, HEADS, -1).swapaxes(1, 2) for x in (q, k, v))
    position = np.arange(L)
    near = np.abs(position[:, None] - position) <= (L if radius is None else radius)
    sees = (ids[:, :, None] == ids[:, None, :]) & near
    return attend_by_scores(q, k, v, sees[:, None], rate, KEY, 1).swapaxes(1, 2).reshape(B, L, D)


@pytest.mark.parametrize(
    'length, size, rate, radius',
    [
        (128, 64, 0.0, None),
        (192, 48, 0.1, None),
        (64, 128, 0.1, None),
        (256, 32, 0.1, 40),
        (320, 96, 0.2, 64),
        (192, 16, 0.0, 1),
    ],
)
def test_kernels_match_attention_with_scores_in_memory(length: int, size: int, rate: float, radius: int | None) -> None:
    ids, rng = jnp.asarray(_ids(length)), np.random.default_rng(0)
    real = np.asarray(ids)[..., None] > 0
    q, k, v, gradient = (jnp.asarray(rng.standard_normal((3, length, HEADS * size)), jnp.float32) for _ in range(4))
    gradient = jnp.where(real, gradient, 0)
    found, expected = (
        _with_gradients(jax.jit(functools.partial(f, ids=ids, rate=rate, radius=radius)), q, k, v, gradient)
        for f in (_kernel, _reference)
    )
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = np.where(real, ours, 0), np.where(real, theirs, 0)
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize('length, size, rate', [(128, 64, 0.1), (192, 48, 0.0)])
def test_joint_kernels_match_attention_to_the_split_projection(length: int, size: int, rate: float) -> None:
    ids, rng = jnp.asarray(_ids(length)), np.random.default_rng(0)
    real = np.asarray(ids)[..., None] > 0
    qkv, bias = (jnp.asarray(rng.standard_normal((*n, 3 * HEADS * size)), jnp.float32) for n in ((3, length), ()))
    gradient = jnp.where(real, jnp.asarray(rng.standard_normal((3, length, HEADS * size)), jnp.float32), 0)

    def jointly(qkv: jax.Array, bias: jax.Array) -> jax.Array:
        first_head, row_keys = jnp.zeros(1, jnp.uint32), KEY.of_rows(1)
        settings: Any = {'num_heads': HEADS, 'rate': rate, 'interpret': True}
        return gpu_attention.attend_jointly(qkv, bias, ids, row_keys, first_head, **settings)

    def split(qkv: jax.Array, bias: jax.Array) -> jax.Array:
        return _reference(*jnp.split(qkv + bias, 3, axis=-1), ids, rate, None)

    (out, pull), (expected, expected_pull) = (jax.vjp(jax.jit(f), qkv, bias) for f in (jointly, split))
    for ours, theirs in zip((out, pull(gradient)[0]), (expected, expected_pull(gradient)[0]), strict=True):
        ours, theirs = np.where(real, ours, 0), np.where(real, theirs, 0)
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
    of_bias, expected_of_bias = pull(gradient)[1], expected_pull(gradient)[1]
    np.testing.assert_allclose(of_bias, expected_of_bias, atol=1e-5 * np.abs(expected_of_bias).max())


def test_dropout_keeps_the_mean_of_uniform_weights() -> None:
    length, size, rate = 256, 16, 0.3
    zeros, ones = jnp.zeros((3, length, HEADS * size)), jnp.ones((3, length, HEADS * size))
    out = np.asarray(_kernel(zeros, zeros, ones, jnp.ones((3, length), jnp.int32), rate, None))
    by_head = out.reshape(3, length, HEADS, size)[..., 0]  # the share of keys kept, over 1 - rate
    deviation = math.sqrt(rate / (1 - rate) / length)
    assert abs(by_head.mean() - 1) < 4 * deviation / math.sqrt(by_head.size)
    assert by_head.std() == pytest.approx(deviation, rel=0.1)


def test_only_blocks_in_reach_are_visited() -> None:
    ids = jnp.asarray([[1] * 100 + [2] * 60 + [0] * 96])
    first, end = gpu_attention._visible(ids, 64, 64, None)
    assert (first.tolist(), end.tolist()) == ([[0, 0, 1, 0]], [[2, 3, 3, 0]])
    first, end = gpu_attention._visible(jnp.ones((1, 512), jnp.int32), 128, 64, 64)
    assert (first.tolist(), end.tolist()) == ([[0, 1, 3, 5]], [[3, 5, 7, 8]])


def test_attention_of_bert_runs_the_joint_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, Any] = {'hidden_size': 64, 'num_heads': 2, 'dropout_rate': 0.1, 'initializer_range': 0.1}
    graph, params = nnx.split(SelfAttention(Bert(**sizes, dtype='bfloat16', attention='fused'), nnx.Rngs(0)))
    rng, ids = np.random.default_rng(0), jnp.asarray(_ids(123))  # rows that end with padding for the kernel
    params = jax.tree.map(lambda x: x + jnp.asarray(0.1 * rng.standard_normal(x.shape), jnp.float32), params)
    x = jnp.asarray(rng.standard_normal((*ids.shape, 64)), jnp.bfloat16)

    def loss(params: nnx.State, x: jax.Array) -> jax.Array:
        attended = nnx.merge(graph, params)(x, ids, KEY)
        return jnp.where(ids[..., None] > 0, jnp.square(attended.astype(jnp.float32)), 0).sum()

    expected = jax.tree.leaves_with_path(jax.grad(loss, (0, 1))(params, x))  # on a CPU
    calls = []

    def attend_jointly(*arguments: jax.Array, **settings: Any) -> jax.Array:
        calls.append(arguments[0].shape)
        return kernels(*arguments, **settings, interpret=True)

    kernels = gpu_attention.attend_jointly
    monkeypatch.setattr(gpu_attention, 'attend_jointly', attend_jointly)
    monkeypatch.setattr(attention, 'target_platform', lambda: 'gpu')
    found = jax.tree.leaves(jax.grad(loss, (0, 1))(params, x))
    assert calls == [(3, 128, 3 * 64)]
    largest = max(float(jnp.abs(each).max()) for _, each in expected)
    for ours, (path, theirs) in zip(found, expected, strict=True):
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        name = jax.tree_util.keystr(path)
        # The gradient of the bias of keys is 0, but for rounding.
        within = 0.01 * largest if 'key' in name and 'bias' in name else 0.04 * np.abs(theirs).max()
        assert np.abs(ours - theirs).max() <= within, name


@pytest.mark.parametrize('radius', [None, 32])
def test_layers_with_grouped_heads_run_the_kernel(monkeypatch: pytest.MonkeyPatch, radius: int | None) -> None:
    model = EuroBert(hidden_size=64, num_heads=4, num_key_value_heads=2, dtype='bfloat16', attention='fused')
    layer = pre_norm.RotaryAttention(model, 0.5, nnx.Rngs(0))
    ids = jnp.asarray(_ids(128))
    by = rotations(jnp.broadcast_to(jnp.arange(128), ids.shape), layer.head_size, 1e4)
    inputs = pre_norm.LayerInputs(ids, by, radius, None)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((*ids.shape, 64)), jnp.bfloat16)
    expected = np.asarray(layer(x, inputs), np.float32)  # on a CPU
    calls = []

    def attend(*arguments: jax.Array, **settings: Any) -> jax.Array:
        calls.append(settings['radius'])
        return kernels(*arguments, **settings, interpret=True)

    kernels = gpu_attention.attend
    monkeypatch.setattr(gpu_attention, 'attend', attend)
    monkeypatch.setattr(attention, 'target_platform', lambda: 'gpu')
    found = np.asarray(layer(x, inputs), np.float32)
    assert calls == [radius]
    real = np.asarray(ids)[..., None] > 0
    assert np.abs(np.where(real, found - expected, 0)).max() < 0.02 * np.abs(expected).max()
