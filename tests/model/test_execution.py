"""Scan, remat and bfloat16 compute the same gradients in every family, within rounding."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bert_jax import config
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.family import build_model
from bert_jax.model.inputs import Inputs
from bert_jax.model.losses import cross_entropy
from bert_jax.train.state import model_of
from tests.support.steps import FAMILIES, MODELS

pytestmark = pytest.mark.compiles

VOCAB, B, L = 211, 2, 24


@functools.cache
def _params(model: config.Model) -> nnx.State:
    return jax.jit(lambda: nnx.state(build_model(model, VOCAB, nnx.Rngs(0)), nnx.Param))()


def _loss(params: nnx.State, model: config.Model, key: DropoutKey | None) -> jax.Array:
    """Predicts every token of two packed rows."""
    ids = jnp.arange(5, 5 + B * L).reshape(B, L)
    position = jnp.broadcast_to(jnp.arange(L), (B, L))
    inputs = Inputs(ids, jnp.zeros_like(ids), 1 + (position >= 15), position % 15)
    built = model_of(params, model, VOCAB)
    losses, _ = cross_entropy(built.mlm_logits(built.encode(inputs, key), position), ids)
    return losses.mean()


@functools.partial(jax.jit, static_argnums=(1, 2))
def _loss_and_gradients(params: nnx.State, model: config.Model, with_dropout: bool) -> Any:
    key = DropoutKey(jnp.uint32(3), jnp.arange(B, dtype=jnp.uint32)) if with_dropout else None
    return jax.value_and_grad(_loss)(params, model, key)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize(
    'scan_layers, remat',
    [
        (True, 'dots'),
        *(
            pytest.param(*how, marks=pytest.mark.slow)
            for how in [(False, 'none'), (False, 'dots'), (True, 'full'), (False, 'full')]
        ),
    ],
)
def test_scan_and_remat_do_not_change_the_gradients(family: str, scan_layers: bool, remat: str) -> None:
    model = MODELS[family]
    params = _params(model)
    _, expected = _loss_and_gradients(params, model, True)
    _, found = _loss_and_gradients(params, dataclasses.replace(model, scan_layers=scan_layers, remat=remat), True)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize('family', FAMILIES)
def test_bfloat16_stays_within_rounding_and_keeps_float32_where_needed(family: str) -> None:
    """Tolerance: losses within 1%, gradients within 5% of the norm, of the float32 ones."""
    model = MODELS[family]
    params, low = _params(model), dataclasses.replace(model, dtype='bfloat16')
    (loss, grads), (low_loss, low_grads) = (_loss_and_gradients(params, one, False) for one in (model, low))
    assert abs(float(low_loss) / float(loss) - 1) < 0.01
    assert low_loss.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(low_grads))
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, low_grads, grads))
    assert float(difference) < 0.05 * float(optax.tree.norm(grads))
    # No exponential (softmax, cross entropy) and no inverse root (norms) in bfloat16.
    text = str(jax.make_jaxpr(_loss, static_argnums=(1, 2))(params, low, None))
    lines = [line for line in text.splitlines() if ' exp ' in line or 'rsqrt' in line]
    assert lines and not [line for line in lines if 'bf16' in line.partition('=')[0]]
