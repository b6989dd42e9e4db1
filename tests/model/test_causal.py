"""In causal rows the output at a position does not depend on later ones: its gradient there is exactly 0."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.model import gpu_attention, tpu_attention
from bert_jax.model.attention import attend
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.family import build_model
from bert_jax.model.inputs import Inputs
from bert_jax.model.plain_attention import attend_by_scores
from tests.support.steps import MODELS

pytestmark = pytest.mark.compiles

ROWS, HEADS, SIZE = 3, 2, 16
IS_CAUSAL = np.array([True, False, True])
KEY = DropoutKey(jnp.uint32(7), jnp.arange(3, 3 + ROWS, dtype=jnp.uint32), 2)


def _ids(length: int) -> np.ndarray:
    """Returns sequence ids, [3, L]: two packed rows of three sequences and padding, and one sequence with padding."""
    ids = np.zeros((ROWS, length), np.int32)
    ids[:2, : length // 2], ids[:2, length // 2 : -30], ids[:2, -30:-5], ids[2, : -length // 3] = 1, 2, 3, 1
    return ids


def _sees(ids: np.ndarray, radius: int | None, is_causal: np.ndarray) -> np.ndarray:
    """Returns bool [B, L, L], by definition."""
    position = np.arange(ids.shape[1])
    distance = position - position[:, None]
    sees = (ids[:, :, None] == ids[:, None, :]) & (ids[:, None, :] > 0)
    if radius is not None:
        sees = sees & (np.abs(distance) <= radius)
    return sees & ((distance <= 0) | ~is_causal[:, None, None])


def _reference(q: jax.Array, k: jax.Array, v: jax.Array, ids: np.ndarray, rate: float, radius: int | None) -> jax.Array:
    q, k, v = (x.reshape(ROWS, -1, HEADS, SIZE).swapaxes(1, 2) for x in (q, k, v))
    sees = jnp.asarray(_sees(ids, radius, IS_CAUSAL)[:, None])
    return attend_by_scores(q, k, v, sees, rate, KEY, 1).swapaxes(1, 2).reshape(ROWS, ids.shape[1], -1)


def _ordinary(q: jax.Array, k: jax.Array, v: jax.Array, ids: np.ndarray, rate: float, radius: int | None) -> jax.Array:
    is_causal = jnp.asarray(IS_CAUSAL)
    return attend(q, k, v, jnp.asarray(ids), HEADS, rate, KEY, 'plain', radius, is_causal)


def _kernel(module, q: jax.Array, k: jax.Array, v: jax.Array, ids: np.ndarray, rate: float, radius: int | None):
    aheads = jnp.where(IS_CAUSAL, 0, ids.shape[1]).astype(jnp.int32)
    row_keys, first_head = KEY.of_rows(1), jnp.zeros(1, jnp.uint32)
    settings = {'num_heads': HEADS, 'rate': rate, 'radius': radius, 'interpret': True}
    return module.attend(q, k, v, jnp.asarray(ids), row_keys, first_head, aheads, **settings)


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    'ordinary': _ordinary,
    'gpu': functools.partial(_kernel, gpu_attention),
    'tpu': functools.partial(_kernel, tpu_attention),
}
CASES = [(256, 0.0, None), (256, 0.1, 40), (640, 0.0, 64)]


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the TPU kernels divide the rows into blocks of 128."""
    monkeypatch.setattr(tpu_attention, '_BLOCK_BYTES', 128 * HEADS * SIZE * 4)


@pytest.mark.parametrize('name', IMPLEMENTATIONS)
@pytest.mark.parametrize('length, rate, radius', CASES)
def test_values_and_gradients_equal_masked_scores(name: str, length: int, rate: float, radius: int | None) -> None:
    ids, rng = _ids(length), np.random.default_rng(0)
    real = ids[..., None] > 0
    q, k, v, gradient = (jnp.asarray(rng.standard_normal((ROWS, length, HEADS * SIZE)), 'float32') for _ in range(4))

    def run(attend: Callable[..., jax.Array]) -> list[np.ndarray]:
        out, pull = jax.vjp(jax.jit(lambda q, k, v: attend(q, k, v, ids, rate, radius)), q, k, v)
        return [np.where(real, x, 0) for x in (out, *pull(jnp.where(real, gradient, 0)))]

    for found, expected in zip(run(IMPLEMENTATIONS[name]), run(_reference), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('name', IMPLEMENTATIONS)
@pytest.mark.parametrize('length, rate, radius', CASES)
def test_gradient_of_a_causal_output_is_zero_at_later_inputs(
    name: str, length: int, rate: float, radius: int | None
) -> None:
    """Of one attention layer, for every kind of position: the first, last and middle ones of sequences and blocks."""
    ids, rng = _ids(length), np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((ROWS, length, HEADS * SIZE)), 'float32')
    sees = _sees(ids, radius, IS_CAUSAL)

    @jax.jit
    def gradient(position: jax.Array) -> jax.Array:
        return jax.grad(lambda x: (IMPLEMENTATIONS[name](x, x, x, ids, rate, radius)[:, position] ** 2).sum())(x)

    for position in (0, 1, 63, 64, 65, length // 2 - 1, length // 2, length // 2 + 1, length - 31, length - 30):
        found = np.abs(np.asarray(gradient(jnp.asarray(position)))).max(axis=-1)  # BL
        for row in range(ROWS):
            if ids[row, position]:
                assert not found[row][~sees[row, position]].any(), (row, position)
                assert rate or (found[row][sees[row, position]] > 0).all()


@pytest.mark.parametrize('family', MODELS)
@pytest.mark.parametrize('scan', [True, False])
def test_a_whole_model_is_causal_in_packed_rows(family: str, scan: bool) -> None:
    """Local layers and layers of several kinds included. Rows without causal attention depend on later tokens."""
    model = dataclasses.replace(MODELS[family], dtype='float32', scan_layers=scan)
    ids, length = _ids(64), 64
    ids[:2, 36:], ids[:2, 40:60] = 0, 2
    built = build_model(model, 100, nnx.Rngs(0))
    tokens = np.random.default_rng(0).integers(5, 100, ids.shape).astype(np.int32)
    starts = np.maximum.accumulate(np.where(np.diff(ids, prepend=-1) != 0, np.arange(length), 0), axis=1)
    position_ids = np.minimum(np.arange(length) - starts, 31).astype(np.int32)
    inputs = Inputs(tokens, np.zeros_like(tokens), ids, position_ids, jnp.asarray(IS_CAUSAL))
    graph, params = nnx.split(built)

    @jax.jit
    def outputs(tokens: jax.Array) -> jax.Array:
        return nnx.merge(graph, params).encode(inputs._replace(input_ids=tokens))

    before = np.asarray(outputs(tokens))
    for changed in (5, 20, 33):
        other = tokens.copy()
        other[:, changed] = (other[:, changed] + 1) % 95 + 5
        differs = (np.asarray(outputs(other)) != before).any(axis=-1) & (ids > 0)
        assert not differs[IS_CAUSAL][:, :changed].any() and differs[:, changed].all()
        same = (ids == ids[:, changed][:, None]) & (np.arange(length) < changed) & ~IS_CAUSAL[:, None]
        assert differs[same & (np.abs(np.arange(length) - changed) <= 4)].all()
