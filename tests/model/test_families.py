"""ModernBERT and EuroBERT match `transformers` (torch, float32, eager attention) in every value and gradient."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx

from bert_jax.config.families import FULL, SLIDING, EuroBert, ModernBert
from bert_jax.model.eurobert import EuroBertForMaskedLM
from bert_jax.model.inputs import Inputs
from bert_jax.model.losses import cross_entropy
from bert_jax.model.modernbert import ModernBertForMaskedLM
from bert_jax.pretrained.tensor_names import to_tensors

pytestmark = pytest.mark.compiles

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

VOCAB, B, L, P = 301, 4, 50, 6
LENGTHS = (L, 13, 29, 41)

MODELS = {
    'modernbert': ModernBert(num_layers=5, hidden_size=64, num_heads=2, intermediate_size=96, local_attention=16),
    'modernbert_odd': ModernBert(
        num_layers=4,
        hidden_size=96,
        num_heads=3,
        intermediate_size=80,
        local_attention=10,
        layer_types=(SLIDING, FULL, FULL, SLIDING),
        attention_bias=True,
        mlp_bias=True,
        norm_bias=True,
        classifier_bias=True,
        decoder_bias=False,
    ),
    'eurobert': EuroBert(num_layers=3, hidden_size=64, num_heads=4, num_key_value_heads=2, intermediate_size=112),
    'eurobert_tied': EuroBert(
        num_layers=2,
        hidden_size=96,
        num_heads=3,
        intermediate_size=64,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
}


def _reference_of(model: ModernBert | EuroBert) -> Any:
    shared = {
        'vocab_size': VOCAB,
        'hidden_size': model.hidden_size,
        'num_hidden_layers': model.num_layers,
        'num_attention_heads': model.num_heads,
        'intermediate_size': model.intermediate_size,
        'attention_bias': model.attention_bias,
        'mlp_bias': model.mlp_bias,
        'pad_token_id': 0,
        'bos_token_id': 1,
        'eos_token_id': 2,
        'attn_implementation': 'eager',
    }
    if isinstance(model, EuroBert):
        settings = transformers.EuroBertConfig(
            **shared,
            num_key_value_heads=model.num_key_value_heads or model.num_heads,
            rope_parameters={'rope_type': 'default', 'rope_theta': model.rope_theta},
            rms_norm_eps=model.rms_norm_eps,
            tie_word_embeddings=model.tie_word_embeddings,
        )
        return transformers.EuroBertForMaskedLM(settings).eval()
    thetas = {FULL: model.global_rope_theta, SLIDING: model.local_rope_theta}
    settings = transformers.ModernBertConfig(
        **shared,
        cls_token_id=1,
        sep_token_id=2,
        norm_eps=model.norm_eps,
        norm_bias=model.norm_bias,
        classifier_bias=model.classifier_bias,
        decoder_bias=model.decoder_bias,
        local_attention=model.local_attention,
        layer_types=list(model.kinds),
        rope_parameters={kind: {'rope_type': 'default', 'rope_theta': theta} for kind, theta in thetas.items()},
    )
    return transformers.ModernBertForMaskedLM(settings).eval()


def _build(model: ModernBert | EuroBert) -> Any:
    return (EuroBertForMaskedLM if isinstance(model, EuroBert) else ModernBertForMaskedLM)(model, VOCAB, nnx.Rngs(0))


def _named(params: nnx.State, model: ModernBert | EuroBert) -> dict[str, np.ndarray]:
    """Returns parameters or gradients by the reference's names."""
    return to_tensors(params, model, VOCAB)


class Pair(NamedTuple):
    model: ModernBert | EuroBert
    params: nnx.State
    reference: Any


@pytest.fixture(scope='module', params=MODELS)
def pair(request: pytest.FixtureRequest) -> Pair:
    model = MODELS[request.param]
    params = nnx.state(_build(model), nnx.Param)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)  # a swapped bias changes the output
    params = tree.unflatten([leaf + 0.03 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])
    reference = _reference_of(model)
    weights = {name: torch.tensor(value) for name, value in _named(params, model).items()}
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {'decoder.weight', 'lm_head.weight'}, (missing, unexpected)
    reference.tie_weights()
    return Pair(model, params, reference)


