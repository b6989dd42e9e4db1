"""Masking has the original's distribution and exact totals."""

import numpy as np
import pytest

from bert_jax.config import Masking
from bert_jax.data import random
from bert_jax.data.masking import mask_tokens

MASK_ID, VOCAB = 4, 1000


def _mask(seed: int, num_rows: int = 256, num_positions: int = 64, num_predictions: int = 12, rate: float = 0.15):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, num_positions + 1, num_rows)
    place = np.arange(num_positions)
    present = place < lengths[:, None]
    candidates = present & (place > 0) & (place != lengths[:, None] - 1) & (place != lengths[:, None] // 2)
    ids = np.where(present, rng.integers(5, VOCAB, present.shape), 0).astype(np.int32)
    keys = random.fold(seed, np.arange(num_rows))
    masked = mask_tokens(
        ids,
        candidates,
        lengths,
        keys,
        Masking(rate=rate),
        num_predictions=num_predictions,
        mask_id=MASK_ID,
        vocab_size=VOCAB,
    )
    return ids, candidates, lengths, masked


@pytest.mark.parametrize('rate', [0.15, 0.4])
def test_counts_are_exact_and_positions_are_candidates(rate: float) -> None:
    ids, candidates, lengths, masked = _mask(0, rate=rate)
    wanted = [max(1, round(rate * n)) for n in lengths]
    expected = np.minimum(np.minimum(wanted, candidates.sum(axis=1)), 12)
    np.testing.assert_array_equal(masked.weights.sum(axis=1), expected)
    for row in range(len(ids)):
        real = masked.weights[row] > 0
        positions = masked.positions[row][real]
        assert len(set(positions)) == len(positions) and list(positions) == sorted(positions)
        assert candidates[row][positions].all()
        np.testing.assert_array_equal(masked.ids[row][real], ids[row][positions])
        untouched = np.setdiff1d(np.arange(ids.shape[1]), positions)
        np.testing.assert_array_equal(masked.input_ids[row][untouched], ids[row][untouched])
        assert not masked.ids[row][~real].any() and not masked.positions[row][~real].any()


def test_replacements_are_80_10_10_and_the_random_ones_uniform() -> None:
    same = became_mask = total = 0
    randoms = []
    for seed in range(60):
        ids, _, _, masked = _mask(seed)
        now = np.take_along_axis(masked.input_ids, masked.positions, axis=1)[masked.weights > 0]
        before = masked.ids[masked.weights > 0]
        total += len(now)
        became_mask += (now == MASK_ID).sum()
        same += (now == before).sum()
        randoms.append(now[(now != MASK_ID) & (now != before)])
    share = lambda count: count / total  # noqa: E731
    assert abs(share(became_mask) - (0.8 + 0.1 / VOCAB)) < 5 * np.sqrt(0.16 / total)
    assert abs(share(same) - (0.1 + 0.1 / VOCAB)) < 5 * np.sqrt(0.09 / total)
    counts = np.histogram(np.concatenate(randoms), bins=10, range=(0, VOCAB))[0]
    expected = counts.sum() / 10
    assert ((counts - expected) ** 2 / expected).sum() < 36  # 9 degrees of freedom, p = 4e-5


def test_every_candidate_is_drawn_equally_often() -> None:
    ids = np.full((20_000, 30), 7, np.int32)
    candidates = np.zeros(ids.shape, bool)
    candidates[:, 1:21] = True
    keys = random.fold(9, np.arange(len(ids)))
    masked = mask_tokens(
        ids,
        candidates,
        np.full(len(ids), 22),
        keys,
        Masking(),
        num_predictions=5,
        mask_id=MASK_ID,
        vocab_size=VOCAB,
    )
    counts = np.bincount(masked.positions[masked.weights > 0], minlength=30)
    assert counts[0] == 0 and not counts[21:].any()
    expected = 20_000 * 3 / 20  # round(0.15 x 22) = 3 of 20 candidates
    assert ((counts[1:21] - expected) ** 2 / expected).sum() < 60


def test_a_row_without_candidates_gets_no_prediction() -> None:
    masked = mask_tokens(
        np.zeros((2, 8), np.int32),
        np.zeros((2, 8), bool),
        np.zeros(2, int),
        random.fold(0, np.arange(2)),
        Masking(),
        num_predictions=10,
        mask_id=MASK_ID,
        vocab_size=VOCAB,
    )
    assert masked.weights.shape == (2, 10) and not masked.weights.any()
