"""Forward programs run in slices on each device's rows, with the result of a single device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from bert_jax import config
from bert_jax.data.device_batches import device_batches
from bert_jax.finetune import heads
from bert_jax.finetune.evaluator import model_outputs
from bert_jax.finetune.rows import TaskBatch, TaskStream, make_rows
from bert_jax.model.layers import Dense, stack
from bert_jax.runtime.mesh import AXES, batch_sharding, make_mesh
from bert_jax.train import step
from bert_jax.train.gradients import Collectives
from bert_jax.train.program import TrainProgram, build_program
from bert_jax.train.sharding import parameter_specs

pytestmark = pytest.mark.compiles

MODEL = config.Bert(num_layers=2, hidden_size=16, num_heads=2, intermediate_size=32, max_positions=16)
VOCAB, ROWS, LENGTH = 60, 16, 16
TRAIN = config.Train(steps=1, global_batch_size=ROWS)


def _program(mesh: Mesh | AbstractMesh, model: config.Model = MODEL) -> TrainProgram:
    build, objective = heads.builder('tagging', 3), heads.objective('tagging')
    return build_program(model, config.Optimizer(), TRAIN, VOCAB, mesh, build=build, objective=objective)


def _mesh(**axes: int) -> Mesh:
    return make_mesh(config.Mesh(**axes), MODEL, TRAIN, jax.devices()[: int(np.prod(list(axes.values())))])


@functools.cache
def _predicted(**axes: int) -> tuple[np.ndarray, heads.TaskSums]:
    rng = np.random.default_rng(0)
    ids = [[2, *rng.integers(5, VOCAB, size), 3] for size in rng.integers(4, 14, ROWS)]
    tags = rng.integers(0, 3, sum(map(len, ids))).astype(np.int32)
    rows = make_rows(ids, [len(row) for row in ids], tags)
    stream = TaskStream(rows, batch_size=ROWS, seed=None, sequence_length=LENGTH, pad_id=0)
    mesh = _mesh(**axes)
    program = _program(mesh)
    params = program.init_state(seed=0).params
    [(_, batch)] = device_batches(stream, mesh, 0, 1)
    outputs = program.forward(model_outputs)(params, batch)
    assert outputs.is_fully_replicated
    return np.asarray(outputs), jax.device_get(program.evaluation_step(params, batch))


@pytest.mark.slow
@pytest.mark.parametrize('axes', [{'data': 8}, {'data': 1, 'fsdp': 2, 'tensor': 2}], ids=str)
def test_predictions_on_any_mesh_equal_those_of_one_device(axes: dict[str, int]) -> None:
    outputs, sums = _predicted(**axes)
    expected, expected_sums = _predicted(data=1)
    assert outputs.shape == (ROWS, LENGTH, 3)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    np.testing.assert_allclose(sums, expected_sums, rtol=1e-5)


@pytest.mark.slow
def test_slices_of_a_batch_keep_the_row_order(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, expected_sums = _predicted(data=1)
    monkeypatch.setattr(step, '_EVALUATED_AT_ONCE', 6)  # the largest divisor of 16 below: 4
    outputs, sums = _predicted.__wrapped__(data=1)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    np.testing.assert_allclose(sums, expected_sums, rtol=1e-5)


@pytest.mark.parametrize('sizes', [(2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_predictions_on_two_tpus_use_the_attention_kernel(sizes: tuple[int, int, int]) -> None:
    model = config.Bert(num_layers=1, hidden_size=256, num_heads=4, intermediate_size=128, max_positions=128)
    device = AbstractDevice('TPU v5 lite', num_cores=1, platform='tpu')
    mesh = AbstractMesh(sizes, AXES, (AxisType.Auto,) * 3, abstract_device=device)
    program = _program(mesh, model)

    def shape(
        dims: tuple[int, ...], dtype: str = 'int32', sharding: NamedSharding | None = None
    ) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding or batch_sharding(mesh))

    params = jax.tree.map(
        lambda leaf, sharding: shape(leaf.shape, leaf.dtype, sharding), program.shapes.params, program.shardings.params
    )
    tokens = [shape((2, 128))] * 4
    batch = TaskBatch(*tokens, shape((2, 1)), shape((2, 128)), shape((2, 128), 'float32'))
    lowered = program.forward(model_outputs).trace(params, batch).lower(lowering_platforms=('tpu',))
    assert 'tpu_custom_call' in lowered.as_text()


class _TwoStacks(nnx.Module):
    """Two stacks with the same parameter names but other axes. The first sorts after the second."""

    def __init__(self, rngs: nnx.Rngs):
        self.wide = stack(lambda rngs: Dense(8, 8, ('embed', 'mlp'), 1.0, 'float32', rngs), 2, rngs)
        self.deep = stack(lambda rngs: Dense(8, 8, ('mlp', 'embed'), 1.0, 'float32', rngs), 3, rngs)


@pytest.mark.slow
def test_each_stack_is_gathered_by_its_own_axes() -> None:
    mesh = _mesh(data=1, fsdp=2)
    graph, params = nnx.split(_TwoStacks(nnx.Rngs(0)))
    collectives = Collectives(mesh, parameter_specs(params, mesh))

    def first_layers(params: nnx.State) -> list[nnx.State]:
        model = collectives.merge(graph, collectives.gather_outside_layers(params))
        stacks = [nnx.state(layers) for layers in (model.wide, model.deep)]
        return [collectives.gather_layer(jax.tree.map(lambda weight: weight[0], layers)) for layers in stacks]

    found = collectives.over_rows(first_layers, (collectives.specs,), PartitionSpec())(params)
    for layers, name in zip(found, ('wide', 'deep'), strict=True):
        expected = jax.tree.map(lambda weight: weight[0], params[name])
        assert jax.tree.all(jax.tree.map(jnp.array_equal, nnx.to_pure_dict(layers), nnx.to_pure_dict(expected)))
