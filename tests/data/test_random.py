"""Keys select permutations, all of which are equally likely."""

import itertools

import numpy as np
import pytest

from bert_jax.data import random


@pytest.mark.parametrize('size', [1, 2, 3, 7, 64, 65, 1000])
def test_every_key_gives_a_permutation(size: int) -> None:
    for limit in (size, size + 1):
        for key in random.fold_in(size, np.arange(20)):
            found = random.permute(np.arange(size), size, np.full(size, key), limit=limit)
            np.testing.assert_array_equal(np.sort(found), np.arange(size))


def test_permuted_position_does_not_depend_on_other_positions() -> None:
    keys = random.fold_in(3, np.arange(500) % 7)
    positions, sizes = np.arange(500) % 90, 90 + np.arange(500) % 11
    together = random.permute(positions, sizes, keys, limit=100)
    alone = [random.permute(positions[i : i + 1], sizes[i : i + 1], keys[i : i + 1], limit=100)[0] for i in range(500)]
    np.testing.assert_array_equal(together, alone)


def test_all_permutations_of_four_are_equally_frequent() -> None:
    keys = random.fold_in(1, np.arange(24_000))
    found = np.stack([random.permute(np.full(24_000, position), 4, keys, limit=4) for position in range(4)], axis=1)
    codes = found @ 4 ** np.arange(4)
    counts = np.array([(codes == np.dot(order, 4 ** np.arange(4))).sum() for order in itertools.permutations(range(4))])
    assert counts.sum() == 24_000
    assert ((counts - 1000) ** 2 / 1000).sum() < 60  # 23 degrees of freedom, p = 4e-5


@pytest.mark.parametrize('size', [6, 33, 1000])
def test_positions_and_distances_of_neighbours_are_uniform(size: int) -> None:
    num_keys = 20 * size
    keys = random.fold_in(2, np.arange(num_keys))
    first, second = (random.permute(np.full(num_keys, position), size, keys, limit=size) for position in (0, 1))
    counts = np.bincount(first, minlength=size)
    gaps = np.bincount((second - first) % size, minlength=size)[1:]
    for found, expected in ((counts, 20), (gaps, num_keys / (size - 1))):
        chi_square, freedom = ((found - expected) ** 2 / expected).sum(), len(found) - 1
        assert abs(chi_square - freedom) < 4.5 * np.sqrt(2 * freedom)
