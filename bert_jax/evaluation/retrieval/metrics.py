"""Ranking metrics as `trec_eval` computes them; a passage is relevant if its grade is above 0."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

DEPTH = 100  # passages per query that the metrics need


@dataclasses.dataclass(frozen=True)
class RankingMetrics:
    """Means over the queries, from 0 to 1.

    Attributes:
      ndcg_at_10: the gain of a passage is its grade (Järvelin and Kekäläinen 2002, with linear gains).
      mrr_at_10: 1 over the rank of the first relevant passage, 0 if none is among the first ten.
      recall_at_10: share of the relevant passages that are among the first ten.
    """

    ndcg_at_10: float
    mrr_at_10: float
    recall_at_10: float
    recall_at_100: float


def measure(rankings: Iterable[Sequence[int]], judgements: Sequence[Mapping[int, float]]) -> RankingMetrics:
    """Returns the metrics of rankings.

    Args:
      rankings: for each query the indices of passages, best first, at least `DEPTH` or all; -1 stands for none.
      judgements: for each query {index of a passage: grade}.
    """
    rows = [
        (_ndcg(gains, ideal, 10), _reciprocal_rank(gains, 10), _recall(gains, ideal, 10), _recall(gains, ideal, 100))
        for gains, ideal in map(_gains, rankings, judgements)
    ]
    return RankingMetrics(*map(statistics.fmean, zip(*rows, strict=True)))


def _gains(ranking: Sequence[int], judgement: Mapping[int, float]) -> tuple[list[float], list[float]]:
    """Returns (the gains of a ranking, all gains of a query in falling order)."""
    gains = [max(0, judgement.get(int(index), 0)) for index in ranking]
    return gains, sorted((grade for grade in judgement.values() if grade > 0), reverse=True)


def _ndcg(gains: list[float], ideal: list[float], cutoff: int) -> float:
    return _dcg(gains[:cutoff]) / _dcg(ideal[:cutoff]) if ideal else 0.0


def _dcg(gains: list[float]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def _reciprocal_rank(gains: list[float], cutoff: int) -> float:
    return next((1 / rank for rank, gain in enumerate(gains[:cutoff], 1) if gain), 0.0)


def _recall(gains: list[float], ideal: list[float], cutoff: int) -> float:
    return sum(gain > 0 for gain in gains[:cutoff]) / len(ideal) if ideal else 0.0


def mean_cosine(vectors: np.ndarray, rows: int = 1 << 14) -> float | None:
    """Returns the mean cosine similarity of two different vectors, over all pairs; None if there are fewer than two.

    High values mean that all vectors point in similar directions (Ethayarajh 2019,
    https://arxiv.org/abs/1909.00512). The mean over all n (n - 1) pairs is (|s|^2 - sum of |u|^2) / (n (n - 1)), where
    s is the sum of the vectors u scaled to length 1.

    Args:
      vectors: [n, D], read in blocks of `rows`.
    """
    n = len(vectors)
    if n < 2:
        return None
    total, squares = np.zeros(vectors.shape[1]), 0.0
    for start in range(0, n, rows):
        block = np.asarray(vectors[start : start + rows], np.float64)
        block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)
        total += block.sum(axis=0)
        squares += float((block * block).sum())
    return float((total @ total - squares) / (n * (n - 1)))
