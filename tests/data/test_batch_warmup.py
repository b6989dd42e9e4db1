"""During a batch-size warm-up the stream is the same rows in the same order, cut into smaller batches."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from bert_jax import config
from bert_jax.config import BatchSizes, Data
from bert_jax.data.batches import Batch, CorpusStream
from bert_jax.data.sampler import BucketedSampler
from bert_jax.text.corpus import Corpus, load_corpus
from tests.support.configs import as_config, prepared

SIZES = BatchSizes(((0, 4), (3, 8), (5, 16), (9, 32)))


@pytest.fixture(scope='module')
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Data]:
    data = as_config(prepared(tmp_path_factory.mktemp('warmup'))).data
    return load_corpus(data.corpus), data


def _stream(corpus: Corpus, data: Data, batch_size: int | BatchSizes) -> CorpusStream:
    return CorpusStream(corpus, data, 'train', batch_size=batch_size, seed=3, phase=1)


def _joined(batches: list[Batch]) -> list[np.ndarray]:
    return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]


@pytest.mark.parametrize('packing', [False, True])
def test_rows_equal_those_of_equal_batches(corpus: tuple[Corpus, Data], packing: bool) -> None:
    data = dataclasses.replace(corpus[1], packing=packing)
    growing, equal = _stream(corpus[0], data, SIZES), _stream(corpus[0], data, 4)
    ours = [growing.batch(step) for step in range(14)]
    assert [len(batch.input_ids) for batch in ours] == [4] * 3 + [8] * 2 + [16] * 4 + [32] * 5
    assert [growing.batch_size_at(step) for step in range(14)] == [len(batch.input_ids) for batch in ours]
    theirs = [equal.batch(step) for step in range(sum(len(batch.input_ids) for batch in ours) // 4)]
    for mine, expected in zip(_joined(ours), _joined(theirs), strict=True):
        np.testing.assert_array_equal(mine, expected)
    part = growing.batch(6, slice(5, 9))  # as one process makes it
    for mine, expected in zip(part, growing.batch(6), strict=True):
        np.testing.assert_array_equal(mine, expected[5:9])


def test_every_row_of_a_bucket_occurs_once_per_epoch() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([37, 50, 24])
    sampler = BucketedSampler(rng.permutation(111), counts, SIZES, seed=1)
    per_epoch = len(sampler) * SIZES.largest
    epochs: list[Counter[int]] = [Counter() for _ in range(4)]
    for step in range(SIZES.steps_of(3 * per_epoch)):
        found = sampler.rows(step)
        assert len(found.rows) == SIZES.at(step)
        indices = SIZES.before(step) + np.arange(SIZES.at(step))
        for row, present, index in zip(found.rows.tolist(), found.present, indices, strict=True):
            epochs[index // per_epoch][row] += bool(present)
    assert all(epochs[epoch] == Counter(range(111)) for epoch in range(3))


def test_rows_of_a_bucketed_batch_fit_its_length(corpus: tuple[Corpus, Data]) -> None:
    data = dataclasses.replace(corpus[1], bucket_lengths=(8, 16), short_sequence_probability=0.7, pairing='none')
    stream = _stream(corpus[0], data, SIZES)
    lengths = set()
    for step in range(20):
        batch = stream.batch(step)
        lengths.add(batch.input_ids.shape)
        needed = int((batch.sequence_ids > 0).sum(axis=1).max())
        assert needed <= batch.input_ids.shape[1]
    assert {rows for rows, _ in lengths} == {4, 8, 16, 32} and len({length for _, length in lengths}) > 1


def test_seek_is_a_pure_function_of_the_step(corpus: tuple[Corpus, Data]) -> None:
    stream = _stream(corpus[0], corpus[1], SIZES)
    expected = stream.batch(7)
    for other in (0, 12, 3):
        _stream(corpus[0], corpus[1], SIZES).batch(other)
    fresh = _stream(corpus[0], corpus[1], config.BatchSizes(SIZES.stages)).batch(7)
    for mine, theirs in zip(fresh, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
