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

from bert_jax.config import EuroBert
from bert_jax.model import attention, gpu_attention, pre_norm
from bert_jax.model.dropout import DropoutKey
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