def _inputs(seed: int) -> tuple[Inputs, np.ndarray, np.ndarray]:
    """Returns rows of different lengths, positions to predict, [B, P], and their labels."""
    rng = np.random.default_rng(seed)
    position = np.arange(L)
    present = (position < np.array(LENGTHS)[:, None]).astype(np.int32)
    ids = np.where(present, rng.integers(5, VOCAB, (B, L)), 0).astype(np.int32)
    positions = np.stack([rng.permutation(np.arange(1, length - 1))[:P] for length in LENGTHS]).astype(np.int32)
    inputs = Inputs(ids, np.zeros((B, L), np.int32), present, (position * present).astype(np.int32))
    return inputs, positions, rng.integers(5, VOCAB, (B, P)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def _loss_and_logits(
    graph: nnx.GraphDef, params: nnx.State, inputs: Inputs, predicted: tuple
) -> tuple[jax.Array, jax.Array]:
    positions, labels = predicted
    model = nnx.merge(graph, params)
    logits = model.mlm_logits(model.encode(inputs, is_packed=False), positions)
    losses, _ = cross_entropy(logits, labels)
    return losses.mean(), logits


def _assert_close(ours: jax.Array | np.ndarray, theirs: Any, where: str, bound: float = 1e-5) -> None:
    theirs = theirs.detach().numpy()
    difference, largest = np.abs(np.asarray(ours) - theirs).max(), np.abs(theirs).max()
    assert difference <= bound * largest, f'{where}: {difference:.2e} where the largest is {largest:.2e}'


def test_logits_loss_and_all_gradients_equal_the_reference(pair: Pair) -> None:
    inputs, positions, labels = _inputs(1)
    graph = nnx.graphdef(_build(pair.model))
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
    ours = _named(grads, pair.model)
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
    final_norm = pair.reference.model.norm if isinstance(pair.model, EuroBert) else pair.reference.model.final_norm
    for num_layers in range(1, pair.model.num_layers + 1):
        expected = theirs.hidden_states[num_layers]
        expected = expected if num_layers == pair.model.num_layers else final_norm(expected)
        ours = _first_layers(pair, num_layers)(inputs, None, False)
        _assert_close(ours[real], expected[real], f'layer {num_layers}')


def _first_layers(pair: Pair, num_layers: int) -> Any:
    """Returns the encoder without its upper layers."""
    model = dataclasses.replace(pair.model, num_layers=num_layers)
    if isinstance(pair.model, ModernBert):
        model = dataclasses.replace(model, layer_types=pair.model.kinds[:num_layers])

    def cut(path: tuple, leaf: jax.Array) -> jax.Array:
        return leaf[:num_layers] if any(getattr(entry, 'key', None) == 'layers' for entry in path) else leaf

    return nnx.merge(nnx.graphdef(_build(model)), jax.tree.map_with_path(cut, pair.params)).encoder


def test_packed_row_equals_its_sequences_alone(pair: Pair) -> None:
    inputs, positions, _ = _inputs(3)
    lengths = (L - 29, 29)
    starts = (0, lengths[0])
    alone = [
        Inputs(*(array[row, :length][None] for array in _inputs(row + 4)[0])) for row, length in enumerate(lengths)
    ]
    alone = [
        each._replace(sequence_ids=np.ones((1, length), np.int32), position_ids=np.arange(length, dtype=np.int32)[None])
        for each, length in zip(alone, lengths, strict=True)
    ]
    packed = Inputs(*(np.concatenate(arrays, axis=1) for arrays in zip(*alone, strict=True)))
    packed = packed._replace(sequence_ids=np.repeat([1, 2], lengths)[None].astype(np.int32))
    encoder = nnx.merge(nnx.graphdef(_build(pair.model)), pair.params).encoder
    together = encoder(packed, None, True)
    for each, start, length in zip(alone, starts, lengths, strict=True):
        by_itself = torch.tensor(np.asarray(encoder(each, None, False)))
        _assert_close(together[:, start : start + length], by_itself, 'packed')


def test_local_layer_sees_exactly_its_window_within_its_sequence() -> None:
    model = dataclasses.replace(MODELS['modernbert'], num_layers=1, layer_types=(SLIDING,))
    encoder = _build(model).encoder
    length, boundary, radius = 60, 31, model.local_attention // 2
    ids = np.random.default_rng(0).integers(5, VOCAB, (1, length)).astype(np.int32)
    positions = np.concatenate((np.arange(boundary), np.arange(length - boundary))).astype(np.int32)[None]
    sequence_ids = np.where(np.arange(length) < boundary, 1, 2).astype(np.int32)[None]
    inputs = Inputs(ids, np.zeros_like(ids), sequence_ids, positions)
    run = jax.jit(lambda inputs: encoder(inputs, None, True))
    before = np.asarray(run(inputs))[0]
    for changed in range(length):
        other = ids.copy()
        other[0, changed] = (other[0, changed] - 5 + 1) % (VOCAB - 5) + 5
        differs = (np.asarray(run(inputs._replace(input_ids=other)))[0] != before).any(axis=-1)
        distance = np.abs(np.arange(length) - changed)
        same_sequence = (np.arange(length) < boundary) == (changed < boundary)
        np.testing.assert_array_equal(differs, (distance <= radius) & same_sequence)
