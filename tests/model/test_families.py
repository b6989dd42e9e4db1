"""ModernBERT and EuroBERT match `transformers` (torch, float32, eager attention) in every value and gradient."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx

from bert_jax import config
from bert_jax.config.families import FULL, SLIDING
from bert_jax.model.family import build_model
from bert_jax.model.inputs import Inputs
from bert_jax.model.losses import cross_entropy
from bert_jax.pretrained.tensor_names import to_tensors
from bert_jax.train.state import model_graph, model_of
from tests.support.families import MODELS, initial_params, reference_of, rows_of

pytestmark = pytest.mark.compiles

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

VOCAB, B, L, P = 301, 4, 50, 6
LENGTHS = (L, 13, 29, 41)


class Pair(NamedTuple):
    model: config.ModernBert | config.EuroBert
    params: nnx.State
    reference: Any


@pytest.fixture(scope='module', params=MODELS)
def pair(request: pytest.FixtureRequest) -> Pair:
    model = MODELS[request.param]
    params = initial_params(model, VOCAB)
    return Pair(model, params, reference_of(params, model, VOCAB))


def _inputs(seed: int) -> tuple[Inputs, np.ndarray, np.ndarray]:
    """Returns rows of different lengths, positions to predict [B, P] and their labels."""
    rng = np.random.default_rng(seed)
    positions = np.stack([rng.permutation(np.arange(1, length - 1))[:P] for length in LENGTHS]).astype(np.int32)
    return rows_of(LENGTHS, L, VOCAB, seed), positions, rng.integers(5, VOCAB, (B, P)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def _loss_and_logits(
    graph: nnx.GraphDef, params: nnx.State, inputs: Inputs, predicted: tuple
) -> tuple[jax.Array, jax.Array]:
    positions, labels = predicted
    model = nnx.merge(graph, params)
    logits = model.mlm_logits(model.encode(inputs), positions)
    losses, _ = cross_entropy(logits, labels)
    return losses.mean(), logits


def _assert_close(ours: jax.Array | np.ndarray, theirs: Any, where: str, bound: float = 1e-5) -> None:
    theirs = theirs.detach().numpy()
    difference, largest = np.abs(np.asarray(ours) - theirs).max(), np.abs(theirs).max()
    assert difference <= bound * largest, f'{where}: {difference:.2e} where the largest is {largest:.2e}'


def test_logits_loss_and_all_gradients_equal_the_reference(pair: Pair) -> None:
    inputs, positions, labels = _inputs(1)
    graph = model_graph(pair.model, VOCAB)
    value_and_grad = jax.value_and_grad(_loss_and_logits, argnums=1, has_aux=True)
    (loss, logits), grads = value_and_grad(graph, pair.params, inputs, (positions, labels))

    expected_labels = np.full((B, L), -100)
    np.put_along_axis(expected_labels, positions, labels, axis=1)
    theirs = pair.reference(
        input_ids=torch.tensor(inputs.input_ids).long(),
        attention_mask=torch.tensor(inputs.sequence_ids).long(),
        labels=torch.tensor(expected_labels),
    )
    _assert_close(loss, theirs.loss, 'loss')
    expected = np.take_along_axis(theirs.logits.detach().numpy(), positions[..., None], axis=1)
    _assert_close(logits[..., :VOCAB], torch.tensor(expected), 'logits')
    pair.reference.zero_grad()
    theirs.loss.backward()
    gradients = {name: parameter.grad for name, parameter in pair.reference.named_parameters()}
    ours = to_tensors(grads, pair.model, VOCAB)
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        ours_of_it = ours[name]
        if name.endswith(('k_proj.bias', 'Wqkv.bias')):  # the gradient of the keys' bias is zero up to rounding
            assert np.abs(ours_of_it - gradient.numpy()).max() < 1e-7
        else:
            _assert_close(ours_of_it, gradient, name)


def test_output_of_every_layer_equals_the_reference(pair: Pair) -> None:
    inputs, *_ = _inputs(2)
    real = inputs.sequence_ids.astype(bool)
    theirs = pair.reference.model(
        input_ids=torch.tensor(inputs.input_ids).long(),
        attention_mask=torch.tensor(inputs.sequence_ids).long(),
        output_hidden_states=True,
    )
    final_norm = (
        pair.reference.model.norm if isinstance(pair.model, config.EuroBert) else pair.reference.model.final_norm
    )
    for num_layers in range(1, pair.model.num_layers + 1):
        expected = theirs.hidden_states[num_layers]
        expected = expected if num_layers == pair.model.num_layers else final_norm(expected)
        ours = _run(_first_layers(pair, num_layers), inputs)
        _assert_close(ours[real], expected[real], f'layer {num_layers}')


def _run(encoder: Any, inputs: Inputs) -> np.ndarray:
    return np.asarray(jax.jit(lambda inputs: encoder(inputs, None))(inputs))


def _first_layers(pair: Pair, num_layers: int) -> Any:
    """Returns the encoder without its upper layers."""
    model = dataclasses.replace(pair.model, num_layers=num_layers)
    if isinstance(pair.model, config.ModernBert):
        model = dataclasses.replace(model, layer_types=pair.model.kinds[:num_layers])

    def cut(path: tuple, leaf: jax.Array) -> jax.Array:
        return leaf[:num_layers] if any(getattr(entry, 'key', None) == 'layers' for entry in path) else leaf

    return model_of(jax.tree.map_with_path(cut, pair.params), model, VOCAB).encoder


def test_packed_row_equals_its_sequences_alone(pair: Pair) -> None:
    inputs, positions, _ = _inputs(3)
    lengths = (L - 29, 29)
    starts = (0, lengths[0])
    alone = [
        jax.tree.map(lambda array, row=row, length=length: array[row, :length][None], _inputs(row + 4)[0])
        for row, length in enumerate(lengths)
    ]
    alone = [
        each._replace(sequence_ids=np.ones((1, length), np.int32), position_ids=np.arange(length, dtype=np.int32)[None])
        for each, length in zip(alone, lengths, strict=True)
    ]
    packed = jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=1), *alone)
    packed = packed._replace(sequence_ids=np.repeat([1, 2], lengths)[None].astype(np.int32))
    encoder = model_of(pair.params, pair.model, VOCAB).encoder
    together = _run(encoder, packed)
    for each, start, length in zip(alone, starts, lengths, strict=True):
        by_itself = torch.tensor(_run(encoder, each))
        _assert_close(together[:, start : start + length], by_itself, 'packed')


@pytest.mark.parametrize(
    'kind, local_attention, length', [(SLIDING, 16, 60), (SLIDING, 7, 41), (SLIDING, 128, 280), (FULL, 16, 60)]
)
def test_first_layer_sees_exactly_its_window_within_its_sequence(kind: str, local_attention: int, length: int) -> None:
    model = dataclasses.replace(
        MODELS['modernbert'], num_layers=1, layer_types=(kind,), local_attention=local_attention
    )
    encoder, boundary, position = build_model(model, VOCAB, nnx.Rngs(0)).encoder, 5 * length // 8, np.arange(length)
    ids = np.random.default_rng(0).integers(5, VOCAB, (1, length)).astype(np.int32)
    position_ids = np.where(position < boundary, position, position - boundary).astype(np.int32)[None]
    sequence_ids = np.where(position < boundary, 1, 2).astype(np.int32)[None]

    @jax.jit
    def run(ids: np.ndarray) -> jax.Array:
        return encoder(Inputs(ids, np.zeros_like(sequence_ids), sequence_ids, position_ids))[0]

    changed = ids + np.eye(length, dtype=np.int32) * np.where(ids == VOCAB - 1, -1, 1)  # row j has another token j
    differs = (jax.lax.map(run, changed[:, None]) != run(ids)).any(axis=-1)
    distance = np.abs(position - position[:, None])
    is_same_sequence = sequence_ids == sequence_ids.T
    radius = length if kind == FULL else local_attention // 2
    np.testing.assert_array_equal(differs, (distance <= radius) & is_same_sequence)
    assert differs.sum(axis=0).max() == min(2 * radius + 1, boundary)  # 129 tokens for a window of 128
