"""Scores of answers, fractions, as SQuAD's official scorers count them: `evaluate-v1.1.py` (Rajpurkar et al. 2016), and
where a question may have no answer, `evaluate-v2.0.py` (Rajpurkar et al. 2018).
"""

import re
import string
from collections import Counter

import numpy as np

_PUNCTUATION = str.maketrans('', '', string.punctuation)
_ARTICLES = re.compile(r'\b(a|an|the)\b')


def normalize(answer: str) -> str:
    """Lower case, without ASCII punctuation, then without English articles, one blank between words."""
    return ' '.join(_ARTICLES.sub(' ', answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: list[str]) -> float:
    """1 when the answer is one of the gold answers once both are normalized, else 0."""
    return float(any(normalize(answer) == normalize(one) for one in gold))


def f1(answer: str, gold: list[str]) -> float:
    """The harmonic mean of precision and recall over the words shared with a gold answer, the best of them."""
    return max(_f1(normalize(answer).split(), normalize(one).split()) for one in gold)


def _f1(answer: list[str], gold: list[str]) -> float:
    shared = (Counter(answer) & Counter(gold)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(answer), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def scores_with_no_answer(texts: list[str], null_odds: list[float], gold: list[list[str]]) -> dict[str, float]:
    """What `evaluate-v2.0.py` finds with `--na-prob-file` and the threshold 0.

    Args:
      texts: of each question, the best answer that is one.
      null_odds: how much more 'no answer' scores than that; above a threshold, no answer is given.
      gold: of each question, its answers; none for a question without.

    Returns:
      exact and f1 at the threshold 0, of all questions, of those that have an answer (HasAns_) and of those that have
      none (NoAns_), the latter two where there are such; best_exact, best_f1 and the thresholds that give them.
    """
    has_answer = np.array([bool(one) for one in gold])
    odds, is_given = np.array(null_odds), np.array([bool(text) for text in texts])
    found: dict[str, float] = {}
    for name, score in (('exact', exact_match), ('f1', _f1_or_none)):
        raw = np.array([score(text, _golds(one)) for text, one in zip(texts, gold, strict=True)])
        scores = np.where(odds > 0, ~has_answer, raw)
        found[name] = float(scores.mean())
        for prefix, chosen in (('HasAns', has_answer), ('NoAns', ~has_answer)):
            if chosen.any():
                found[f'{prefix}_{name}'] = float(scores[chosen].mean())
        found[f'best_{name}'], found[f'best_{name}_thresh'] = _best_threshold(raw, odds, has_answer, is_given)
    return found


def _golds(given: list[str]) -> list[str]:
    """The answers to compare with: those of which something is left once they are normalized, or else none: ''."""
    return [text for text in given if normalize(text)] or ['']


def _f1_or_none(answer: str, gold: list[str]) -> float:
    """As `f1`; an answer of nothing equals one of nothing."""
    words = [normalize(one).split() for one in gold]
    mine = normalize(answer).split()
    return max(_f1(mine, one) if mine and one else float(mine == one) for one in words)


def _best_threshold(
    scores: np.ndarray, odds: np.ndarray, has_answer: np.ndarray, is_given: np.ndarray
) -> tuple[float, float]:
    """(the best mean score, the threshold of the odds that gives it); at first no question is answered."""
    order = np.argsort(odds, kind='stable')
    gains = np.where(has_answer, scores, -1.0 * is_given)[order]
    totals = np.sum(~has_answer) + np.concatenate([[0.0], np.cumsum(gains)])
    best = int(totals.argmax())
    return float(totals[best] / len(scores)), float(odds[order[best - 1]]) if best else 0.0
