"""Packing a batch changes only its padding; heads are initialized as in `transformers`."""

import dataclasses
import functools
from collections import Counter
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax import config
from bert_jax.config.fields import identity_of, with_values_before
from bert_jax.config.finetuning import FinetuneConfig, Task
from bert_jax.finetune import heads
from bert_jax.finetune.packing import Packing, SampledBatches, choose_examples_per_row, sampled_batches
from bert_jax.finetune.rows import Rows, TaskBatch, TaskStream, make_rows
from bert_jax.train.state import model_of
from tests.support.models import MODEL

VOCAB, EXAMPLES, BATCH, LONGEST = 101, 50, 16, 40
STILL = dataclasses.replace(MODEL, dropout_rate=0.0, attention_dropout_rate=0.0, num_layers=1, max_positions=64)
KINDS = [('classification', 3), ('regression', 1), ('ranking', 1), ('tagging', 3), ('spans', 2)]


@functools.cache
def _examples(kind: str) -> Rows:
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, LONGEST + 1, EXAMPLES) // rng.integers(1, 4, EXAMPLES) + 3
    ids = [[2, *rng.integers(5, VOCAB, n - 2), 3] for n in lengths]
    labels = {
        'classification': rng.integers(0, 3, EXAMPLES).astype(np.int32),
        'regression': rng.standard_normal(EXAMPLES).astype(np.float32),
        'ranking': rng.random(EXAMPLES).astype(np.float32),
        'tagging': rng.integers(-1, 3, lengths.sum()).astype(np.int32),
        'spans': np.sort(rng.integers(0, lengths[:, None], (EXAMPLES, 2)), axis=1).astype(np.int32),
    }[kind]
    return make_rows(ids, [n // 2 for n in lengths], labels)


def _stream(kind: str, packing: Packing | None, seed: int | None = 3) -> TaskStream:
    return TaskStream(
        _examples(kind), batch_size=BATCH, seed=seed, sequence_length=LONGEST + 3, pad_id=0, packing=packing
    )


def _parts(batch: TaskBatch, kind: str) -> Counter:
    """Counts the examples of a batch, independent of their positions."""
    found: Counter = Counter()
    for row, slot in np.ndindex(batch.cls_positions.shape):
        own = np.flatnonzero(batch.sequence_ids[row] == slot + 1)
        if not len(own):
            continue
        assert own[0] == batch.cls_positions[row, slot] and np.all(np.diff(own) == 1)
        tokens = [array[row, own].tolist() for array in batch[:2] + batch[3:4]]
        if kind == 'tagging':
            labels = np.where(batch.weights[row, own] > 0, batch.labels[row, own], -1)
        else:
            assert batch.weights[row, slot] == 1
            labels = batch.labels[row, slot] - (own[0] if kind == 'spans' else 0)
        found[repr((tokens, labels.tolist()))] += 1
    return found


@pytest.mark.parametrize('kind', [kind for kind, _ in KINDS])
@pytest.mark.parametrize('examples_per_row', [1, 2, 4, 5])
def test_packed_batch_holds_the_same_examples_as_padded(kind: str, examples_per_row: int) -> None:
    packed, padded = _stream(kind, Packing(examples_per_row)), _stream(kind, None)
    for step in range(8):  # two and a half epochs
        ours, theirs = packed.batch(step), padded.batch(step)
        assert _parts(ours, kind) == _parts(theirs, kind)
        assert ours.weights.sum() == theirs.weights.sum()
        assert ours.input_ids.shape[0] == packed.batch_size == -(-BATCH // examples_per_row)


def test_slice_of_a_batch_equals_slice_of_the_whole() -> None:
    stream = _stream('spans', Packing(4, num_rows_multiple=8))
    whole = stream.batch(5)
    assert len(whole.input_ids) == stream.batch_size == 8 and not whole.sequence_ids[4:].any()
    for part in (slice(0, 2), slice(2, 8)):
        for array, expected in zip(
            _stream('spans', Packing(4, num_rows_multiple=8)).batch(5, part), whole, strict=True
        ):
            np.testing.assert_array_equal(array, expected[part])
    # More rows for more devices are empty: nothing of the others changes.
    for array, expected in zip(_stream('spans', Packing(4)).batch(5), whole, strict=True):
        np.testing.assert_array_equal(array, expected[:4])


def test_packed_rows_are_evenly_full_and_have_few_lengths() -> None:
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.gamma(3, 20, 4000), 5, 128).astype(int)
    rows = make_rows([[2] * n for n in lengths], lengths, np.zeros(4000, np.int32))
    stream = TaskStream(rows, batch_size=32, seed=0, sequence_length=128, pad_id=0, packing=Packing(4))
    batches = [stream.batch(step) for step in range(120)]
    shapes = Counter(batch.input_ids.shape for batch in batches)
    assert len(shapes) <= 5 and {rows for rows, _ in shapes} == {8}
    tokens = np.array([(batch.sequence_ids > 0).sum() for batch in batches])
    positions = np.array([batch.input_ids.size for batch in batches])
    assert tokens.sum() / positions.sum() > 0.9  # padded to the longest of each batch: 0.5


def test_rows_have_room_for_uneven_lengths() -> None:
    packing = Packing(4)
    rows, slots, most = packing.rows(np.array([500] * 7 + [3] * 25), 32)
    assert most == 500 + 3 * 3 and np.bincount(rows).max() == slots.max() + 1 == 8
    assert len({*zip(rows.tolist(), slots.tolist(), strict=True)}) == 32
    assert packing.length(1) == 16 and packing.length(224) == 224 and packing.length(225) == 240
    assert packing.length(257) == 288 and Packing(4, length_multiple=128).length(129) == 256


@pytest.mark.parametrize(
    'lengths, expected',
    [([11], 4), ([20], 4), ([53], 2), ([100], 1), ([380, 384, 370], 1), ([100, 150, 384], Fraction(32, 23))],
)
def test_examples_per_row_depends_on_lengths(lengths: list[int], expected: int | Fraction) -> None:
    assert choose_examples_per_row([sampled_batches(np.array(lengths), 32)], 32) == expected


def test_short_texts_fill_rows_beside_those_of_long_texts() -> None:
    """Questions and paragraphs: few questions share a row with a paragraph, which would make the row longer."""
    lengths = np.array([64, 14, 64, 18, 64, 25, 64, 12])
    batch = np.repeat(lengths, 8)
    positions, pairs = {}, {}
    for examples_per_row in (choose_examples_per_row([SampledBatches(1.0, [batch])], 64), 1, 2, 4, 8):
        packing = Packing(examples_per_row)
        rows, length = packing.num_rows(64), packing.length(packing.rows(batch, 64)[2])
        positions[examples_per_row], pairs[examples_per_row] = rows * length, rows * length**2
    chosen, one, two, *more = positions.values()
    assert chosen < min(one, two) and chosen < 1.05 * min(more), positions
    assert next(iter(pairs.values())) == min(pairs.values()), pairs


def test_choice_weighs_sources_apart_and_rows_that_devices_share() -> None:
    short, long = (sampled_batches(np.array(lengths), 64) for lengths in ([6, 8, 11], [300, 400, 512]))
    assert choose_examples_per_row([short], 64) > 4 and choose_examples_per_row([long], 64) == 1
    mixed = [short._replace(weight=0.5), long._replace(weight=0.5)]
    assert (
        choose_examples_per_row(mixed, 64) < 2
    )  # a batch has texts of one source: rows of 10 long texts would be slow
    per_row = choose_examples_per_row([sampled_batches(np.arange(20, 60), 16)], 16, 8, 128)
    assert Packing(per_row, 8, 128).filled_rows(16) in (8, 16)  # no row is empty with 8 devices


def test_texts_of_a_smaller_batch_are_spread_over_all_rows() -> None:
    packing = Packing(2)
    rows, _, longest = packing.rows(np.full(10, 20), 32)
    assert sorted(rows.tolist()) == list(range(10)) and longest == 20


@pytest.mark.parametrize('kind', [kind for kind, _ in KINDS])
@pytest.mark.parametrize('packing', [None, Packing(1), Packing(4, num_rows_multiple=8)])
def test_evaluation_covers_every_example_and_restores_its_order(kind: str, packing: Packing | None) -> None:
    examples, stream = _examples(kind), _stream(kind, packing, seed=None)
    shape = (EXAMPLES, LONGEST + 3, 1) if examples.has_token_outputs else (EXAMPLES, 1)
    found, weight = np.full(shape, -1.0), 0.0
    for step in range(len(stream)):
        batch = stream.batch(step)
        ids = (
            batch.input_ids
            if examples.has_token_outputs
            else np.take_along_axis(np.roll(batch.input_ids, -1, axis=1), batch.cls_positions, axis=1)
        )
        stream.layout(step).unpack(ids[..., None], found)  # the ids themselves, or the one after [CLS]
        weight += batch.weights.sum()
    assert weight == ((examples.labels >= 0).sum() if kind == 'tagging' else EXAMPLES)
    for index, (start, stop) in enumerate(zip(examples.starts[:-1], examples.starts[1:], strict=True)):
        own = examples.ids[start:stop]
        expected = own if examples.has_token_outputs else own[1:2]
        np.testing.assert_array_equal(found[index].ravel()[: len(expected)], expected)


def test_packed_evaluation_has_one_or_two_shapes() -> None:
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.gamma(3, 20, 1000), 5, 128).astype(int)
    rows = make_rows([[2] * n for n in lengths], lengths, np.zeros(1000, np.int32))
    stream = TaskStream(rows, batch_size=32, seed=None, sequence_length=128, pad_id=0, packing=Packing(2))
    shapes = Counter(stream.batch(step).input_ids.shape for step in range(len(stream)))
    assert len(shapes) <= 2
    positions = sum(count * rows * length for (rows, length), count in shapes.items())
    assert lengths.sum() / positions > 0.8  # padded to the longest example: 0.45


@pytest.mark.compiles
@pytest.mark.parametrize('kind, outputs', KINDS)
def test_packing_preserves_loss_and_gradients(kind: str, outputs: int) -> None:
    build, objective = heads.builder(kind, outputs), heads.objective(kind)
    rng = np.random.default_rng(1)
    shapes = nnx.state(nnx.eval_shape(lambda: build(STILL, VOCAB, nnx.Rngs(0))), nnx.Param)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32), shapes)

    @jax.jit
    def gradient(params: nnx.State, batch: TaskBatch) -> tuple[jax.Array, nnx.State]:
        def loss(params: nnx.State) -> jax.Array:
            sums = objective.sums(model_of(params, STILL, VOCAB, build), batch, None)
            return objective.loss(sums, objective.weights(batch))

        return jax.value_and_grad(loss)(params)

    (ours, our_grads), (theirs, their_grads) = (
        gradient(params, _stream(kind, packing).batch(1)) for packing in (Packing(4, num_rows_multiple=3), None)
    )
    assert ours == pytest.approx(float(theirs), rel=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(their_grads))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5 * scale), our_grads, their_grads)


def test_new_heads_have_the_full_standard_deviation() -> None:
    model = config.Bert(hidden_size=256)
    full, truncated = (
        np.asarray(heads.new_head(model, 40, name, nnx.Rngs(0)).kernel[...]) for name in ('normal', 'truncated_normal')
    )
    assert full.std() == pytest.approx(0.02, rel=0.03) and np.abs(full).max() > 0.06
    assert truncated.std() == pytest.approx(0.0176, rel=0.03) and np.abs(truncated).max() <= 0.04


def test_runs_from_earlier_versions_keep_rows_and_heads() -> None:
    new = FinetuneConfig(task=Task())
    recorded = dataclasses.asdict(new)
    for name in ('examples_per_row', 'head_initializer'):
        del recorded['task'][name]
    old = with_values_before(new, recorded)
    assert (old.task.examples_per_row, old.task.head_initializer) == (1, 'truncated_normal')
    assert not {'task.examples_per_row', 'task.head_initializer'} & identity_of(old).keys()
    assert identity_of(new)['task.examples_per_row'] == 0 and identity_of(new)['task.head_initializer'] == 'normal'
