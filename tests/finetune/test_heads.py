"""Logits, losses and first steps of the heads match the reference implementations."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bert_jax.config.finetuning import finetune, num_steps, optimizer_of, resolve, use_original_recipe
from bert_jax.finetune import heads
from bert_jax.finetune.evaluator import model_outputs
from bert_jax.finetune.rows import Rows, TaskBatch, TaskStream, make_rows
from bert_jax.model.dropout import DropoutKey, dropout_base
from bert_jax.model.family import Build
from bert_jax.pretrained import hugging_face
from bert_jax.pretrained.bert import HUB
from bert_jax.train.optimizer import make_optimizer, make_schedule, scale_by_uncorrected_adam
from bert_jax.train.state import model_of
from tests.support.models import MODEL, Vocabulary

pytestmark = pytest.mark.compiles

VOCAB, B, L = 101, 3, 12
STILL = dataclasses.replace(MODEL, dropout_rate=0.0, attention_dropout_rate=0.0, num_layers=1)


def _rows(kind: str) -> Rows:
    rng = np.random.default_rng(0)
    lengths = [L, 7, 9]
    ids = [[2, *rng.integers(5, VOCAB, n - 2), 3] for n in lengths]
    tags = np.concatenate([rng.integers(-1, 3, n) for n in lengths]).astype(np.int32)
    labels = {
        'classification': np.int32([2, 0, 1]),
        'regression': np.float32([1.5, -2.0, 0.25]),
        'ranking': np.float32([1.0, 0.0, 0.25]),
        'tagging': tags,
        'spans': np.int32([[3, 5], [0, 0], [1, 8]]),
    }[kind]
    return make_rows(ids, [5, 7, 4], labels)


def _batch(kind: str) -> TaskBatch:
    return TaskStream(_rows(kind), batch_size=B, seed=None, sequence_length=L, pad_id=0).batch(0)


def _params(build: Build) -> nnx.State:
    rng = np.random.default_rng(1)
    shapes = nnx.state(nnx.eval_shape(lambda: build(STILL, VOCAB, nnx.Rngs(0))), nnx.Param)
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize(
    'kind, outputs', [('classification', 3), ('regression', 1), ('ranking', 1), ('tagging', 3), ('spans', 2)]
)
def test_logits_and_loss_match_transformers(kind: str, outputs: int, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    transformers.utils.logging.disable_progress_bar()
    build, batch = heads.builder(kind, outputs), _batch(kind)
    params = _params(build)
    more = {'num_labels': outputs} | ({'problem_type': 'regression'} if kind == 'regression' else {})
    hugging_face.write_model(tmp_path, params, STILL, Vocabulary(VOCAB), HUB.task_class(kind), more)
    reference = getattr(transformers, HUB.task_class(kind)).from_pretrained(tmp_path).eval()

    as_torch = [torch.tensor(array, dtype=torch.long) for array in batch[:3]]
    given = dict(zip(('input_ids', 'token_type_ids', 'attention_mask'), as_torch, strict=True))
    if kind == 'spans':
        given |= {
            name: torch.tensor(batch.labels[:, 0, n]).long()
            for n, name in enumerate(('start_positions', 'end_positions'))
        }
    elif kind == 'tagging':
        given['labels'] = torch.tensor(np.where(batch.weights > 0, batch.labels, -100)).long()
    elif kind != 'ranking':  # the loss of `CrossEncoder` is outside the model
        labels = torch.tensor(batch.labels[:, 0])
        given['labels'] = labels if kind == 'regression' else labels.long()
    with torch.no_grad():
        theirs = reference(**given)
    objective = heads.objective(kind)

    @jax.jit
    def run(params: nnx.State, batch: TaskBatch) -> tuple[jax.Array, jax.Array]:
        model = model_of(params, STILL, VOCAB, build)
        return model_outputs(model, batch), objective.loss(objective.sums(model, batch, None), objective.weights(batch))

    ours, loss = (np.asarray(array) for array in run(params, batch))
    ours = ours[:, 0] if kind in heads.POOLED else ours
    expected = np.stack([theirs.start_logits, theirs.end_logits], -1) if kind == 'spans' else theirs.logits.numpy()
    present = batch.sequence_ids.astype(bool) if ours.ndim == 3 else slice(None)
    np.testing.assert_allclose(ours[present], expected[present], atol=1e-4 * np.abs(expected).max())

    if kind == 'spans':  # the reference's softmax runs over the padding too; here it does not
        logits = torch.tensor(np.where(batch.sequence_ids[..., None] > 0, expected, -np.inf)).swapaxes(1, 2)
        expected_loss = torch.nn.functional.cross_entropy(
            logits.reshape(2 * B, L), torch.tensor(batch.labels).long().ravel()
        )
    elif kind == 'ranking':
        labels = torch.tensor(batch.labels[:, 0])
        expected_loss = torch.nn.BCEWithLogitsLoss()(theirs.logits[:, 0], labels)
    else:
        expected_loss = theirs.loss
    assert loss == pytest.approx(float(expected_loss), rel=1e-4)


def test_head_dropout_applies_to_all_tasks_but_spans() -> None:
    for kind, outputs in (('classification', 2), ('spans', 2)):
        build = heads.builder(kind, outputs)
        module = model_of(_params(build), STILL, VOCAB, build)
        module.rate = 0.5  # of the head alone
        batch = jax.tree.map(jnp.asarray, _batch(kind))
        key = DropoutKey(dropout_base(0, jnp.asarray(1)), jnp.arange(B, dtype=jnp.uint32))
        with_key, without = nnx.jit(lambda module, batch, key: (module(batch, key), module(batch)))(module, batch, key)
        assert np.array_equal(with_key, without) == (kind == 'spans')


def test_adam_without_bias_correction_matches_the_original() -> None:
    rng, m, v, w = np.random.default_rng(0), 0.0, 0.0, np.float64([1.0, -2.0])
    params, optimizer = jnp.asarray(w, jnp.float32), scale_by_uncorrected_adam(0.9, 0.999, 1e-6)
    state = optimizer.init(params)
    for _ in range(5):
        gradient = rng.standard_normal(2)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2  # `optimization.py`, AdamWeightDecayOptimizer
        w = w - 0.01 * (m / (np.sqrt(v) + 1e-6))
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda update: -0.01 * update, updates))
    np.testing.assert_allclose(params, w, rtol=1e-5)


def test_recipes_differ_in_first_step_and_share_warmup() -> None:
    stable, original = finetune(), use_original_recipe(finetune())
    first = []
    for given in (stable, original):
        given.init = 'any'
        resolved = resolve(given)
        steps = num_steps(resolved.train, 1000)
        assert steps == 93  # 3 epochs of 31.25 batches
        settings = optimizer_of(resolved.optimizer, steps)
        assert settings.warmup_steps == 9
        schedule, optimizer = make_schedule(settings, steps), make_optimizer(settings, steps)
        assert schedule(9) == pytest.approx(2e-5) and schedule(93) == 0
        params = nnx.State({'a': nnx.Param(jnp.ones(3), logical_axes=('norm',))})
        grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.1), params)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        first.append(float(jax.tree.leaves(updates)[0][0]))
    assert first[1] / first[0] == pytest.approx(0.1 / np.sqrt(0.001), rel=1e-3)


def test_batches_hold_every_row_once_per_epoch() -> None:
    rng = np.random.default_rng(0)
    ids = [[2, *range(10 + 10 * n, 10 + 10 * n + int(rng.integers(1, 8))), 3] for n in range(21)]
    rows = make_rows(ids, [len(row) for row in ids], np.arange(21, dtype=np.int32))
    stream = TaskStream(rows, batch_size=4, seed=7, sequence_length=L, pad_id=0)
    batches = [stream.batch(step) for step in range(21)]  # 4 epochs of 21 rows
    labels = np.concatenate([batch.labels[:, 0] for batch in batches])
    for epoch in range(4):
        assert sorted(labels[21 * epoch : 21 * epoch + 21]) == list(range(21))
    assert {batch.input_ids.shape for batch in batches} == {(4, L)}
    for ids_of_row, length, label in zip(batches[0].input_ids, batches[0].sequence_ids.sum(1), labels[:4], strict=True):
        assert ids_of_row[:length].tolist() == ids[label] and not ids_of_row[length:].any()
    part = stream.batch(3, slice(1, 3))
    for whole, some in zip(stream.batch(3), part, strict=True):
        np.testing.assert_array_equal(whole[1:3], some)
    other = TaskStream(rows, batch_size=4, seed=8, sequence_length=L, pad_id=0).batch(0)
    assert not np.array_equal(other.labels, batches[0].labels)
    evaluation = TaskStream(rows, batch_size=4, seed=None, sequence_length=L, pad_id=0)
    assert len(evaluation) == 6 and evaluation.batch(5).weights[:, 0].tolist() == [1, 0, 0, 0]
