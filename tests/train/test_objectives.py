"""Every objective has its labels, its rows and the same curve on any mesh."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import config
from bert_jax.data.batches import CorpusStream
from bert_jax.errors import BadInput
from bert_jax.model.dropout import DropoutKey, dropout_base
from bert_jax.model.family import matmuls
from bert_jax.train.objectives import objective_of
from bert_jax.train.objectives.masked import MASKED_TOKENS
from bert_jax.train.objectives.mixture import MixedSums, Mixture, causal_rows
from bert_jax.train.objectives.next_token import NEXT_TOKEN, original_ids
from bert_jax.train.objectives.previous_position import PREVIOUS_POSITION
from tests.support.corpora import corpus_of, random_split
from tests.support.steps import ADAMW, BATCH, FAST, MODELS, VOCAB, train_steps

OBJECTIVES = {
    'clm': config.Objective(name='clm'),
    'mntp': config.Objective(name='mntp'),
    'mixture': config.Objective(name='mntp', causal_share=0.25),
    'rtd': config.Objective(name='rtd', generator_width=0.5),
}


@pytest.fixture(scope='module')
def stream(tmp_path_factory: pytest.TempPathFactory) -> CorpusStream:
    """Returns packed rows of short sequences."""
    split = dataclasses.replace(random_split(0, num_documents=20), vocab_size=VOCAB)
    data = config.Data(
        sequence_length=32, pairing='none', packing=True, max_sequences=4, short_sequence_probability=0.8
    )
    directory = str(tmp_path_factory.mktemp('objectives'))
    return CorpusStream(corpus_of(split, directory), data, 'train', batch_size=BATCH, seed=0)


@pytest.fixture(scope='module')
def unmasked(stream: CorpusStream) -> list[np.ndarray]:
    """Returns the ids of the first batches, made without masks."""
    kept = stream.data.masking, stream.data
    masking = dataclasses.replace(kept[0], mask_fraction=0.0, random_fraction=0.0)
    stream._shapes = [dataclasses.replace(stream.data, masking=masking)]
    ids = [stream.batch(step).input_ids for step in range(4)]
    stream._shapes = [kept[1]]
    return ids


def _key(step: int | jax.Array, rows: np.ndarray | range = range(BATCH)) -> DropoutKey:
    return DropoutKey(dropout_base(0, jnp.asarray(step)), jnp.asarray(np.asarray(rows), jnp.uint32))


def _next_tokens(ids: np.ndarray, sequence_ids: np.ndarray) -> dict[tuple[int, int], int]:
    """Returns {(row, position): next token}, by definition."""
    return {
        (row, position): int(ids[row, position + 1])
        for row in range(len(ids))
        for position in range(ids.shape[1] - 1)
        if sequence_ids[row, position] == sequence_ids[row, position + 1] > 0
    }


def _labels(ids: np.ndarray, weights: np.ndarray) -> dict[tuple[int, int], int]:
    return {(int(row), int(at)): int(ids[row, at]) for row, at in zip(*np.nonzero(np.asarray(weights)), strict=True)}


def test_masks_are_undone(stream: CorpusStream, unmasked: list[np.ndarray]) -> None:
    for step, expected in enumerate(unmasked):
        batch = stream.batch(step)
        assert (batch.input_ids != expected).any()
        np.testing.assert_array_equal(original_ids(batch), expected)


def test_next_token_is_the_label_within_each_sequence(stream: CorpusStream, unmasked: list[np.ndarray]) -> None:
    for step, ids in enumerate(unmasked):
        batch = stream.batch(step)
        rows = NEXT_TOKEN.labelled(batch, None)
        assert (batch.sequence_ids.max(axis=1) > 1).any() and np.asarray(rows.inputs.is_causal).all()
        np.testing.assert_array_equal(rows.inputs.input_ids, ids)
        assert _labels(rows.ids, rows.weights) == _next_tokens(ids, batch.sequence_ids)


def test_masked_tokens_are_predicted_from_the_position_before(stream: CorpusStream) -> None:
    batch = stream.batch(0)
    shifted, real = PREVIOUS_POSITION.labelled(batch, None), batch.masked_lm_weights > 0
    np.testing.assert_array_equal(np.asarray(shifted.masked_lm_positions)[real], batch.masked_lm_positions[real] - 1)
    of_label, of_output = (
        np.take_along_axis(batch.sequence_ids, np.asarray(positions), axis=1)[real]
        for positions in (batch.masked_lm_positions, shifted.masked_lm_positions)
    )
    np.testing.assert_array_equal(of_label, of_output)


@pytest.mark.parametrize('share', [0.0625, 0.25, 0.9])
def test_rows_are_causal_in_their_share_whatever_device_holds_them(share: float) -> None:
    """Independently of each other: the variance of the number in a batch is that of a binomial distribution."""
    by_step = np.asarray(jax.jit(jax.vmap(lambda step: causal_rows(_key(step), share)))(jnp.arange(1000)))
    counts = by_step.sum(axis=1)
    deviation = np.sqrt(share * (1 - share) * BATCH)
    assert abs(counts.mean() - share * BATCH) < 4 * deviation / np.sqrt(len(counts))
    assert counts.std() == pytest.approx(deviation, rel=0.1)
    assert np.abs(by_step.mean(axis=0) - share).max() < 5 * np.sqrt(share * (1 - share) / 1000)
    whole, part = causal_rows(_key(3), share), causal_rows(_key(3, np.arange(4, 9)), share)
    np.testing.assert_array_equal(np.asarray(whole)[4:9], part)


@pytest.mark.parametrize('of_masked', [MASKED_TOKENS, PREVIOUS_POSITION])
def test_each_row_of_a_mixture_has_the_labels_of_its_objective(
    stream_of: Callable, unmasked: list[np.ndarray], stream: CorpusStream, of_masked: object
) -> None:
    mixture = Mixture(of_masked, 0.5)
    for step, ids in enumerate(unmasked):
        batch = stream.batch(step)
        rows = mixture.labelled(batch, _key(step))
        is_causal = np.asarray(rows.inputs.is_causal)
        assert 0 < is_causal.sum() < BATCH
        np.testing.assert_array_equal(rows.inputs.input_ids, np.where(is_causal[:, None], ids, batch.input_ids))
        causal = {at: label for at, label in _next_tokens(ids, batch.sequence_ids).items() if is_causal[at[0]]}
        assert _labels(rows.ids, rows.causal_weights) == causal
        masked = of_masked.labelled(batch, None)
        expected = {
            (row, int(np.asarray(masked.masked_lm_positions)[row, slot])): int(masked.masked_lm_ids[row, slot])
            for row, slot in zip(*np.nonzero(masked.masked_lm_weights), strict=True)
            if not is_causal[row]
        }
        assert _labels(rows.ids, rows.masked_weights) == expected


def test_causal_rows_of_a_mixture_learn_no_pairs(stream_of: Callable[[str], CorpusStream]) -> None:
    batch = stream_of('bert').batch(0)
    rows = Mixture(MASKED_TOKENS, 0.5).labelled(batch, _key(0))
    np.testing.assert_array_equal(np.asarray(rows.next_sentence_weights)[:, 0] == 0, rows.inputs.is_causal)


def test_loss_of_a_mixture_weighs_the_mean_losses_by_the_share() -> None:
    mixture = Mixture(MASKED_TOKENS, 0.25)
    sums = MixedSums(*map(jnp.float32, (30, 5, 10, 8, 1, 4, 3, 1, 6)))
    assert mixture.loss(sums, (10, 4, 6)) == pytest.approx(0.25 * 3 + 0.75 * (2 + 0.5))
    metrics = mixture.metrics(sums)
    assert metrics['clm_loss'] == 3 and metrics['mlm_loss'] == 2 and metrics['nsp_loss'] == 0.5
    assert metrics['loss'] == pytest.approx(0.25 * 3 + 0.75 * (2 + 0.5)) and metrics['clm_accuracy'] == 0.5


@pytest.mark.compiles
@pytest.mark.parametrize(
    'family, name',
    [
        ('bert', 'clm'),
        ('modernbert', 'mixture'),
        ('bert', 'rtd'),
        *(
            pytest.param(family, name, marks=pytest.mark.slow)
            for family in ('bert', 'modernbert')
            for name in OBJECTIVES
            if (family, name) not in (('bert', 'clm'), ('modernbert', 'mixture'), ('bert', 'rtd'))
        ),
    ],
)
def test_every_mesh_and_microbatch_count_gives_the_same_curve(stream_of: Callable, family: str, name: str) -> None:
    train = dataclasses.replace(FAST, steps=8)
    objective, model = OBJECTIVES[name], MODELS[family]
    one = train_steps(stream_of(family), {'data': 1}, train, ADAMW, model, objective)
    split = dataclasses.replace(train, microbatches=2)
    many = train_steps(stream_of(family), {'data': 2, 'fsdp': 2, 'tensor': 2}, split, ADAMW, model, objective)
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-5)
    assert one.losses[-1] < one.losses[0]


@pytest.mark.slow
def test_exact_sums_give_the_same_bits_for_a_mixture(stream_of: Callable) -> None:
    train = dataclasses.replace(FAST, steps=3, reduction='exact')
    one, two = (
        train_steps(stream_of('bert'), {'data': number}, train, ADAMW, objective=OBJECTIVES['mixture'])
        for number in (1, 2)
    )
    assert one.losses == two.losses
    assert jax.tree.all(jax.tree.map(lambda a, b: (np.asarray(a) == np.asarray(b)).all(), one.state, two.state))


def test_head_runs_at_every_position_of_objectives_with_causal_rows() -> None:
    counts = {'rows': 3, 'length': 32, 'visible_length': 32, 'predictions': 3 * 5, 'sequences': 3}
    ordinary = {matmul.name: matmul for matmul in matmuls(MODELS['bert'], 100, **counts)}
    for name, expected, visible in (('clm', 96, 16.5), ('mixture', 96, 0.25 * 16.5 + 0.75 * 32), ('mntp', 15, 32)):
        found = {each.name: each for each in objective_of(OBJECTIVES[name]).matmuls(MODELS['bert'], 100, **counts)}
        assert found['vocabulary'].m == expected
        assert found['intermediate'] == ordinary['intermediate'] and found['attention scores'].n == visible


def test_equal_settings_give_the_same_objective() -> None:
    assert objective_of(config.Objective()) is MASKED_TOKENS
    first, second = (objective_of(config.Objective(name='mntp', causal_share=0.5)) for _ in range(2))
    assert first is second and first.evaluated is PREVIOUS_POSITION


def test_pairs_that_no_phase_learns_are_refused() -> None:
    values = {'objective': {'name': 'clm'}, 'model': {'family': 'bert'}}
    with pytest.raises(BadInput, match=r"config.data.pairing: is 'nsp', and objective clm learns no pairs"):
        config.resolve(values)
    assert config.resolve(values | {'data': {'pairing': 'none'}}).objective.name == 'clm'
    phases = ({'steps': 1, 'warmup_steps': 0}, {'steps': 1, 'warmup_steps': 0, 'objective': 'mlm'})
    assert [phase.objective.name for phase in config.resolve(values | {'phases': phases}).in_phases] == ['clm', 'mlm']
