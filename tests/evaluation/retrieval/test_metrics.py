"""Metrics equal those of trec_eval, scipy and brute force."""

import dataclasses

import numpy as np
import pytest

from bert_jax.evaluation.retrieval.metrics import DEPTH, mean_cosine, measure
from bert_jax.evaluation.retrieval.similarity import spearman


def test_metrics_equal_trec_eval() -> None:
    reference = pytest.importorskip('pytrec_eval')
    rng = np.random.default_rng(0)
    num_passages, num_queries = 400, 60
    judgements = [
        {int(p): int(rng.integers(-1, 4)) for p in rng.choice(num_passages, rng.integers(1, 150), replace=False)}
        for _ in range(num_queries)
    ]
    judgements[0] = {3: 0, 5: 0}  # no relevant passage
    scores = rng.permuted(np.tile(np.arange(num_passages), (num_queries, 1)), axis=1)  # without ties
    for row, judgement in enumerate(judgements):
        scores[row, [p for p, grade in judgement.items() if grade > 0][:30]] += num_passages * (row % 2)
    rankings = np.argsort(-scores, axis=1, kind='stable')[:, :DEPTH]
    names = {'ndcg_cut.10': 'ndcg_at_10', 'recall.10': 'recall_at_10', 'recall.100': 'recall_at_100'}
    qrels = {str(q): {str(p): grade for p, grade in each.items()} for q, each in enumerate(judgements)}
    run = {str(q): {str(p): float(scores[q, p]) for p in rankings[q]} for q in range(num_queries)}
    rows = reference.RelevanceEvaluator(qrels, {*names}).evaluate(run)
    expected = {
        ours: np.mean([row[theirs.replace('.', '_')] for row in rows.values()]) for theirs, ours in names.items()
    }
    first_ten = {q: dict(sorted(each.items(), key=lambda item: -item[1])[:10]) for q, each in run.items()}
    rows = reference.RelevanceEvaluator(qrels, {'recip_rank'}).evaluate(first_ten)
    expected['mrr_at_10'] = np.mean([row['recip_rank'] for row in rows.values()])
    found = dataclasses.asdict(measure(rankings.tolist(), judgements))
    assert found == pytest.approx(expected, abs=1e-6) and 0.2 < found['ndcg_at_10'] < 0.9


def test_ranking_without_results_scores_zero() -> None:
    assert {*dataclasses.astuple(measure([[-1] * DEPTH], [{0: 1}]))} == {0.0}


def test_spearman_equals_scipy_with_ties() -> None:
    stats = pytest.importorskip('scipy.stats')
    rng = np.random.default_rng(0)
    for num_values in (3, 500):
        found, expected = rng.integers(0, 20, (2, num_values)) / 7
        assert spearman(found, expected) == pytest.approx(stats.spearmanr(found, expected).statistic, abs=1e-12)
    assert spearman(np.ones(4), np.arange(4)) is None


def test_mean_cosine_is_that_of_all_pairs() -> None:
    vectors = np.random.default_rng(0).standard_normal((23, 5)).astype(np.float32) + 0.5
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = [float(unit[i] @ unit[j]) for i in range(23) for j in range(23) if i != j]
    assert mean_cosine(vectors, rows=7) == pytest.approx(np.mean(cosines), abs=1e-6)
    assert mean_cosine(vectors[:1]) is None
