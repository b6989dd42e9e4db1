"""train.reduction='exact': the same bits, however many devices there are and however they hold the state."""

import functools

import jax
import numpy as np
import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.train.exact import make_exact_step
from bert_jax.train.optimizer import make_optimizer, make_schedule
from bert_jax.train.sharding import local_rows, make_global, make_mesh, mesh_sizes
from bert_jax.train.state import TrainState, init_state, model_graph, state_shardings
from tests.train.test_step import BATCH, MODEL, VOCAB, reference, stream  # noqa: F401

STEPS, SHARDS = 4, 8
# Norms of all gradients and of each layer, whose order of addition a split over fsdp would change.
OPTIMIZER = config.Optimizer(name='lamb', peak_learning_rate=1e-2, warmup_steps=2, clip_norm=0.1)


@functools.cache
def _bits(stream, **axes: int) -> tuple[list[bytes], list[float], TrainState]:  # noqa: F811
    train = config.Train(steps=STEPS, global_batch_size=BATCH, reduction='exact', exact_shards=SHARDS)
    devices = jax.devices()[: int(np.prod(list(axes.values())))]
    mesh = make_mesh(config.Mesh(**axes), MODEL, train, devices)
    optimizer, schedule = make_optimizer(OPTIMIZER, STEPS), make_schedule(OPTIMIZER, STEPS)
    state = init_state(MODEL, VOCAB, optimizer, mesh, seed=0)
    _, shardings = state_shardings(MODEL, VOCAB, optimizer, mesh)
    step = make_exact_step(model_graph(MODEL, VOCAB), optimizer, schedule, mesh, shardings, seed=0, num_shards=SHARDS)
    rows, losses = local_rows(mesh, BATCH), []
    for number in range(STEPS):
        state, metrics = step(state, make_global(stream.batch(number % 4, rows), rows, mesh, BATCH))
        losses.append(float(metrics['loss']))
    assert metrics.keys() >= {'learning_rate', 'grad_norm', 'mlm_accuracy', 'tokens'}
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)], losses, state


@pytest.mark.parametrize('axes', [{'data': 8}, {'data': 2, 'fsdp': 2}], ids=str)
def test_parameters_moments_and_losses_are_the_same_bits_on_any_mesh(stream, axes: dict[str, int]) -> None:  # noqa: F811
    expected, expected_losses, _ = _bits(stream, data=1)
    found, losses, state = _bits(stream, **axes)
    assert losses == expected_losses
    assert found == expected
    kernel = state.params['bert']['encoder']['layers']['intermediate']['kernel'].get_value()
    assert kernel.addressable_shards[0].data.size * axes.get('fsdp', 1) == kernel.size  # split again at rest


def test_it_is_the_curve_of_the_fast_reduction(stream) -> None:  # noqa: F811
    losses = _bits(stream, data=1)[1]
    first, _ = reference(stream)
    np.testing.assert_allclose(losses[0], first[0], rtol=1e-6)  # of the same weights, before any update


def test_what_cannot_be_exact_is_told() -> None:
    train = config.Train(global_batch_size=64, reduction='exact', exact_shards=8)
    with pytest.raises(BadInput, match='splits rows only'):
        mesh_sizes(config.Mesh(tensor=2), MODEL, train, 8)
    with pytest.raises(BadInput, match='one of 1, 2, 4, 8'):
        mesh_sizes(config.Mesh(), MODEL, train, 16)
    for fields, message in (
        ({'exact_shards': 6}, 'a power of two'),
        ({'global_batch_size': 12}, 'does not divide train.global_batch_size=12'),
        ({'microbatches': 2}, 'the shards are the microbatches'),
    ):
        given = config.bert('tiny')
        given.train.update({'reduction': 'exact'} | fields)
        with pytest.raises(BadInput, match=message):
            config.resolve(given)
