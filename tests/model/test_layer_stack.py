"""A stack of mixed layers gives the same output scanned, unrolled, or applied layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.model import layer_stack
from bert_jax.model.layer_stack import run_layers
from bert_jax.model.layers import Dense, stack

SIZE = 6


def _stack(num_layers: int) -> nnx.Module:
    return stack(lambda rngs: Dense(SIZE, SIZE, ('embed', 'mlp'), 0.5, 'float32', rngs), num_layers, nnx.Rngs(0))


def _apply(layer: Dense, x: jax.Array, index: jax.Array, kind: str) -> jax.Array:
    return jnp.tanh(layer(x)) + (x if kind == 'residual' else 0) + index.astype(jnp.float32)


@pytest.mark.parametrize('remat', ['none', 'full'])
@pytest.mark.parametrize(
    'kinds', ['aaaa', 'abbabba', 'abbab', 'abcde', 'aab', 'a'], ids=lambda kinds: f'{len(kinds)} layers {kinds}'
)
def test_scan_unrolled_loop_and_single_layers_agree(kinds: str, remat: str) -> None:
    names = ['residual' if kind == 'a' else kind for kind in kinds]
    layers, x = _stack(len(kinds)), jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, SIZE)), jnp.float32)
    graph, stacked = nnx.split(layers)

    def one_by_one(stacked: nnx.State) -> jax.Array:
        y = x
        for index, kind in enumerate(names):
            layer = nnx.merge(graph, jax.tree.map(lambda leaf, index=index: leaf[index], stacked))
            y = _apply(layer, y, jnp.uint32(index + 1), kind)
        return y

    def run(stacked: nnx.State, scan: bool) -> jax.Array:
        return run_layers(nnx.merge(graph, stacked), x, _apply, names, remat=remat, scan=scan)

    expected = one_by_one(stacked)
    expected_grads = jax.grad(lambda stacked: one_by_one(stacked).sum())(stacked)
    for scan in (True, False):
        np.testing.assert_allclose(run(stacked, scan), expected, rtol=1e-4, atol=1e-4)
        grads = jax.grad(lambda stacked, scan=scan: run(stacked, scan).sum())(stacked)
        for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
            assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize(
    'platform, num_layers, remat, is_gathered, expected',
    [
        ('cpu', 4, 'none', False, False),
        ('cpu', 5, 'none', False, True),
        ('gpu', 24, 'none', False, False),
        ('gpu', 29, 'none', False, True),
        ('tpu', 16, 'none', False, False),
        ('tpu', 17, 'none', False, True),
        ('gpu', 12, 'dots', False, True),
        ('gpu', 12, 'none', True, True),
        ('gpu', 4, 'full', True, False),
    ],
)
def test_layers_are_unrolled_where_their_activations_may_stay_in_memory(
    monkeypatch: pytest.MonkeyPatch, platform: str, num_layers: int, remat: str, is_gathered: bool, expected: bool
) -> None:
    monkeypatch.setattr(layer_stack, 'target_platform', lambda: platform)
    assert layer_stack.is_scanned(num_layers, remat, is_gathered) is expected


def test_program_does_not_grow_with_the_number_of_periods() -> None:
    def length_of_program(num_layers: int) -> int:
        kinds = ['global' if layer % 3 == 0 else 'local' for layer in range(num_layers)]
        x = jnp.ones((1, 2, SIZE))
        function = jax.jit(lambda x: run_layers(_stack(num_layers), x, _apply, kinds, remat='none', scan=True))
        return len(str(jax.make_jaxpr(function)(x)))

    assert length_of_program(28) < 1.1 * length_of_program(7)
