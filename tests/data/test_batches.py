"""A batch depends only on its step: not on the number of hosts, the order of requests, or restarts."""

import concurrent.futures
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import Data, Masking
from bert_jax.data.batches import Batch, CorpusStream, prefetch
from bert_jax.errors import BadInput
from tests.support.corpora import TOKENIZER, corpus_of, random_split

DATA = Data(sequence_length=48)


def _stream(
    tmp_path, seed: int | None = 0, data: Data = DATA, batch_size: int = 16, documents: int = 60
) -> CorpusStream:
    corpus = corpus_of(random_split(0, num_documents=documents), str(tmp_path))
    return CorpusStream(corpus, data, 'train', batch_size=batch_size, seed=seed)


def _assert_equal(first: Batch, second: Batch) -> None:
    for name, a, b in zip(Batch._fields, first, second, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=name)


def _concatenate(parts: list[Batch]) -> Batch:
    return Batch(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@pytest.fixture(scope='module')
def streams(tmp_path_factory):
    """Returns a function that makes streams over one corpus."""
    corpus = corpus_of(random_split(5, num_documents=80, longest=12), str(tmp_path_factory.mktemp('corpus')))

    def make(seed: int, phase: int, **fields: object) -> CorpusStream:
        if fields.get('packing'):
            fields['bucket_lengths'] = ()
        data = Data(sequence_length=48, **fields)
        return CorpusStream(corpus, data, 'train', batch_size=16, seed=seed, phase=phase)

    return make


def _rows_of_epoch(stream: CorpusStream, epoch: int) -> np.ndarray:
    """Returns the row indices of an epoch in their order, [N]. With buckets, an epoch is a whole number of steps."""
    if not stream.data.bucket_lengths:
        return stream._sampler.shuffle(np.arange(stream.num_rows) + epoch * stream.num_rows)
    chosen = [stream._sampler.rows(step) for step in range(epoch * len(stream), (epoch + 1) * len(stream))]
    return np.concatenate([some.rows[some.present] for some in chosen])


_SETTINGS = {
    'pairing': st.sampled_from(['nsp', 'sop', 'none']),
    'packing': st.booleans(),
    'masking': st.sampled_from(['token', 'word', 'ngram']).map(lambda unit: Masking(unit=unit)),
    'bucket_lengths': st.sampled_from([(), (16,), (12, 24, 40)]),
}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    phase=st.integers(0, 3),
    fields=st.fixed_dictionaries(_SETTINGS),
    step=st.integers(0, 10**7),
    hosts=st.sampled_from([1, 2, 4, 8]),
    workers=st.sampled_from([1, 2, 4]),
)
def test_batch_is_a_function_of_its_step(streams, seed, phase, fields, step, hosts, workers) -> None:
    """All hosts together, concurrent workers and a run restarted at this step get the same batch."""
    stream, size = streams(seed, phase, **fields), 16 // hosts
    expected = stream.batch(step)
    parts = [stream.batch(step, slice(host * size, (host + 1) * size)) for host in range(hosts)]
    _assert_equal(_concatenate(parts), expected)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        batches = pool.map(stream.batch, [step + 1, step, max(step - 1, 0), step])
        for found in list(batches)[1::2]:
            _assert_equal(found, expected)
    _assert_equal(next(prefetch(streams(seed, phase, **fields), step, step + 1, lambda _: slice(None))), expected)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 1000), fields=st.fixed_dictionaries(_SETTINGS))
def test_epoch_uses_each_window_once_in_a_new_order(streams, seed, epoch, fields) -> None:
    stream = streams(seed, 0, **fields)
    first, second = (_rows_of_epoch(stream, index) for index in (epoch, epoch + 1))
    for rows in (first, second):
        windows = [np.arange(stream.windows.rows[row], stream.windows.rows[row + 1]) for row in rows]
        np.testing.assert_array_equal(np.sort(np.concatenate(windows)), np.arange(stream.windows.num_windows))
    assert (first == second).mean() < 0.2


def test_phases_have_different_batches(streams) -> None:
    first, second = streams(0, 0).batch(0), streams(0, 1).batch(0)
    assert not np.array_equal(first.input_ids, second.input_ids)


@pytest.mark.parametrize('hosts', [1, 2, 4, 8])
def test_slices_of_all_hosts_form_the_global_batch(tmp_path, hosts: int) -> None:
    stream, size = _stream(tmp_path), 16 // hosts
    for step in (0, 3, 1000):
        parts = [stream.batch(step, slice(host * size, (host + 1) * size)) for host in range(hosts)]
        _assert_equal(_concatenate(parts), stream.batch(step))


def test_batch_does_not_depend_on_the_request_order(tmp_path) -> None:
    first, second = _stream(tmp_path), _stream(tmp_path)
    forward = [first.batch(step) for step in range(40)]
    for step in np.random.default_rng(0).permutation(40):
        _assert_equal(second.batch(step), forward[step])
    for start in (0, 7, 39):
        for step, batch in enumerate(prefetch(second, start, 40, lambda _: slice(None)), start=start):
            _assert_equal(batch, forward[step])


def test_batch_size_does_not_change_the_rows(tmp_path) -> None:
    small, large = _stream(tmp_path, batch_size=4), _stream(tmp_path, batch_size=16)
    _assert_equal(_concatenate([small.batch(step) for step in range(8, 12)]), large.batch(2))


def test_every_epoch_is_another_permutation_of_the_windows(tmp_path) -> None:
    stream = _stream(tmp_path)
    epochs = [stream._sampler.shuffle(np.arange(stream.num_rows) + epoch * stream.num_rows) for epoch in range(3)]
    for windows in epochs:
        np.testing.assert_array_equal(np.sort(windows), np.arange(stream.num_rows))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], np.arange(stream.num_rows))


