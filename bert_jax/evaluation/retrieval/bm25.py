"""BM25, the baseline that needs no training (Robertson and Zaragoza 2009), computed by bm25s."""

import importlib
import importlib.util
from typing import Any

import numpy as np

from bert_jax.activity import activity, counted
from bert_jax.errors import BadInput
from bert_jax.evaluation.retrieval.dataset import RetrievalSet


def is_installed() -> bool:
    return importlib.util.find_spec('bm25s') is not None


def check_is_installed() -> None:
    """Raises BadInput if bm25s is not installed."""
    if not is_installed():
        fix = "pip install -e '.[retrieval]', or --nobm25"
        raise BadInput('--bm25', 'needs bm25s, which is not installed', 'the extra retrieval', fix)


def rank(dataset: RetrievalSet, k: int) -> np.ndarray:
    """Returns the best `k` passages of each query, int64 [Q, k]; -1 where no further passage shares a word.

    Lucene's variant with k1 = 1.5 and b = 0.75. Words are sequences of at least two letters or digits, in lower case;
    there is no stemming and no list of stop words, so that every language is treated alike. All passages are held in
    memory.
    """
    bm25s: Any = importlib.import_module('bm25s')
    with activity('indexing passages for BM25'):
        passages = bm25s.tokenize([*dataset.passages()], stopwords=None, show_progress=False)
        index = bm25s.BM25(method='lucene', k1=1.5, b=0.75)
        index.index(passages, show_progress=False)
    words = bm25s.tokenize(dataset.queries, stopwords=None, show_progress=False, return_ids=False)
    rankings = np.full((len(words), k), -1, np.int64)
    for row, query in enumerate(counted(words, len(words), 'BM25', 'queries')):
        known = [word for word in query if word in index.vocab_dict]
        if known:
            scores = np.array(index.get_scores(known))
            scores[dataset.same_id[row] : dataset.same_id[row] + 1] = 0  # none if it is -1
            best = best_first(scores, k)
            rankings[row, : len(best)] = best
    return rankings


def best_first(scores: np.ndarray, k: int) -> np.ndarray:
    """Returns the indices of the `k` highest scores above 0, best first; of equal scores the lower index."""
    found = np.flatnonzero(scores > 0)
    if len(found) > k:
        lowest = np.partition(scores[found], -k)[-k]
        found = found[scores[found] >= lowest]
    return found[np.argsort(-scores[found], kind='stable')][:k]
