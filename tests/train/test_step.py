"""Every mesh and number of microbatches gives the same loss curve."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bert_jax import config
from bert_jax.data.batches import CorpusStream
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.program import build_program
from tests.support.steps import ADAMW, FAST, MODEL, VOCAB, Curve, train_steps


@pytest.mark.compiles
@pytest.mark.parametrize(
    'axes, microbatches',
    [
        pytest.param({'data': 8}, 1, marks=pytest.mark.slow),
        pytest.param({'data': 1, 'tensor': 4}, 1, marks=pytest.mark.slow),
        pytest.param({'data': 2, 'fsdp': 2}, 2, marks=pytest.mark.slow),
        ({'data': 2, 'fsdp': 2, 'tensor': 2}, 2),
    ],
)
def test_every_mesh_and_microbatch_count_gives_the_same_curve(
    stream: CorpusStream, reference: Curve, axes: dict, microbatches: int
) -> None:
    train = dataclasses.replace(FAST, microbatches=microbatches)
    losses, state, _ = train_steps(stream, axes, train, ADAMW)
    np.testing.assert_allclose(losses, reference.losses, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(reference.state.params), strict=True):
        # Adam moves a parameter whose gradient is rounding noise (the key bias) by up to the learning rate.
        assert np.mean(np.abs(np.asarray(a) - np.asarray(b))) < 1e-5


@pytest.mark.compiles
def test_loss_falls_on_repeated_batches(reference: Curve) -> None:
    losses = reference.losses
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.compiles
def test_parameters_and_moments_are_split_over_fsdp_and_tensor() -> None:
    mesh = make_mesh(config.Mesh(data=2, fsdp=2, tensor=2), MODEL, config.Train(), jax.devices())
    state = build_program(MODEL, ADAMW, FAST, VOCAB, mesh).init_state(seed=0)
    moments = state.opt_state[1][0]
    for tree in (state.params, moments.mu, moments.nu):
        kernel = tree['bert']['encoder']['layers']['intermediate']['kernel'].get_value()
        assert kernel.sharding.spec == PartitionSpec(None, 'fsdp', 'tensor')
        assert kernel.addressable_shards[0].data.size * 4 == kernel.size
        word = tree['bert']['embeddings']['word'].get_value()
        assert word.addressable_shards[0].data.size * 4 == word.size


@pytest.mark.slow
def test_initial_parameters_do_not_depend_on_the_mesh() -> None:
    one = make_mesh(config.Mesh(), MODEL, config.Train(), jax.devices()[:1])
    many = make_mesh(config.Mesh(data=2, fsdp=2, tensor=2), MODEL, config.Train(), jax.devices())
    programs = (build_program(MODEL, ADAMW, FAST, VOCAB, mesh) for mesh in (one, many))
    first, second = (program.init_state(seed=3).params for program in programs)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
