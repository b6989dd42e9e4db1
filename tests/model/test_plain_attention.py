"""Attention in ordinary JAX equals a direct computation in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model import plain_attention
from bert_jax.model.dropout import DropoutKey, kept
from bert_jax.model.plain_attention import attend_by_scores

B, H, M, N, K, SITE = 2, 3, 10, 14, 8, 1
_WITHIN = {'float32': 2e-6, 'bfloat16': 3e-2}


def _directly(q: jax.Array, k: jax.Array, v: jax.Array, sees: np.ndarray, keep: np.ndarray, rate: float) -> jax.Array:
    scores = jnp.where(sees, jnp.einsum('bhmk,bhnk->bhmn', q, k) / K**0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1) * keep / (1 - rate)
    return jnp.einsum('bhmn,bhnk->bhmk', weights, v)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
@pytest.mark.parametrize('rate, size', [(0.0, 1.0), (0.3, 1.0), (0.3, 4.0)])
def test_values_and_gradients_equal_a_direct_computation(
    monkeypatch: pytest.MonkeyPatch, rate: float, size: float, platform: str, dtype: str
) -> None:
    monkeypatch.setattr(plain_attention, 'target_platform', lambda: platform)
    rng = np.random.default_rng(0)
    q, k, v, upstream = (
        np.asarray(jnp.asarray(rng.standard_normal((B, H, length, K)), jnp.bfloat16), np.float32)
        for length in (M, N, N, M)
    )
    q = q * size
    sees = (rng.random((B, 1, M, N)) < 0.7) | (np.arange(N) == 3)
    key = DropoutKey(jnp.uint32(5), jnp.arange(B, dtype=jnp.uint32))
    keep = np.asarray(kept((B, H, M, N), rate, key, SITE)) if rate else np.ones((B, H, M, N))
    assert (0.2 < 1 - keep.mean() < 0.4) if rate else keep.all()

    ours, pull = jax.vjp(
        jax.jit(lambda *given: attend_by_scores(*given, sees, rate, key, SITE)),
        *(jnp.asarray(each, dtype) for each in (q, k, v)),
    )
    expected, expected_pull = jax.vjp(lambda *given: _directly(*given, sees, keep, rate), q, k, v)
    pairs = [(ours, expected), *zip(pull(jnp.asarray(upstream, dtype)), expected_pull(upstream), strict=True)]
    for found, theirs in pairs:
        assert found.dtype == dtype
        np.testing.assert_allclose(
            np.float32(found), theirs, rtol=0, atol=_WITHIN[dtype] * float(jnp.abs(theirs).max())
        )


def test_queries_that_see_nothing_get_finite_values_and_gradients() -> None:
    q, k, v = (jnp.asarray(np.random.default_rng(1).standard_normal((1, 1, 4, K)), jnp.float32) for _ in range(3))
    sees = np.zeros((1, 1, 4, 4), bool)
    value, pull = jax.vjp(lambda *given: attend_by_scores(*given, sees, 0.0, None, SITE), q, k, v)
    assert jnp.isfinite(value).all()
    assert all(jnp.isfinite(gradient).all() for gradient in pull(value))
