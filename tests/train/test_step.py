"""Every mesh and number of microbatches gives the same loss curve."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.model.layers import logical_axes
from bert_jax.runtime.mesh import make_mesh, mesh_sizes
from bert_jax.train.program import build_program
from tests.support.steps import ADAMW, FAMILIES, FAST, MODEL, MODELS, VOCAB, train_steps

MIXED = {'data': 2, 'fsdp': 2, 'tensor': 2}


@pytest.mark.compiles
@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize(
    'axes, microbatches',
    [
        pytest.param({'data': 8}, 1, marks=pytest.mark.slow),
        pytest.param({'data': 1, 'tensor': 4}, 1, marks=pytest.mark.slow),
        pytest.param({'data': 2, 'fsdp': 2}, 2, marks=pytest.mark.slow),
        (MIXED, 2),
    ],
)
def test_every_mesh_and_microbatch_count_gives_the_same_curve(
    stream_of: Callable, reference_of: Callable, family: str, axes: dict, microbatches: int
) -> None:
    train = dataclasses.replace(FAST, microbatches=microbatches)
    losses, state, _ = train_steps(stream_of(family), axes, train, ADAMW, MODELS[family])
    reference = reference_of(family)
    np.testing.assert_allclose(losses, reference.losses, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(reference.state.params), strict=True):
        # Adam moves a parameter whose gradient is rounding noise (the key bias) by up to the learning rate.
        assert np.mean(np.abs(np.asarray(a) - np.asarray(b))) < 1e-5


@pytest.mark.compiles
@pytest.mark.parametrize('family', FAMILIES)
def test_loss_falls_on_repeated_batches(reference_of: Callable, family: str) -> None:
    losses = reference_of(family).losses
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.slow
@pytest.mark.parametrize('family', [name for name in MODELS if name != 'bert'])
@pytest.mark.parametrize('changes', [{'remat': 'full'}, {'remat': 'dots'}, {'scan_layers': False}], ids=str)
def test_remat_and_unrolled_layers_give_the_same_curve_on_a_mesh(
    stream_of: Callable, reference_of: Callable, family: str, changes: dict
) -> None:
    model = dataclasses.replace(MODELS[family], **changes)
    losses = train_steps(stream_of(family), {'data': 1, 'fsdp': 2}, FAST, ADAMW, model).losses
    np.testing.assert_allclose(losses, reference_of(family).losses, rtol=1e-5)


@pytest.mark.parametrize('family', MODELS)
def test_parameters_and_moments_are_split_over_fsdp_and_tensor(family: str) -> None:
    model = MODELS[family]
    program = build_program(model, ADAMW, FAST, VOCAB, make_mesh(config.Mesh(**MIXED), model, FAST, jax.devices()))
    shardings = program.shardings
    moments = shardings.opt_state[1][0]
    for tree in (shardings.params, moments.mu, moments.nu):
        specs = [
            (logical_axes(variable), variable.get_value().spec)
            for variable in jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
        ]
        assert (('layers', 'embed', 'mlp'), PartitionSpec(None, 'fsdp', 'tensor')) in specs
        assert (('layers', 'heads', 'embed'), PartitionSpec(None, 'tensor', 'fsdp')) in specs
        assert all(spec == PartitionSpec('tensor', 'fsdp') for axes, spec in specs if axes == ('vocab', 'embed'))


@pytest.mark.parametrize(
    'family, changes, expected',
    [
        ('bert', {'num_heads': 4}, 'which does not divide the 4 heads'),
        ('modernbert', {'hidden_size': 48, 'num_heads': 3}, 'which does not divide the 3 heads'),
        ('eurobert', {'num_key_value_heads': 2}, 'which does not divide the 2 heads of keys and values'),
    ],
)
def test_tensor_axis_that_splits_a_head_is_rejected(family: str, changes: dict, expected: str) -> None:
    model = dataclasses.replace(MODELS[family], **changes)
    with pytest.raises(BadInput, match=f'config.mesh.tensor: is 8, {expected}'):
        mesh_sizes(config.Mesh(data=1, tensor=8), model, FAST, 8)


@pytest.mark.slow
def test_initial_parameters_do_not_depend_on_the_mesh() -> None:
    one = make_mesh(config.Mesh(), MODEL, config.Train(), jax.devices()[:1])
    many = make_mesh(config.Mesh(data=2, fsdp=2, tensor=2), MODEL, config.Train(), jax.devices())
    programs = (build_program(MODEL, ADAMW, FAST, VOCAB, mesh) for mesh in (one, many))
    first, second = (program.init_state(seed=3).params for program in programs)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
