"""With train.reduction='exact' every mesh gives the same bits."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import nnx

from bert_jax import config
from bert_jax.data.batches import CorpusStream
from bert_jax.data.device_batches import device_batches
from bert_jax.errors import BadInput
from bert_jax.finetune import heads
from bert_jax.finetune.packing import Packing
from bert_jax.finetune.rows import TaskStream, make_rows
from bert_jax.model.layers import logical_axes
from bert_jax.runtime.mesh import make_mesh, mesh_sizes
from bert_jax.train.program import build_program
from tests.support.steps import BATCH, MODEL, MODELS, Curve, train_steps

pytestmark = pytest.mark.compiles

STEPS, SHARDS = 4, 8
TASK_VOCAB, TASK_BATCH = 60, 8
# Needs norms of all gradients and of each layer, whose order of summation a split over fsdp could change.
OPTIMIZER = config.Optimizer(name='lamb', peak_learning_rate=1e-2, warmup_steps=2, clip_norm=0.1)


@pytest.fixture(scope='module')
def curve_of(stream_of: Callable[[str], CorpusStream]) -> Callable[..., Curve]:
    """Returns a family's curve on a mesh."""

    @functools.cache
    def curve(family: str, **axes: int) -> Curve:
        train = config.Train(steps=STEPS, global_batch_size=BATCH, reduction='exact', exact_shards=SHARDS)
        return train_steps(stream_of(family), axes, train, OPTIMIZER, MODELS[family])

    return curve


def _bits(curve: Curve) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(curve.state)]


@pytest.mark.slow
@pytest.mark.parametrize('family', MODELS)
@pytest.mark.parametrize('axes', [{'data': 8}, {'data': 2, 'fsdp': 2}], ids=str)
def test_state_and_losses_are_bit_identical_on_any_mesh(
    curve_of: Callable[..., Curve], axes: dict[str, int], family: str
) -> None:
    found, alone = curve_of(family, **axes), curve_of(family, data=1)
    assert found.losses == alone.losses
    assert _bits(found) == _bits(alone)
    assert found.metrics.keys() >= {'learning_rate', 'grad_norm', 'mlm_accuracy', 'tokens'}
    for parameter in jax.tree.leaves(found.state.params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
        value, num_parts = parameter.get_value(), axes.get('fsdp', 1) if 'embed' in logical_axes(parameter) else 1
        assert value.addressable_shards[0].data.size * num_parts == value.size  # stored split over fsdp


@pytest.mark.slow
@pytest.mark.parametrize('family', MODELS)
def test_exact_loss_equals_that_of_the_fast_reduction(
    curve_of: Callable[..., Curve], reference_of: Callable[[str], Curve], family: str
) -> None:
    first, fast = (curve.losses[0] for curve in (curve_of(family, data=1), reference_of(family)))  # before any update
    np.testing.assert_allclose(first, fast, rtol=1e-6)


def _task_stream() -> TaskStream:
    rng = np.random.default_rng(0)
    ids = [[2, *rng.integers(5, TASK_VOCAB, size), 3] for size in rng.integers(4, 14, 20)]
    rows = make_rows(ids, [len(row) for row in ids], rng.integers(0, 3, 20).astype(np.int32))
    packing = Packing(2, num_rows_multiple=4)
    return TaskStream(rows, batch_size=TASK_BATCH, seed=0, sequence_length=16, pad_id=0, packing=packing)


@functools.cache
def _task_bits(num_devices: int, fsdp: int, seed: int) -> tuple[bytes, ...]:
    model = dataclasses.replace(MODEL, num_layers=1, hidden_size=16, num_heads=2, intermediate_size=32)
    train = config.Train(steps=2, global_batch_size=TASK_BATCH, reduction='exact', exact_shards=4)
    mesh = make_mesh(config.Mesh(fsdp=fsdp), model, train, jax.devices()[:num_devices])
    build, objective = heads.builder('classification', 3), heads.objective('classification')
    program = build_program(model, OPTIMIZER, train, TASK_VOCAB, mesh, build=build, objective=objective)
    state = program.init_state(seed=0)
    for _, batch in device_batches(_task_stream(), mesh, 0, 2):
        state, metrics = program.train_step(state, batch, np.uint32(seed))
    assert metrics.keys() >= {'loss', 'accuracy', 'tokens'}
    return tuple(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state, metrics['loss'])))


@pytest.mark.slow
@pytest.mark.parametrize('num_devices, fsdp', [(2, 1), (4, 2)])
def test_classification_is_bit_identical_on_any_mesh(num_devices: int, fsdp: int) -> None:
    assert _task_bits(num_devices, fsdp, 3) == _task_bits(1, 1, 3)


@pytest.mark.slow
def test_seed_of_a_step_changes_the_dropout() -> None:
    assert _task_bits(1, 1, 3) != _task_bits(1, 1, 4)


def test_settings_that_prevent_exactness_are_rejected() -> None:
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
