"""Any mesh, the same curve; one loss for the whole batch."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bert_jax import config
from bert_jax.data.batches import CorpusStream
from bert_jax.data.device_batches import local_rows, make_global
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.program import build_program
from bert_jax.train.state import TrainState
from tests.data.corpora import corpus_of, random_split

VOCAB, BATCH, STEPS = 16_000, 16, 20
MODEL = config.Model(
    num_layers=2, hidden_size=32, num_heads=4, intermediate_size=64, max_positions=32, attention_dropout_rate=0.1
)
OPTIMIZER = config.Optimizer(peak_learning_rate=1e-3, warmup_steps=5)


@pytest.fixture(scope='module')
def stream(tmp_path_factory) -> CorpusStream:
    corpus = corpus_of(random_split(0, num_documents=20), str(tmp_path_factory.mktemp('corpus')))
    corpus.tokenizer = type(corpus.tokenizer)(**{**vars(corpus.tokenizer), 'vocab_size': VOCAB})
    return CorpusStream(corpus, config.Data(sequence_length=32), 'train', batch_size=BATCH, seed=0)


def _run(stream: CorpusStream, axes: dict[str, int], microbatches: int = 1) -> tuple[list[float], TrainState]:
    num_devices = int(np.prod(list(axes.values())))
    train = config.Train(steps=STEPS, global_batch_size=BATCH, microbatches=microbatches)
    mesh = make_mesh(config.Mesh(**axes), MODEL, train, jax.devices()[:num_devices])
    program = build_program(MODEL, OPTIMIZER, train, VOCAB, mesh)
    state, rows, losses = program.init_state(seed=0), local_rows(mesh, BATCH), []
    for number in range(STEPS):
        state, metrics = program.train_step(state, make_global(stream.batch(number % 4, rows), rows, mesh, BATCH))
        losses.append(float(metrics['loss']))
    assert program.train_step._cache_size() == 1  # the state comes out sharded as it went in
    return losses, state


@functools.cache
def reference(stream: CorpusStream) -> tuple[list[float], TrainState]:
    return _run(stream, {'data': 1})


@pytest.mark.parametrize(
    'axes, microbatches',
    [
        ({'data': 8}, 1),
        ({'data': 1, 'fsdp': 4}, 1),
        ({'data': 1, 'tensor': 4}, 1),
        ({'data': 2, 'fsdp': 2, 'tensor': 2}, 1),
        ({'data': 1}, 4),
        ({'data': 2, 'fsdp': 2}, 2),
    ],
)
def test_any_mesh_and_any_microbatches_give_the_same_curve(stream: CorpusStream, axes: dict, microbatches: int) -> None:
    expected, expected_state = reference(stream)
    losses, state = _run(stream, axes, microbatches)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected_state.params), strict=True):
        # Adam moves a parameter whose gradient is rounding noise (the key bias) by up to the learning rate.
        assert np.mean(np.abs(np.asarray(a) - np.asarray(b))) < 1e-5


def test_the_model_learns_what_it_sees_again_and_again(stream: CorpusStream) -> None:
    losses, _ = reference(stream)
    assert losses[-1] < losses[0] - 0.3


def test_parameters_and_moments_are_split_over_fsdp_and_tensor() -> None:
    mesh = make_mesh(config.Mesh(data=2, fsdp=2, tensor=2), MODEL, config.Train(), jax.devices())
    state = build_program(MODEL, OPTIMIZER, config.Train(), VOCAB, mesh).init_state(seed=0)
    moments = state.opt_state[1][0]
    for tree in (state.params, moments.mu, moments.nu):
        kernel = tree['bert']['encoder']['layers']['intermediate']['kernel'].get_value()
        assert kernel.sharding.spec == PartitionSpec(None, 'fsdp', 'tensor')
        assert kernel.addressable_shards[0].data.size * 4 == kernel.size
        word = tree['bert']['embeddings']['word'].get_value()
        assert word.addressable_shards[0].data.size * 4 == word.size


def test_initial_parameters_do_not_depend_on_the_mesh() -> None:
    one = make_mesh(config.Mesh(), MODEL, config.Train(), jax.devices()[:1])
    many = make_mesh(config.Mesh(data=2, fsdp=2, tensor=2), MODEL, config.Train(), jax.devices())
    programs = (build_program(MODEL, OPTIMIZER, config.Train(), VOCAB, mesh) for mesh in (one, many))
    first, second = (program.init_state(seed=3).params for program in programs)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
