"""Blocked search finds what a sort of all scores finds, in memory that does not grow with the number of passages."""

import numpy as np
import pytest

from bert_jax.evaluation.retrieval.search import _merge, search


def _sorted(scores: np.ndarray, k: int) -> np.ndarray:
    """Returns the indices of the highest scores of each row, the lower index first among equals."""
    order = np.argsort(-scores, axis=1, kind='stable')[:, :k]
    return np.where(np.isneginf(np.take_along_axis(scores, order, axis=1)), -1, order)


@pytest.mark.parametrize('num_queries, num_passages, k', [(7, 50, 10), (5, 16, 16), (1, 33, 3), (4, 5, 9)])
def test_blocks_give_the_order_of_a_full_sort(num_queries: int, num_passages: int, k: int) -> None:
    rng = np.random.default_rng(0)
    # Small integers have exact products and many ties.
    queries = rng.integers(-2, 3, (num_queries, 4)).astype(np.float32)
    passages = rng.integers(-2, 3, (num_passages, 4)).astype(np.float32)
    excluded = [sorted(rng.choice(num_passages, row % 4, replace=False).tolist()) for row in range(num_queries)]
    scores = queries @ passages.T
    for row, columns in enumerate(excluded):
        scores[row, columns] = -np.inf
    k_found = np.full((num_queries, k), -1)
    k_found[:, : min(k, num_passages)] = _sorted(scores, k)
    hits = [*search(queries, passages, k, excluded, query_rows=3, passage_rows=8)]
    assert [len(each.indices) for each in hits] == [3] * (num_queries // 3) + [num_queries % 3] * (num_queries % 3 > 0)
    indices, found = (np.concatenate([getattr(each, name) for each in hits]) for name in ('indices', 'scores'))
    np.testing.assert_array_equal(indices, k_found)
    is_hit = indices >= 0
    expected = np.take_along_axis(scores, np.maximum(indices, 0), axis=1)
    np.testing.assert_array_equal(found[is_hit], expected[is_hit])
    assert np.isneginf(found[~is_hit]).all()


def test_equal_vectors_are_ranked_by_index_across_blocks() -> None:
    queries, passages = np.ones((2, 3), np.float32), np.ones((40, 3), np.float32)
    [hits] = search(queries, passages, 20, passage_rows=16)
    np.testing.assert_array_equal(hits.indices, np.broadcast_to(np.arange(20), (2, 20)))


class _Recorded:
    """An array that records the largest slice that was read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.largest = array, array.shape, 0

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.largest = max(self.largest, len(self.array[rows]))
        return self.array[rows]

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise AssertionError('the whole array was read')


def test_memory_is_that_of_a_block() -> None:
    rng = np.random.default_rng(0)
    queries, passages = (_Recorded(rng.standard_normal((rows, 8), np.float32)) for rows in (64, 4096))
    hits = [*search(queries, passages, 5, query_rows=16, passage_rows=128)]
    assert (queries.largest, passages.largest) == (16, 128)
    np.testing.assert_array_equal(
        np.concatenate([each.indices for each in hits]), _sorted(queries.array @ passages.array.T, 5)
    )
    floats, integers = np.zeros((16, 5), np.float32), np.zeros((16, 5), np.int32)
    block, excluded = np.zeros((128, 8), np.float32), np.zeros((16, 1), np.int32)
    compiled = _merge.lower(floats, integers, np.zeros((16, 8), np.float32), block, excluded, 0, 4096).compile()
    scores = 4 * 16 * 128
    assert compiled.memory_analysis().temp_size_in_bytes < 6 * scores
