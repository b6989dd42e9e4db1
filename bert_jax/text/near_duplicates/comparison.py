"""Compares texts that share a band key. A link is a pair of records whose texts are similar.

Texts with the same key are in one bucket. Each is compared with the first of its key and with the one before it, so the
work grows in proportion to the texts, however many share a key.
"""

from collections.abc import Iterator

import numpy as np

from bert_jax.text.near_duplicates.files import StoredSketches
from bert_jax.text.near_duplicates.settings import NearDuplicates

_MAX_BUCKET_BYTES = 1 << 25  # of keys and texts, sorted at once
_BYTES_PER_TEXT = 16
_PAIRS_AT_ONCE = 1 << 15


def buckets(num_texts: int, settings: NearDuplicates) -> list[tuple[int, int, int]]:
    """Returns (band, part, number of parts) of each bucket; all together hold every key once."""
    num_parts = max(1, -(-num_texts * _BYTES_PER_TEXT // _MAX_BUCKET_BYTES))
    return [(band, part, num_parts) for band in range(settings.bands.num_bands) for part in range(num_parts)]


def links_of_bucket(
    sketches: StoredSketches, settings: NearDuplicates, band: int, part: int, num_parts: int
) -> np.ndarray:
    """Returns the links of a bucket, uint64 [L, 2]."""
    keys, texts = sketches.bucket(settings.bands, band, part, num_parts)
    order = np.lexsort((texts, keys))
    links = [np.empty((0, 2), np.uint64)]
    for pairs in _in_blocks(candidate_pairs(keys[order], texts[order])):
        distinct, members = np.unique(pairs, return_inverse=True)
        members = members.reshape(-1, 2)
        words = sketches.words(distinct)
        is_similar = estimate_similarity(words[members[:, 0]], words[members[:, 1]]) >= settings.similarity
        if is_similar.any():
            links.append(sketches.records(distinct)[members[is_similar]])
    return np.concatenate(links)


def candidate_pairs(keys: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Returns the pairs of texts to compare, [P, 2], given keys in ascending order, and the texts of each likewise."""
    is_repeated = np.append(False, keys[1:] == keys[:-1])[: len(keys)]
    starts = np.flatnonzero(~is_repeated)
    first = np.repeat(texts[starts], np.diff(np.append(starts, len(keys))))
    repeated = np.flatnonzero(is_repeated)
    later = repeated[is_repeated[repeated - 1]]  # the one before is not the first
    with_first = np.stack([first[repeated], texts[repeated]], axis=1)
    return np.concatenate([with_first, np.stack([texts[later - 1], texts[later]], axis=1)])


def estimate_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the share of equal values of each pair of sketches."""
    return (first == second).mean(axis=-1)


def _in_blocks(pairs: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        yield pairs[start : start + _PAIRS_AT_ONCE]
