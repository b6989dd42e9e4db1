"""Packed rows respect their limits, use every window once, and do not change the loss of a sequence."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax import config
from bert_jax.config import Data, Masking
from bert_jax.data import packing
from bert_jax.data.batches import Batch, CorpusStream
from bert_jax.data.masking import num_masked
from bert_jax.model.bert import BertForPreTraining
from bert_jax.train.state import model_of
from tests.support.corpora import TOKENIZER, corpus_of, random_split


def _pack(lengths: np.ndarray, capacity: int, max_predictions: int, max_sequences: int, rate: float = 0.15):
    needed = np.minimum(num_masked(np.arange(capacity + 1), rate), max_predictions)
    order, rows = packing.pack(
        lengths, needed, capacity=capacity, max_predictions=max_predictions, max_sequences=max_sequences
    )
    return order, rows, needed


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(4, 40), max_size=120),
    max_predictions=st.integers(1, 9),
    max_sequences=st.integers(1, 6),
    block=st.sampled_from([7, 1000]),
)
def test_every_window_is_in_one_row_within_its_limits(
    lengths: list[int], max_predictions: int, max_sequences: int, block: int
) -> None:
    lengths = np.array(lengths, np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, 'WINDOWS_IN_BLOCK', block)
        order, rows, needed = _pack(lengths, 40, max_predictions, max_sequences)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(lengths)))
    assert rows[0] == 0 and rows[-1] == len(lengths)
    for low, high in zip(rows[:-1], rows[1:], strict=True):
        row = lengths[order[low:high]]
        assert 1 <= len(row) <= max_sequences
        assert row.sum() <= 40 and needed[row].sum() <= max_predictions
        assert np.ptp(order[low:high] // block) == 0


def test_rows_are_as_full_as_with_best_fit_decreasing() -> None:
    """Compares with the textbook algorithm, one window at a time, with the same limits on predictions and sequences."""
    lengths = np.clip(np.random.default_rng(0).lognormal(4, 1, 1500).astype(int), 4, 256)
    order, rows, needed = _pack(lengths, 256, 38, 8)
    left: list[list[int]] = []  # space, predictions, sequences
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in left if row[0] >= length and row[1] >= needed[length] and row[2]]
        row = min(fitting, key=lambda row: row[0], default=None)
        if row is None:
            left.append(row := [256, 38, 8])
        row[:] = row[0] - length, row[1] - needed[length], row[2] - 1
    assert len(rows) - 1 <= len(left) + 1


def test_documents_of_mixed_lengths_fill_99_percent_of_positions() -> None:
    rng = np.random.default_rng(1)
    documents = np.clip(rng.lognormal(5.5, 0.8, 20_000).astype(int), 10, 5000)
    windows = np.concatenate([[512] * (n // 512) + [max(n % 512, 5)] for n in documents])
    order, rows, _ = _pack(windows, 512, 77, 16)
    assert windows.sum() / 512 / (len(rows) - 1) >= 0.99


def test_rows_are_ordered_by_their_first_window() -> None:
    lengths = np.random.default_rng(2).integers(4, 40, 500)
    order, rows, _ = _pack(lengths, 40, 9, 6)
    first = np.minimum.reduceat(order, rows[:-1])
    assert np.all(np.diff(first) > 0)


def _stream(directory: str, batch_size: int = 16, **fields: object) -> CorpusStream:
    data, split = Data(sequence_length=96, packing=True, **fields), random_split(4, num_documents=300, longest=6)
    return CorpusStream(
        corpus_of(split, directory),
        data,
        'train',
        batch_size=batch_size,
        seed=0,
    )


def _unpacked(batch: Batch) -> tuple[Batch, np.ndarray, np.ndarray]:
    """Returns the batch with one sequence per row, and the row and index in it of each sequence, [K] and [K]."""
    rows, indices = np.nonzero(
        (batch.sequence_ids[:, :, None] == np.arange(1, 1 + batch.cls_positions.shape[1])).any(1)
    )
    out = {name: [] for name in Batch._fields}
    for row, index in zip(rows, indices, strict=True):
        where = np.flatnonzero(batch.sequence_ids[row] == index + 1)
        assert np.all(np.diff(where) == 1) and batch.cls_positions[row, index] == where[0]
        for name in ('input_ids', 'token_type_ids', 'sequence_ids', 'position_ids'):
            alone = np.zeros(batch.input_ids.shape[1], np.int32)
            alone[: len(where)] = getattr(batch, name)[row, where]
            out[name].append(np.minimum(alone, 1) if name == 'sequence_ids' else alone)
        mine = np.isin(batch.masked_lm_positions[row], where) & (batch.masked_lm_weights[row] > 0)
        out['masked_lm_positions'].append(np.where(mine, batch.masked_lm_positions[row] - where[0], 0))
        out['masked_lm_ids'].append(np.where(mine, batch.masked_lm_ids[row], 0))
        out['masked_lm_weights'].append(mine.astype(np.float32))
        out['cls_positions'].append([0])
        out['next_sentence_labels'].append([batch.next_sentence_labels[row, index]])
        out['next_sentence_weights'].append([batch.next_sentence_weights[row, index]])
    return Batch(*(np.array(out[name]) for name in Batch._fields)), rows, indices


@pytest.mark.parametrize('pairing', ['nsp', 'sop', 'none'])
def test_packed_sequence_has_the_layout_of_an_unpacked_one(tmp_path, pairing: str) -> None:
    stream = _stream(str(tmp_path), batch_size=64, pairing=pairing)
    batch = stream.batch(0)
    alone, rows, indices = _unpacked(batch)
    assert indices.max() >= 2 and batch.cls_positions.shape == (64, config.max_sequences(stream.data))
    num_real = (batch.sequence_ids > 0).sum()
    assert (alone.sequence_ids > 0).sum() == num_real  # no token is outside a sequence
    assert np.all((batch.masked_lm_weights > 0).sum(axis=1) <= config.num_predictions(stream.data))
    for row in range(len(rows)):
        ids, length = alone.input_ids[row].copy(), int(alone.sequence_ids[row].sum())
        real = alone.masked_lm_weights[row] > 0
        ids[alone.masked_lm_positions[row][real]] = alone.masked_lm_ids[row][real]
        assert np.array_equal(alone.position_ids[row][:length], np.arange(length))
        separators = np.flatnonzero(ids[:length] == TOKENIZER.sep_id)
        assert ids[0] == TOKENIZER.cls_id and separators[-1] == length - 1
        assert len(separators) == (1 if pairing == 'none' else 2)
        types = (np.arange(96) > separators[0]) & (np.arange(96) < length)
        assert np.array_equal(alone.token_type_ids[row], types.astype(int))
        assert real.sum() == min(max(1, round(0.15 * length)), length - 1 - len(separators))
        for part in np.split(ids[1 : length - 1], [] if pairing == 'none' else [separators[0] - 1]):
            text = part[part >= 10]
            assert np.array_equal(np.diff(text), np.ones(len(text) - 1))
    assert np.all(batch.next_sentence_weights.sum() == (0 if pairing == 'none' else len(rows)))


def test_losses_of_packed_and_unpacked_sequences_are_equal(tmp_path) -> None:
    stream = _stream(str(tmp_path), batch_size=8)
    packed = stream.batch(0)
    packed = packed._replace(**{name: getattr(packed, name) % 500 for name in ('input_ids', 'masked_lm_ids')})
    alone, rows, indices = _unpacked(packed)
    assert len(rows) > 8
    size = config.Bert(
        num_layers=2,
        hidden_size=32,
        num_heads=2,
        intermediate_size=64,
        max_positions=96,
        initializer_range=0.1,  # losses far from those of a new model
    )
    params = jax.jit(lambda: nnx.state(BertForPreTraining(size, 500, nnx.Rngs(0))))()

    @jax.jit
    def losses(batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the losses of the predictions, [B, P], and of the pairs, [B, E]."""
        model = model_of(params, size, 500)
        hidden = model.encode(batch.inputs)
        logits = (
            model.mlm_logits(hidden, batch.masked_lm_positions),
            model.nsp_logits(hidden, batch.cls_positions),
        )
        labels = batch.masked_lm_ids, batch.next_sentence_labels
        return tuple(map(optax.softmax_cross_entropy_with_integer_labels, logits, labels))

    packed_mlm, packed_nsp = map(np.asarray, losses(packed))
    alone_mlm, alone_nsp = map(np.asarray, losses(alone))
    assert np.ptp(alone_nsp) > 0.1
    for k, (row, index) in enumerate(zip(rows, indices, strict=True)):
        real = alone.masked_lm_weights[k] > 0
        np.testing.assert_allclose(packed_mlm[row][real], alone_mlm[k][real], atol=1e-5)
        np.testing.assert_allclose(packed_nsp[row, index], alone_nsp[k, 0], atol=1e-5)


def test_epoch_of_packed_rows_uses_every_window_once(tmp_path) -> None:
    """Without pairs, every text token is its own position in the split, so windows can be counted in the batches."""
    stream = _stream(str(tmp_path), pairing='none', masking=Masking(rate=0.01))
    seen = []
    for step in range(len(stream)):
        batch = stream.batch(step)
        ids = batch.input_ids.copy()
        rows, slots = np.nonzero(batch.masked_lm_weights)
        ids[rows, batch.masked_lm_positions[rows, slots]] = batch.masked_lm_ids[rows, slots]
        in_epoch = step * 16 + np.arange(16) < stream.num_rows
        seen.append(ids[in_epoch][ids[in_epoch] >= 10] - 10)
    index = stream.windows
    lengths = np.minimum(index.target, index.length)
    used = [np.arange(start, start + length) for start, length in zip(index.start, lengths, strict=True)]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.sort(np.concatenate(used)))