def test_shuffling_in_blocks_covers_every_row(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr('bert_jax.data.sampler._ROWS_IN_BLOCK', 37)
    stream = _stream(tmp_path)
    windows = stream._sampler.shuffle(np.arange(stream.num_rows))
    np.testing.assert_array_equal(np.sort(windows), np.arange(stream.num_rows))


def test_seeds_give_different_batches(tmp_path) -> None:
    a, b = _stream(tmp_path, seed=0).batch(0), _stream(tmp_path, seed=1).batch(0)
    assert not np.array_equal(a.input_ids, b.input_ids)


@pytest.mark.parametrize('pairing', ['nsp', 'sop', 'none'])
def test_rows_have_the_layout_of_the_original(tmp_path, pairing: str) -> None:
    data = Data(sequence_length=48, pairing=pairing)
    batch = _stream(tmp_path, data=data, batch_size=64).batch(0)
    for row in range(64):
        ids = batch.input_ids[row].copy()
        real = batch.masked_lm_weights[row] > 0
        ids[batch.masked_lm_positions[row][real]] = batch.masked_lm_ids[row][real]
        length = int(batch.sequence_ids[row].sum())
        assert np.array_equal(batch.sequence_ids[row], (np.arange(48) < length).astype(int))
        assert not ids[length:].any() and not batch.position_ids[row][length:].any()
        assert np.array_equal(batch.position_ids[row][:length], np.arange(length))
        assert ids[0] == TOKENIZER.cls_id and ids[length - 1] == TOKENIZER.sep_id
        separators = np.flatnonzero(ids[:length] == TOKENIZER.sep_id)
        assert len(separators) == (1 if pairing == 'none' else 2)
        expected_types = (np.arange(48) > separators[0]) & (np.arange(48) < length)
        assert np.array_equal(batch.token_type_ids[row], expected_types.astype(int))
        parts = np.split(ids[1 : length - 1], [] if pairing == 'none' else [separators[0] - 1])
        for part in parts:  # every segment is consecutive text
            text = part[part >= 10]
            assert np.array_equal(np.diff(text), np.ones(len(text) - 1))
        n = max(1, round(0.15 * length))
        assert real.sum() == min(n, batch.masked_lm_weights.shape[1], length - len(separators) - 1)
    weights = batch.next_sentence_weights
    assert np.all(weights == (0 if pairing == 'none' else 1)) and weights.shape == (64, 1)


def test_ids_beyond_the_vocabulary_are_rejected(tmp_path) -> None:
    corpus = corpus_of(random_split(0), str(tmp_path))
    corpus.tokenizer = SimpleNamespace(**vars(TOKENIZER) | {'vocab_size': 50})
    with pytest.raises(BadInput, match="below the vocabulary's 50"):
        CorpusStream(corpus, DATA, 'train', batch_size=16, seed=0).batch(0)


@pytest.mark.parametrize('packing', [False, True])
def test_evaluation_reads_each_window_once_then_padding(tmp_path, packing: bool) -> None:
    stream = _stream(tmp_path, seed=None, data=Data(sequence_length=48, packing=packing))
    batches = [stream.batch(step) for step in range(len(stream))]
    real = sum(int(batch.next_sentence_weights.sum()) for batch in batches)
    assert real == stream.windows.num_windows and (packing or real == stream.num_rows)
    last = batches[-1]
    padding = np.arange(16) >= stream.num_rows - 16 * (len(stream) - 1)
    assert padding.any() and last.sequence_ids[~padding].any(axis=1).all()
    for name in ('masked_lm_weights', 'next_sentence_weights', 'sequence_ids', 'input_ids', 'position_ids'):
        assert not getattr(last, name)[padding].any()
    _assert_equal(stream.batch(1), batches[1])


def test_batch_has_the_shortest_length_its_rows_fit(streams) -> None:
    """Compares with the lengths of the windows. Only the first batch of a bucket may hold rows of a shorter bucket."""
    lengths = (12, 24, 40, 48)
    plain, stream = streams(3, 0), streams(3, 0, bucket_lengths=lengths[:-1])
    needed = plain.windows.target + 3
    shortest = np.array([min(length for length in lengths if length >= one) for one in needed])
    assert stream.windows.bucket_sizes.tolist() == [int((shortest == length).sum()) for length in lengths]
    num_shorter = slots = 0
    for step in range(len(stream)):
        batch, chosen = stream.batch(step), stream._sampler.rows(step)
        rows, length = chosen.rows[chosen.present], batch.input_ids.shape[1]
        assert length == shortest[rows].max() and batch.masked_lm_ids.shape[1] == round(0.15 * length)
        real = (batch.sequence_ids > 0).sum(axis=1)
        assert (real[: len(rows)] <= needed[rows]).all() and not real[len(rows) :].any()
        np.testing.assert_array_equal(batch.masked_lm_weights.sum(axis=1) > 0, chosen.present)
        num_shorter += int((shortest[rows] < length).sum())
        slots += batch.input_ids.size
    assert num_shorter <= 3 * 16 and slots < 0.95 * plain.num_rows * 48


def test_evaluation_has_no_buckets(tmp_path) -> None:
    data = Data(sequence_length=48, bucket_lengths=(16, 32))
    plain, bucketed = _stream(tmp_path, seed=None), _stream(tmp_path, seed=None, data=data)
    _assert_equal(bucketed.batch(1), plain.batch(1))
