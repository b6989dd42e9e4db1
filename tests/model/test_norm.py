"""Norms, gelu and dropout have the gradients of their plain forms, from less that is kept for the backward pass."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model import dropout as dropout_module
from bert_jax.model import gpu_norm
from bert_jax.model import norm as norm_module
from bert_jax.model.dropout import DropoutKey, dropout, kept
from bert_jax.model.layers import biased_gelu, gated, gelu, silu
from bert_jax.model.norm import normalize

B, L, D, EPS = 3, 5, 40, 1e-5
_WITHIN = {'float32': 1e-6, 'bfloat16': 2e-2}


def _random(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


def _value_and_gradients(function: Callable[..., jax.Array], *arguments: jax.Array) -> list[jax.Array]:
    """Returns the value and the gradients for a random gradient of the value."""
    value, pull = jax.vjp(function, *arguments)
    return [value, *pull(_random(*value.shape).astype(value.dtype))]


def _assert_close(found: list[jax.Array], expected: list[jax.Array], dtype: str) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert np.isfinite(np.asarray(ours, np.float32)).all()
        atol = _WITHIN[dtype] * float(jnp.abs(theirs).max())
        np.testing.assert_allclose(np.float32(ours), np.float32(theirs), rtol=0, atol=atol)


def _plain_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | float, centre: bool) -> jax.Array:
    x = x - x.mean(axis=-1, keepdims=True) if centre else x
    return x / jnp.sqrt(jnp.square(x).mean(axis=-1, keepdims=True) + EPS) * scale + bias


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
@pytest.mark.parametrize('centre, has_bias', [(True, True), (True, False), (False, False)])
def test_norm_has_the_value_and_gradients_of_the_plain_form(
    monkeypatch: pytest.MonkeyPatch, centre: bool, has_bias: bool, platform: str, dtype: str
) -> None:
    monkeypatch.setattr(norm_module, 'target_platform', lambda: platform)
    x = (2 + 3 * _random(B, L, D)).astype(dtype).astype(jnp.float32)  # exact in both dtypes
    weights = [1 + _random(D), *([_random(D + 1)[:D]] if has_bias else [])]

    def ours(x: jax.Array, scale: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        return normalize(x.astype(dtype), scale, bias, EPS, dtype, centre)

    def plain(x: jax.Array, scale: jax.Array, bias: jax.Array | float = 0.0) -> jax.Array:
        return _plain_norm(x, scale, bias, centre)

    _assert_close(_value_and_gradients(ours, x, *weights), _value_and_gradients(plain, x, *weights), dtype)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('rate', [0.0, 0.25])
@pytest.mark.parametrize('length, size', [(16, 40), (192, 64)])
def test_gpu_kernel_has_the_value_and_gradients_of_the_plain_form(
    length: int, size: int, rate: float, dtype: str
) -> None:
    key = DropoutKey(jnp.uint32(7), jnp.asarray([0, 3], jnp.uint32), layer=2)
    x, branch = (_random(2, length, size, n)[..., 0].astype(dtype).astype(jnp.float32) for n in (1, 2))
    weights = [_random(size, n)[:, 0] for n in (1, 2, 3)]

    def ours(x: jax.Array, branch: jax.Array, *weights: jax.Array) -> jax.Array:
        x, branch = x.astype(dtype), branch.astype(dtype)
        row_keys = key.of_rows(2)
        settings: Any = {'eps': EPS, 'rate': rate, 'num_uses': 2, 'interpret': True}
        first, second = gpu_norm.add_and_normalize(x, branch, *weights, row_keys, **settings)
        return first + 2 * second

    def plain(x: jax.Array, branch: jax.Array, bias_of: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        dropped = jnp.where(kept(x.shape, rate, key, site=2), (branch + bias_of) / (1 - rate), 0.0)
        return 3 * _plain_norm(x + dropped, scale, bias, centre=True)

    arguments = (x, branch, *weights)
    _assert_close(_value_and_gradients(ours, *arguments), _value_and_gradients(plain, *arguments), dtype)


def test_norm_of_equal_values_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_module, 'target_platform', lambda: 'gpu')
    x = jnp.full((B, L, D), 1000.1, jnp.float32)
    found = _value_and_gradients(lambda x: normalize(x, jnp.ones(D), None, 1e-12, 'float32', True), x)
    assert all(np.isfinite(each).all() for each in found)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gelu_and_gates_have_the_gradients_of_the_plain_form(dtype: str) -> None:
    x, bias, up = _random(B, L, D).astype(dtype), _random(D), _random(B, L, D + 1)[..., :D].astype(dtype)
    wide, wide_up = x.astype(jnp.float32), up.astype(jnp.float32)

    def plain_gelu(x: jax.Array) -> jax.Array:
        return jax.nn.gelu(x, approximate=False)

    ours = _value_and_gradients(biased_gelu, x, bias)
    _assert_close(ours, _value_and_gradients(lambda x, bias: plain_gelu(x + bias), wide, bias), dtype)
    for activation, plain in ((gelu, plain_gelu), (silu, jax.nn.silu)):
        ours = _value_and_gradients(lambda x, up, f=activation: gated(f, x, up), x, up)
        expected = _value_and_gradients(lambda x, up, f=plain: f(x) * up, wide, wide_up)
        _assert_close(ours, expected, dtype)


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_gradient_of_dropout_has_the_mask_of_its_value(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(dropout_module, 'target_platform', lambda: platform)
    key = DropoutKey(jnp.uint32(7), jnp.arange(B, dtype=jnp.uint32), layer=2)
    x = _random(B, L, D)
    value, gradient = _value_and_gradients(lambda x: dropout(x, 0.25, key, site=3), x)
    mask = np.asarray(kept((B, L, D), 0.25, key, site=3))
    assert 0.6 < mask.mean() < 0.9
    for found, of in ((value, x), (gradient, x)):
        np.testing.assert_allclose(found, np.where(mask, of / 0.75, 0.0), rtol=1e-6)


def _kept_shapes(function: Callable[..., jax.Array], *arguments: jax.Array) -> list[tuple[Any, tuple[int, ...]]]:
    """Returns (dtype, shape) of what the backward pass keeps of more than a value per token."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda *given: jax.vjp(function, *given)[1], *arguments))
    return sorted((str(leaf.dtype), leaf.shape) for leaf in leaves if leaf.size > B * L and leaf.ndim > 1)


def test_only_inputs_are_kept_for_the_backward_pass() -> None:
    x, weight = _random(B, L, D).astype('bfloat16'), _random(D)
    key = DropoutKey(jnp.uint32(7), jnp.arange(B, dtype=jnp.uint32))
    one = ('bfloat16', (B, L, D))
    assert _kept_shapes(lambda x: normalize(x, weight, weight, EPS, 'bfloat16', True), x) == [one]
    assert _kept_shapes(biased_gelu, x, weight) == [one]
    assert _kept_shapes(lambda gate, up: gated(gelu, gate, up), x, x) == [one, one]
    assert _kept_shapes(lambda x: dropout(x, 0.1, key, site=2), x) == []
