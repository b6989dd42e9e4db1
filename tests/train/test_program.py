"""The program of a run is cheap to build and the same on real and abstract meshes."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh

from bert_jax import config
from bert_jax.data.device_batches import device_batches
from bert_jax.data.random_rows import RandomRows
from bert_jax.finetune import heads
from bert_jax.model.layers import LAYERS, is_stacked, logical_axes
from bert_jax.runtime.mesh import AXES, make_mesh
from bert_jax.train.memory import batch_shapes, lower_step
from bert_jax.train.objectives.masked import MASKED_TOKENS, MaskedSums
from bert_jax.train.program import TrainProgram, build_program

pytestmark = pytest.mark.compiles

MODEL = config.Bert(num_layers=2, hidden_size=16, num_heads=2, intermediate_size=32, max_positions=16)
TRAIN = config.Train(steps=4, global_batch_size=4)
DATA = config.Data(sequence_length=16)
VOCAB = 60


def _mesh(fsdp: int = 1) -> Mesh:
    return make_mesh(config.Mesh(data=1, fsdp=fsdp), MODEL, TRAIN, jax.devices()[:fsdp])


def _program(mesh: Mesh | AbstractMesh, **options: object) -> TrainProgram:
    return build_program(MODEL, config.Optimizer(warmup_steps=1), TRAIN, VOCAB, mesh, **options)


def test_abstract_mesh_gives_the_same_shapes_and_shardings() -> None:
    real, abstract = _program(_mesh(fsdp=2)), _program(AbstractMesh((1, 2, 1), AXES))
    assert jax.tree.all(
        jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), real.shapes, abstract.shapes)
    )
    specs = [[sharding.spec for sharding in jax.tree.leaves(program.shardings)] for program in (real, abstract)]
    assert specs[0] == specs[1]
    assert 'fsdp' in {axis for spec in specs[0] for axis in spec}


def test_building_a_program_traces_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('make_train_step', 'make_exact_step', 'make_forward', 'init_state'):
        monkeypatch.setattr(f'bert_jax.train.program.{name}', lambda *_, **__: pytest.fail('called too early'))
    assert _program(_mesh()).num_steps == 4


def test_only_stacked_parameters_have_layers_as_first_axis() -> None:
    params = _program(_mesh()).shapes.params
    variables = jax.tree.leaves_with_path(params, is_leaf=lambda leaf: hasattr(leaf, 'get_metadata'))
    for path, variable in variables:
        assert is_stacked(variable) == (LAYERS in [getattr(key, 'key', None) for key in path])
        assert len(logical_axes(variable)) == variable.get_value().ndim
        assert LAYERS not in logical_axes(variable)[1:]


@pytest.mark.slow
def test_one_step_of_a_program_trains_and_evaluates() -> None:
    mesh = _mesh(fsdp=2)
    program = _program(mesh)
    [(step, batch)] = device_batches(RandomRows(DATA, VOCAB, batch_size=4, seed=0), mesh, 2, 3)
    state = program.init_state(seed=0)
    before = program.objective.metrics(program.evaluation_step(state.params, batch))
    state, metrics = program.train_step(state, batch)
    assert step == 3 and int(state.step) == 1
    assert float(metrics['learning_rate']) == pytest.approx(float(program.schedule(0)))
    assert float(before['loss']) == pytest.approx(np.log(VOCAB) + np.log(2), rel=0.05)
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(program.shardings), strict=True):
        assert leaf.sharding == sharding


def test_lowered_step_is_the_one_that_runs() -> None:
    mesh = _mesh()
    program = _program(mesh)
    state = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        program.shapes,
        program.shardings,
    )
    shapes = batch_shapes(config.Config(model=MODEL, data=DATA, train=TRAIN), mesh)
    assert program.lower(shapes).as_text() == program.train_step.lower(state, shapes).as_text()


@pytest.mark.parametrize(
    'model',
    [
        dataclasses.replace(MODEL, num_layers=7),
        config.ModernBert(num_layers=7, hidden_size=16, num_heads=2, intermediate_size=24, local_attention=4),
        config.EuroBert(num_layers=7, hidden_size=16, num_heads=2, intermediate_size=24),
    ],
    ids=lambda model: model.family,
)
def test_program_does_not_grow_with_depth(model: config.Model) -> None:
    def num_operations(num_layers: int) -> int:
        deep = dataclasses.replace(model, num_layers=num_layers)
        run = config.Config(model=deep, data=dataclasses.replace(DATA, pairing='none'), train=TRAIN)
        return lower_step(run, _mesh(), VOCAB).as_text().count('\n')

    shallow = num_operations(7)
    assert [num_operations(depth) for depth in (22, 28)] == [shallow, shallow]


def test_program_of_a_task_has_its_parameters_and_metrics() -> None:
    program = _program(_mesh(), build=heads.builder('tagging', 3), objective=heads.objective('tagging'))
    assert set(program.shapes.params) == {'bert', 'classifier'}
    assert program.objective.metrics(heads.TaskSums(*np.float32([6, 3, 4]))) == {'loss': 1.5, 'accuracy': 0.75}


@pytest.mark.parametrize('objective', [MASKED_TOKENS, *map(heads.objective, ('classification', 'tagging', 'spans'))])
def test_mean_over_nothing_is_nan_but_the_loss_zero(objective) -> None:
    sums = MaskedSums if objective is MASKED_TOKENS else heads.TaskSums
    found = objective.metrics(sums(*np.zeros(len(sums._fields), np.float32)))
    assert found.pop('loss') == 0 and found
    assert all(np.isnan(value) for value in found.values())
