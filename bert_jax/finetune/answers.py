"""Scores of answers, fractions, as SQuAD's official scorer counts them (`evaluate-v1.1.py`, Rajpurkar et al. 2016)."""

import re
import string
from collections import Counter

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
