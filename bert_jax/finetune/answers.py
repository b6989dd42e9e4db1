"""Scores answers as SQuAD's official scorers do, in fractions.

The scorers are `evaluate-v1.1.py` (Rajpurkar et al. 2016) and, where a question may have no answer, `evaluate-v2.0.py`
(Rajpurkar et al. 2018).
"""

import re
import string
from collections import Counter

import numpy as np

_PUNCTUATION = str.maketrans('', '', string.punctuation)
_ARTICLES = re.compile(r'\b(a|an|the)\b')


def normalize(answer: str) -> str:
    """Lowercases, then removes ASCII punctuation and English articles; joins words with single spaces."""
    return ' '.join(_ARTICLES.sub(' ', answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: list[str]) -> float:
    """Returns 1 if the normalized answer equals a normalized gold answer, else 0."""
    return float(any(normalize(answer) == normalize(text) for text in gold))


def f1(answer: str, gold: list[str]) -> float:
    """Returns the highest word-level F1 between the answer and any gold answer."""
    return max(_f1(normalize(answer).split(), normalize(text).split()) for text in gold)


def _f1(answer: list[str], gold: list[str]) -> float:
    shared = (Counter(answer) & Counter(gold)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(answer), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def score_with_no_answer(answers: list[str], null_odds: list[float], gold: list[list[str]]) -> dict[str, float]:
    """Returns what `evaluate-v2.0.py` reports with `--na-prob-file` and a threshold of 0.

    Args:
      answers: the best non-empty answer to each question.
      null_odds: per question, the score of 'no answer' minus that of the best answer; above a threshold, the
        prediction is 'no answer'.
      gold: the gold answers to each question; empty for a question without an answer.

    Returns:
      exact and f1 at threshold 0 over all questions, over those with an answer (HasAns_) and over those without
      (NoAns_), if there are any; best_exact, best_f1 and the thresholds that give them.
    """
    has_answer = np.array([bool(texts) for texts in gold])
    odds, is_nonempty = np.array(null_odds), np.array([bool(answer) for answer in answers])
    metrics: dict[str, float] = {}
    for name, score in (('exact', exact_match), ('f1', _f1_or_none)):
        raw = np.array([score(answer, _scorable(texts)) for answer, texts in zip(answers, gold, strict=True)])
        scores = np.where(odds > 0, ~has_answer, raw)
        metrics[name] = float(scores.mean())
        for prefix, subset in (('HasAns', has_answer), ('NoAns', ~has_answer)):
            if subset.any():
                metrics[f'{prefix}_{name}'] = float(scores[subset].mean())
        metrics[f'best_{name}'], metrics[f'best_{name}_thresh'] = _best_threshold(raw, odds, has_answer, is_nonempty)
    return metrics


def _scorable(texts: list[str]) -> list[str]:
    """Returns the gold answers that normalization does not empty, or [''] (no answer) if none remain."""
    return [text for text in texts if normalize(text)] or ['']


def _f1_or_none(answer: str, gold: list[str]) -> float:
    """Like `f1`, but two empty answers score 1."""
    words = normalize(answer).split()
    gold_words = [normalize(text).split() for text in gold]
    return max(_f1(words, expected) if words and expected else float(words == expected) for expected in gold_words)


def _best_threshold(
    scores: np.ndarray, odds: np.ndarray, has_answer: np.ndarray, is_nonempty: np.ndarray
) -> tuple[float, float]:
    """Returns (best mean score, the odds threshold that gives it); the sweep starts with no question answered."""
    order = np.argsort(odds, kind='stable')
    gains = np.where(has_answer, scores, -1.0 * is_nonempty)[order]
    totals = np.sum(~has_answer) + np.concatenate([[0.0], np.cumsum(gains)])
    best = int(totals.argmax())
    return float(totals[best] / len(scores)), float(odds[order[best - 1]]) if best else 0.0
