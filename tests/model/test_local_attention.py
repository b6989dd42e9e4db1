"""Block-local attention equals full attention with a window mask, in values and gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model.dropout import DropoutKey, kept
from bert_jax.model.inputs import Array
from bert_jax.model.local_attention import attend_locally

ROWS, NUM_HEADS, HEAD_SIZE = 2, 3, 8


def _masked_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, ids: Array, radius: int, keep: Array | float = 1.0
) -> jax.Array:
    """Computes all scores of a row and masks those outside the window before the softmax."""
    q, k, v = (x.reshape(*x.shape[:2], NUM_HEADS, HEAD_SIZE).transpose(0, 2, 1, 3) for x in (q, k, v))
    position = np.arange(ids.shape[1])
    sees = np.abs(position[:, None] - position) <= radius
    sees = sees & (ids[:, :, None] == ids[:, None, :]) & (ids[:, None, :] > 0)
    scores = jnp.where(sees[:, None], q @ k.swapaxes(2, 3) / HEAD_SIZE**0.5, -1e30)
    return (jax.nn.softmax(scores, axis=-1) * keep @ v).transpose(0, 2, 1, 3).reshape(*ids.shape, -1)


@pytest.mark.parametrize('length, radius', [(24, 4), (25, 4), (7, 4), (40, 1), (33, 16), (16, 15)])
def test_values_and_gradients_equal_masked_attention(length: int, radius: int) -> None:
    rng = np.random.default_rng(length)
    q, k, v, upstream = (
        rng.standard_normal((ROWS, length, NUM_HEADS * HEAD_SIZE)).astype(np.float32) for _ in range(4)
    )
    ids = np.stack((np.repeat([1, 2], [length // 3, length - length // 3]), np.where(np.arange(length) < 5, 1, 0)))
    upstream = upstream * (ids > 0)[..., None]  # the result at padding is undefined

    def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return (attend_locally(q, k, v, ids, NUM_HEADS, radius, 0.0, None, 1) * upstream).sum()

    def expected(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return (_masked_attention(q, k, v, ids, radius) * upstream).sum()

    found = attend_locally(q, k, v, ids, NUM_HEADS, radius, 0.0, None, 1)
    assert jnp.isfinite(found).all()
    np.testing.assert_allclose(
        found * (ids > 0)[..., None], _masked_attention(q, k, v, ids, radius) * (ids > 0)[..., None], atol=2e-6
    )
    for a, b in zip(jax.grad(ours, (0, 1, 2))(q, k, v), jax.grad(expected, (0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


def test_long_packed_and_padded_rows_equal_masked_attention() -> None:
    """At the sizes of ModernBERT's layers: 1,024 positions and 64 to either side."""
    length, radius = 1024, 64
    rng = np.random.default_rng(0)
    q, k, v, upstream = (
        rng.standard_normal((ROWS, length, NUM_HEADS * HEAD_SIZE)).astype(np.float32) for _ in range(4)
    )
    ids = np.stack((np.repeat([1, 2, 3, 0], [500, 30, 400, 94]), np.where(np.arange(length) < 700, 1, 0)))
    upstream = upstream * (ids > 0)[..., None]

    def run(attend: Callable[..., jax.Array]) -> tuple[jax.Array, ...]:
        attended, pull = jax.vjp(jax.jit(attend), q, k, v)
        return attended * (ids > 0)[..., None], *pull(upstream)

    found = run(lambda q, k, v: attend_locally(q, k, v, ids, NUM_HEADS, radius, 0.0, None, 1))
    for a, b in zip(found, run(lambda q, k, v: _masked_attention(q, k, v, ids, radius)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_memory_grows_linearly_with_length() -> None:
    """Of forward and backward; masked full attention, in comparison, grows with the square."""

    def temporary_bytes(attend: Callable[..., jax.Array], length: int) -> int:
        x, ids = jnp.zeros((1, length, NUM_HEADS * HEAD_SIZE)), jnp.ones((1, length), jnp.int32)
        gradients = jax.grad(lambda q, k, v: attend(q, k, v, ids).sum(), (0, 1, 2))
        return jax.jit(gradients).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    def locally(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        return attend_locally(q, k, v, ids, NUM_HEADS, 64, 0.0, None, 1)

    def masked(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        return _masked_attention(q, k, v, ids, 64)

    assert temporary_bytes(locally, 8192) < 2.1 * temporary_bytes(locally, 4096)
    assert temporary_bytes(masked, 4096) > 3.5 * temporary_bytes(masked, 2048)


def test_dropout_keeps_the_mean_and_depends_only_on_the_row() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((8, 64, NUM_HEADS * HEAD_SIZE)).astype(np.float32) for _ in range(3))
    ids = np.ones((8, 64), np.int32)

    def run(rows: slice, base: int) -> jax.Array:
        key = DropoutKey(jnp.uint32(base), jnp.arange(8, dtype=jnp.uint32)[rows])
        return attend_locally(q[rows], k[rows], v[rows], ids[rows], NUM_HEADS, 8, 0.2, key, 1)

    np.testing.assert_array_equal(run(slice(None), 3)[2:4], run(slice(2, 4), 3))
    mean = np.mean([run(slice(None), base) for base in range(200)], axis=0)
    exact = attend_locally(q, k, v, ids, NUM_HEADS, 8, 0.2, None, 1)
    assert abs(float((mean - exact).mean())) < 1e-3 and np.abs(mean - exact).max() < 0.25


@pytest.mark.parametrize('length, radius', [(48, 8), (41, 12)])
def test_dropout_drops_the_weights_that_full_attention_drops(length: int, radius: int) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((ROWS, length, NUM_HEADS * HEAD_SIZE)).astype(np.float32) for _ in range(3))
    ids, key = np.ones((ROWS, length), np.int32), DropoutKey(jnp.uint32(3), jnp.arange(5, 5 + ROWS, dtype=jnp.uint32))
    keep = kept((ROWS, NUM_HEADS, length, length), 0.3, key, 1) / 0.7
    found = attend_locally(q, k, v, ids, NUM_HEADS, radius, 0.3, key, 1)
    np.testing.assert_allclose(found, _masked_attention(q, k, v, ids, radius, keep), atol=2e-6)
