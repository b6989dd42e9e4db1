"""Metrics match their usual definitions."""

import math

import numpy as np
import pytest

from bert_jax.finetune import answers, metrics


def test_classification_metrics_match_their_definitions() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    tp, tn = ((labels == value) & (predicted == value) for value in (1, 0))
    fp, fn = (labels == 0) & (predicted == 1), (labels == 1) & (predicted == 0)
    tp, tn, fp, fn = (int(array.sum()) for array in (tp, tn, fp, fn))
    f1, f1_of_zero = 2 * tp / (2 * tp + fp + fn), 2 * tn / (2 * tn + fp + fn)
    matthews = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    expected = {'accuracy': (tp + tn) / 200, 'f1': f1, 'macro_f1': (f1 + f1_of_zero) / 2, 'matthews': matthews}
    for name, value in expected.items():
        assert metrics.classification(name, labels.tolist(), predicted.tolist()) == pytest.approx(value), name


def test_pearson_uses_values_and_spearman_ranks() -> None:
    x, y = [1.0, 2.0, 3.0, 5.0], [2.0, 1.0, 4.0, 40.0]
    assert metrics.regression('pearson', x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert metrics.regression('spearman', x, y) == pytest.approx(np.corrcoef([1, 2, 3, 4], [2, 1, 3, 4])[0, 1])


def test_entity_metrics_count_whole_entities() -> None:
    tags = [['B-PER', 'I-PER', 'O', 'B-LOC'], ['B-ORG', 'O']]
    predicted = [['B-PER', 'O', 'O', 'B-LOC'], ['B-ORG', 'B-ORG']]  # 2 of 3 found; 2 of 4 right
    assert metrics.tagging('entity_recall', tags, predicted) == pytest.approx(2 / 3)
    assert metrics.tagging('entity_precision', tags, predicted) == pytest.approx(1 / 2)
    assert metrics.tagging('entity_f1', tags, predicted) == pytest.approx(4 / 7)
    assert metrics.tagging('token_accuracy', tags, predicted) == pytest.approx(4 / 6)


def test_undefined_metrics_are_zero() -> None:
    assert metrics.classification('matthews', [0, 1, 1], [1, 1, 1]) == 0
    assert metrics.classification('f1', [0, 0], [0, 0]) == 0
    assert metrics.regression('pearson', [1.0, 2.0], [3.0, 3.0]) == 0
    assert metrics.tagging('entity_f1', [['B-PER']], [['O']]) == 0


@pytest.mark.parametrize(
    'answer, gold, exact, f1',
    [
        ('The Denver Broncos!', ['Denver Broncos'], 1, 1),  # articles, punctuation, case
        ('an  apple', ['apple'], 1, 1),
        ('theatre', ['atre'], 0, 0),  # 'the' is an article only as a word
        ('U.S.', ['US'], 1, 1),
        ('24–10', ['24-10'], 0, 0),  # only ASCII punctuation is removed
        ('1,000 men', ['1000 men'], 1, 1),
        ('Santa Clara', ['California', 'Santa Clara, California', 'Clara'], 0, 0.8),  # the best of several
        ('Clara Santa', ['Santa Clara'], 0, 1),  # a bag of words
        ('b b c', ['b c c'], 0, 2 / 3),  # repeated words count as often as they are shared
        ('', ['Paris'], 0, 0),
        ('well-known', ['wellknown'], 1, 1),
    ],
)
def test_answer_scores_match_the_official_scorer(answer: str, gold: list[str], exact: float, f1: float) -> None:
    assert answers.exact_match(answer, gold) == exact
    assert answers.f1(answer, gold) == pytest.approx(f1)
