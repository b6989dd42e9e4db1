"""The moving average of the parameters is NumPy's, is sharded and saved with the state, and costs nothing when off."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.program import TrainProgram, build_program
from bert_jax.train.state import TrainState, moved_average
from bert_jax.workdir.checkpoint import Checkpoints
from tests.support.steps import ADAMW, BATCH, MODEL, VOCAB

pytestmark = pytest.mark.compiles

TRAIN = config.Train(steps=4, global_batch_size=BATCH, ema=0.3)


def _program(train: config.Train, axes: dict[str, int]) -> TrainProgram:
    devices = jax.devices()[: int(np.prod(list(axes.values())))]
    return build_program(MODEL, ADAMW, train, VOCAB, make_mesh(config.Mesh(**axes), MODEL, train, devices))


def _leaves(tree: object) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_average_after_each_step_is_the_one_of_numpy(stream_of: Callable) -> None:
    with_ema, without = (_program(dataclasses.replace(TRAIN, ema=ema), {'data': 1}) for ema in (TRAIN.ema, 0.0))
    state, plain = with_ema.init_state(seed=0), without.init_state(seed=0)
    expected = [leaf.astype(np.float64) for leaf in _leaves(state.params)]
    for index in range(TRAIN.steps):
        batch = jax.tree.map(jnp.asarray, stream_of('bert').batch(index))
        (state, _), (plain, _) = with_ema.train_step(state, batch), without.train_step(plain, batch)
        rate = min(0.3, (1 + index) / (10 + index))  # 0.1, 0.18, 0.25, 0.3
        pairs = zip(expected, _leaves(state.params), strict=True)
        expected = [mean * rate + leaf.astype(np.float64) * (1 - rate) for mean, leaf in pairs]
        for found, value in zip(_leaves(state.weights), expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-7)
    assert plain.weights is plain.params and 'ema' not in plain.to_save()
    for ours, theirs in zip(_leaves(state.params), _leaves(plain.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_rate_never_exceeds_the_decay() -> None:
    ema, params = {'x': jnp.ones(3)}, {'x': jnp.zeros(3)}
    found = [float(moved_average(ema, params, 0.99, jnp.int32(n))['x'][0]) for n in (0, 9, 890, 10**6)]
    np.testing.assert_allclose(found, [0.1, 10 / 19, 0.99, 0.99], rtol=1e-6)


def test_average_is_sharded_and_saved_like_the_parameters(tmp_path: Path) -> None:
    program = _program(TRAIN, {'data': 2, 'fsdp': 2, 'tensor': 2})
    assert jax.tree.leaves(program.shardings.ema) == jax.tree.leaves(program.shardings.params)
    initial = program.init_state(seed=1).params
    for params in (None, initial):
        state = program.init_state(seed=0, params=params)
        assert [leaf.sharding for leaf in jax.tree.leaves(state.ema)] == jax.tree.leaves(program.shardings.ema)
        for mean, leaf in zip(_leaves(state.ema), _leaves(state.params), strict=True):
            np.testing.assert_array_equal(mean, leaf)
    moved = state._replace(step=state.step + 1, ema=jax.tree.map(lambda leaf: leaf + 1, state.ema))
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(moved)
        checkpoints.wait()
        restored = checkpoints.restore(program.shapes, program.shardings, 1)
    for found, leaf in zip(_leaves(restored.ema), _leaves(initial), strict=True):
        np.testing.assert_array_equal(found, leaf + 1)


def test_average_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    state = TrainState(jnp.int32(1), {'x': jnp.ones(2)}, {}, {'x': jnp.array([1.0, jnp.nan])})
    with pytest.raises(BadInput, match='not finite'), Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(state)
