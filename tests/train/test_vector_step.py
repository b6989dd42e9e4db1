"""A loss over all vectors of a batch has the same curve on every mesh, for any number of microbatches."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bert_jax import config
from bert_jax.config.embedding import Embedding
from bert_jax.data.device_batches import local_rows, make_global
from bert_jax.data.pair_batches import PairBatch
from bert_jax.finetune.embedding import EmbeddingObjective, embedding_builder
from bert_jax.model.contrastive import WHOLE
from bert_jax.model.dropout import DropoutKey, dropout_base
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.program import TrainProgram, build_program
from tests.support.steps import ADAMW, BATCH, FAMILIES, MODEL, MODELS, VOCAB, Curve

L, E, Q, R = 16, 3, 12, 3  # positions, texts of a row, groups of a batch, roles
STEPS = 4
TRAIN = config.Train(steps=STEPS, global_batch_size=BATCH)
SETTINGS = {
    'infonce': Embedding(
        temperature=0.1,
        symmetric=True,
        num_negatives=R - 2,
        mask_margin=0.1,
        matryoshka_dims=(32, 8),
        matryoshka_weights=(1.0, 0.5),
    ),
    'cosent': Embedding(loss='cosent', pooling='cls'),
    'cosine': Embedding(loss='cosine'),
}
MIXED = {'data': 2, 'fsdp': 2, 'tensor': 2}


def _batch(seed: int) -> PairBatch:
    """Returns rows of packed texts: groups of two or three members anywhere, one without a positive, empty slots."""
    rng = np.random.default_rng(seed)
    members = [(index, role) for index in range(Q) for role in range(R) if (index, role) not in ((2, 2), (5, 1))]
    slots = rng.permutation(BATCH * E)[: len(members)]
    groups, roles, text_ids = (np.full(BATCH * E, empty, np.int32) for empty in (-1, 0, -1))
    scores = np.zeros(BATCH * E, np.float32)
    groups[slots], roles[slots] = np.array(members, np.int32).T
    text_ids[slots] = rng.integers(0, 2 * len(members), len(members))
    scores[slots] = rng.integers(0, 4, len(members))
    sequence_ids, position_ids = np.zeros((2, BATCH, L), np.int32)
    cls_positions = np.zeros((BATCH, E), np.int32)
    for row, slot in np.argwhere(groups.reshape(BATCH, E) >= 0):
        start, length = 5 * slot, int(rng.integers(2, 6))
        sequence_ids[row, start : start + length] = slot + 1
        position_ids[row, start : start + length] = np.arange(length)
        cls_positions[row, slot] = start
    ids = np.where(sequence_ids, rng.integers(5, VOCAB, (BATCH, L)), 0).astype(np.int32)
    labels = (array.reshape(BATCH, E) for array in (groups, roles, text_ids, scores))
    return PairBatch(ids, np.zeros_like(ids), sequence_ids, position_ids, cls_positions, *labels)


def _program(family: str, axes: dict[str, int], train: config.Train, loss: str = 'infonce') -> TrainProgram:
    model, settings = MODELS[family], SETTINGS[loss]
    mesh = make_mesh(config.Mesh(**axes), model, train, jax.devices()[: int(np.prod(list(axes.values())))])
    build, objective = embedding_builder(settings.pooling), EmbeddingObjective(settings, Q)
    return build_program(model, ADAMW, train, VOCAB, mesh, build=build, objective=objective)


def _train(family: str, axes: dict[str, int], microbatches: int = 1, loss: str = 'infonce') -> Curve:
    program = _program(family, axes, dataclasses.replace(TRAIN, microbatches=microbatches), loss)
    mesh = program.device_mesh
    state, rows, losses, metrics = program.init_state(seed=0), local_rows(mesh, BATCH), [], {}
    for step in range(STEPS):
        batch = jax.tree.map(lambda array: array[rows], _batch(step % 2))
        state, metrics = program.train_step(state, make_global(batch, rows, mesh, BATCH))
        losses.append(float(metrics['loss']))
    assert program.train_step._cache_size() == 1  # the state comes out sharded as it went in
    return Curve(losses, state, metrics)


_reference = functools.cache(functools.partial(_train, axes={'data': 1}))


@pytest.mark.compiles
@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize(
    'axes, microbatches',
    [
        ({'data': 1}, 4),
        pytest.param({'data': 8}, 1, marks=pytest.mark.slow),
        pytest.param({'data': 1, 'tensor': 4}, 1, marks=pytest.mark.slow),
        (MIXED, 2),
    ],
)
def test_every_mesh_and_microbatch_count_gives_the_same_curve(family: str, axes: dict, microbatches: int) -> None:
    losses, state, metrics = _train(family, axes, microbatches)
    reference = _reference(family)
    np.testing.assert_allclose(losses, reference.losses, rtol=1e-5)
    np.testing.assert_allclose(metrics['accuracy'], reference.metrics['accuracy'], rtol=1e-6)
    np.testing.assert_allclose(metrics['grad_norm'], reference.metrics['grad_norm'], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(reference.state.params), strict=True):
        # Adam moves a parameter whose gradient is rounding noise (the key bias) by up to the learning rate.
        assert np.mean(np.abs(np.asarray(a) - np.asarray(b))) < 1e-5


@pytest.mark.compiles
@pytest.mark.parametrize('loss', ['cosent', pytest.param('cosine', marks=pytest.mark.slow)])
def test_scored_pairs_have_the_same_curve_on_a_mesh(loss: str) -> None:
    losses = _train('bert', {'data': 2, 'fsdp': 2}, 2, loss).losses
    np.testing.assert_allclose(losses, _reference('bert', loss=loss).losses, rtol=1e-5)
    assert len({*losses}) == STEPS


@pytest.mark.compiles
@pytest.mark.parametrize('microbatches', [1, 4])
def test_gradients_equal_those_of_model_and_loss_as_one_function(microbatches: int) -> None:
    train = dataclasses.replace(TRAIN, microbatches=microbatches)
    program = _program('bert', {'data': 1}, train)
    objective, state, batch = program.objective, program.init_state(seed=0), jax.tree.map(jnp.asarray, _batch(0))
    key = DropoutKey(dropout_base(train.seed, state.step), jnp.arange(BATCH, dtype=jnp.uint32))

    @jax.jit
    @jax.value_and_grad
    def loss(params: nnx.State) -> jax.Array:
        vectors = objective.vectors(nnx.merge(program.graph, params), batch, key)
        return objective.loss(vectors, objective.labels(batch), WHOLE)[0]

    value, grads = loss(state.params)
    _, metrics = program.train_step(state, batch)
    np.testing.assert_allclose(metrics['loss'], value, rtol=1e-5)
    np.testing.assert_allclose(metrics['grad_norm'], optax.tree.norm(grads), rtol=1e-5)


@pytest.mark.compiles
def test_vectors_are_gathered_and_their_gradient_scattered_once() -> None:
    program = _program('bert', {'data': 2}, dataclasses.replace(TRAIN, microbatches=2))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _batch(0))
    compiled = program.lower(shapes).compile().as_text()
    exchanged = re.findall(r'= f32(\S+)\{\S+ (all-gather|reduce-scatter|all-to-all)\(', compiled)
    assert exchanged == [(f'[{BATCH},{E},32]', 'all-gather'), (f'[{BATCH // 2},{E},32]', 'reduce-scatter')]
    assert len(re.findall(r' all-reduce\(', compiled)) <= 2  # gradients and metrics; integers


@pytest.mark.compiles
def test_memory_is_that_of_one_microbatch() -> None:
    def temporaries(microbatches: int) -> int:
        size = BATCH * microbatches
        train = dataclasses.replace(TRAIN, global_batch_size=size, microbatches=microbatches)
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *_longer(x)), x.dtype), _batch(0))
        compiled = _program('bert', {'data': 1}, train).lower(batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def _longer(x: np.ndarray) -> tuple[int, ...]:
        return (32,) if x.shape[1] == L else x.shape[1:]

    assert temporaries(16) < 1.25 * temporaries(1)


def test_pooling_is_of_each_packed_text() -> None:
    batch, model = _batch(0), MODEL
    for pooling in ('cls', 'mean'):
        embedder = embedding_builder(pooling)(model, VOCAB, nnx.Rngs(0))
        hidden, vectors = np.asarray(embedder.encode(batch.inputs)), np.asarray(embedder(batch))
        for row, slot in np.argwhere(batch.groups >= 0):
            tokens = hidden[row][batch.sequence_ids[row] == slot + 1]
            expected = tokens[0] if pooling == 'cls' else tokens.mean(axis=0)
            np.testing.assert_allclose(vectors[row, slot], expected, rtol=1e-5, atol=1e-6)
