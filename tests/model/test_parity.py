"""The model matches the reference implementation of BERT (torch, float32).

Compares every intermediate value, both losses, every gradient, and ten optimizer steps. Bounds are relative to the
largest magnitude in a tensor. The gradient of an attention key bias is zero in exact arithmetic, because softmax
ignores constants, so it is compared absolutely.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax import config
from bert_jax.data.batches import Batch
from bert_jax.model.bert import BertForPreTraining
from bert_jax.pretrained import hugging_face, tensor_names
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.objectives.masked import MASKED_TOKENS
from bert_jax.train.program import build_program
from bert_jax.train.state import model_of
from tests.support.models import Vocabulary

pytestmark = pytest.mark.compiles

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

VOCAB, B, L, P = 301, 4, 32, 6


def _model(num_layers: int, hidden_size: int, num_heads: int) -> config.Model:
    return config.Bert(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=num_heads,
        intermediate_size=4 * hidden_size,
        max_positions=40,
        dropout_rate=0.0,
        attention_dropout_rate=0.0,
    )


SIZES = [_model(2, 128, 2), _model(4, 64, 4), _model(1, 192, 3)]


def _batch(seed: int) -> Batch:
    """Returns rows of different lengths with two segments and one padding prediction each."""
    rng = np.random.default_rng(seed)
    lengths = np.array([L, 13, 20, 27])
    position = np.arange(L)
    present = (position < lengths[:, None]).astype(np.int32)
    positions = np.stack([rng.permutation(np.arange(1, length - 1))[:P] for length in lengths]).astype(np.int32)
    weights = np.ones((B, P), np.float32)
    weights[:, -1], positions[:, -1] = 0, 0
    ids = np.where(present, rng.integers(5, VOCAB, (B, L)), 0).astype(np.int32)
    return Batch(
        input_ids=ids,
        token_type_ids=((position >= lengths[:, None] // 2) * present).astype(np.int32),
        sequence_ids=present,
        position_ids=(position * present).astype(np.int32),
        masked_lm_positions=positions,
        masked_lm_ids=rng.integers(5, VOCAB, (B, P)).astype(np.int32),
        masked_lm_weights=weights,
        cls_positions=np.zeros((B, 1), np.int32),
        next_sentence_labels=rng.integers(0, 2, (B, 1)).astype(np.int32),
        next_sentence_weights=np.ones((B, 1), np.float32),
    )


class Pair(NamedTuple):
    """Our parameters, and the reference with the same weights and without dropout."""

    model: config.Model
    params: nnx.State
    reference: Any


@pytest.fixture(
    scope='module',
    params=[*(pytest.param(size, marks=pytest.mark.slow) for size in SIZES[::2]), SIZES[1]],
    ids=lambda model: f'L{model.num_layers}_H{model.hidden_size}',
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return _make_pair(request.param, tmp_path_factory.mktemp('pair'))


@functools.partial(jax.jit, static_argnums=0)
def _initial(model: config.Model) -> nnx.State:
    return nnx.state(BertForPreTraining(model, VOCAB, nnx.Rngs(0)), nnx.Param)


def _make_pair(model: config.Model, directory: Path) -> Pair:
    params = _initial(model)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)  # a swapped bias changes the output
    params = tree.unflatten([leaf + 0.03 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])
    hugging_face.write_model(directory, params, model, Vocabulary(VOCAB))
    reference = transformers.BertForPreTraining.from_pretrained(directory, attn_implementation='eager').eval()
    return Pair(model, params, reference)


def _run_reference(reference: Any, batch: Batch) -> Any:
    """Returns the reference's output, with hidden states and the loss on the masked positions."""
    labels = np.full((B, L), -100)
    for row in range(B):
        real = batch.masked_lm_weights[row] > 0
        labels[row, batch.masked_lm_positions[row][real]] = batch.masked_lm_ids[row][real]
    return reference(
        input_ids=torch.tensor(batch.input_ids).long(),
        token_type_ids=torch.tensor(batch.token_type_ids).long(),
        attention_mask=torch.tensor(batch.sequence_ids).long(),
        labels=torch.tensor(labels),
        next_sentence_label=torch.tensor(batch.next_sentence_labels[:, 0]).long(),
        output_hidden_states=True,
    )


def _assert_close(ours: jax.Array, theirs: Any, where: str, bound: float = 1e-5) -> None:
    theirs = theirs.detach().numpy()
    difference, largest = np.abs(np.asarray(ours) - theirs).max(), np.abs(theirs).max()
    assert difference <= bound * largest, f'{where}: difference {difference:.2e}, largest value {largest:.2e}'


@functools.partial(jax.jit, static_argnums=2)
def _hidden_states(params: nnx.State, batch: Batch, model: config.Model) -> list[jax.Array]:
    """Returns the embeddings and the output of every layer, [B, L, D] each."""
    bert = model_of(params, model, VOCAB).bert
    states = [bert.embeddings(batch.inputs, None)]
    graph, stacked = nnx.split(bert.encoder.layers)
    for layer in range(bert.encoder.num_layers):
        one = nnx.merge(graph, jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked))
        states += one((states[-1],), jnp.asarray(batch.sequence_ids), None)
    return states


def test_all_intermediate_values_and_losses_equal_the_reference(pair: Pair) -> None:
    batch = _batch(1)
    real = batch.sequence_ids.astype(bool)
    model = model_of(pair.params, pair.model, VOCAB)
    theirs = _run_reference(pair.reference, batch)
    states = _hidden_states(pair.params, batch, pair.model)
    assert len(states) == len(theirs.hidden_states)
    for layer, (a, b) in enumerate(zip(states, theirs.hidden_states, strict=True)):
        _assert_close(a[real], b[real], f'hidden states {layer}')
    scanned = model.bert(batch.inputs)
    _assert_close(scanned[real], theirs.hidden_states[-1][real], 'the scanned encoder')
    pooled = model.bert.pool(scanned, batch.cls_positions)[:, 0]
    _assert_close(pooled, pair.reference.bert.pooler(theirs.hidden_states[-1]), 'pooler')
    everywhere = jnp.broadcast_to(jnp.arange(L), (B, L))
    mlm = model.mlm_logits(scanned, everywhere)[..., :VOCAB]
    _assert_close(mlm[real], theirs.prediction_logits[real], 'MLM logits')
    nsp = model.nsp_logits(scanned, batch.cls_positions)[:, 0]
    _assert_close(nsp, theirs.seq_relationship_logits, 'NSP logits')
    metrics = MASKED_TOKENS.metrics(MASKED_TOKENS.sums(model, jax.tree.map(jnp.asarray, batch), None))
    _assert_close(metrics['loss'], theirs.loss, 'loss')
    cross_entropy = torch.nn.functional.cross_entropy
    next_sentence = torch.tensor(batch.next_sentence_labels[:, 0]).long()
    _assert_close(metrics['nsp_loss'], cross_entropy(theirs.seq_relationship_logits, next_sentence), 'NSP loss')


def test_all_gradients_equal_the_reference(pair: Pair) -> None:
    batch = _batch(2)
    pair.reference.zero_grad()
    _run_reference(pair.reference, batch).loss.backward()
    theirs = {name: value.grad for name, value in pair.reference.named_parameters()}
    _, grads = _loss_and_gradients(pair.params, batch, pair.model)
    ours = tensor_names.to_tensors(grads, pair.model, VOCAB)
    assert theirs.keys() == ours.keys()
    for name, gradient in theirs.items():
        if name.endswith('attention.self.key.bias'):
            assert max(np.abs(ours[name]).max(), float(gradient.abs().max())) < 1e-6, name
        else:
            _assert_close(ours[name], gradient, f'gradient of {name}')


@functools.partial(jax.jit, static_argnums=2)
def _loss_and_gradients(params: nnx.State, batch: Batch, model: config.Model) -> tuple[jax.Array, nnx.State]:
    return jax.value_and_grad(_loss)(params, batch, model)


def _loss(params: nnx.State, batch: Batch, model: config.Model) -> jax.Array:
    return MASKED_TOKENS.metrics(MASKED_TOKENS.sums(model_of(params, model, VOCAB), batch, None))['loss']


@pytest.mark.slow
def test_ten_adamw_steps_match_the_reference(tmp_path: Path) -> None:
    pair = _make_pair(SIZES[1], tmp_path)
    settings = config.Optimizer(peak_learning_rate=1e-3, warmup_steps=3, weight_decay=0.01, clip_norm=1.0)
    num_steps = 10
    train = config.Train(steps=num_steps, global_batch_size=B)
    mesh = make_mesh(config.Mesh(), pair.model, train, jax.devices()[:1])
    program = build_program(pair.model, settings, train, VOCAB, mesh)
    state = program.init_state(0, pair.params)

    plain = [v for n, v in pair.reference.named_parameters() if n.endswith('bias') or 'LayerNorm' in n]
    decayed = [v for n, v in pair.reference.named_parameters() if not (n.endswith('bias') or 'LayerNorm' in n)]
    groups = [{'params': decayed, 'weight_decay': 0.01}, {'params': plain, 'weight_decay': 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(settings.b1, settings.b2), eps=settings.eps)
    for step in range(num_steps):
        batch = _batch(step)
        state, metrics = program.train_step(state, jax.tree.map(jnp.asarray, batch))
        adamw.zero_grad()
        loss = _run_reference(pair.reference, batch).loss
        loss.backward()
        loss = loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(pair.reference.parameters(), settings.clip_norm)
        for group in adamw.param_groups:
            group['lr'] = float(program.schedule(step))
        adamw.step()
        assert abs(float(metrics['loss']) - float(loss)) < 1e-4
        assert abs(float(metrics['grad_norm']) - float(norm)) < 1e-3 * float(norm)
    ours = tensor_names.to_tensors(state.params, pair.model, VOCAB)
    for name, value in pair.reference.named_parameters():
        if not name.endswith('attention.self.key.bias'):
            assert np.abs(ours[name] - value.detach().numpy()).max() < 1e-4, name


def test_new_model_is_initialized_as_in_the_original() -> None:
    params = _initial(SIZES[0])
    tensors = tensor_names.to_tensors(params, SIZES[0], VOCAB)
    cut = 0.87962566 * 0.02  # standard deviation of a normal of 0.02 truncated at two standard deviations
    for name, value in tensors.items():
        if 'LayerNorm' in name:
            np.testing.assert_array_equal(value, 1.0 if name.endswith('weight') else 0.0)
        elif name.endswith('bias'):
            np.testing.assert_array_equal(value, 0.0)
        else:
            assert np.abs(value).max() <= 0.04, name
            assert abs(value.std() / cut - 1) < 4 / np.sqrt(2 * value.size), name
            assert abs(value.mean()) < 4.5 * cut / np.sqrt(value.size), name
