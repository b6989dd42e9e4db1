"""Clusters of linked records, found by union-find on disk: 16 bytes per record, whatever the number of links."""

import pathlib
from collections.abc import Iterable

import numpy as np

_LINKS_AT_ONCE = 1 << 18
_RECORDS_AT_ONCE = 1 << 20
_ABSENT = np.uint64(2**64 - 1)


class Clusters:
    """The clusters of `length` records, which are linked directly or through others."""

    def __init__(self, scratch: pathlib.Path, length: int, links: Iterable[pathlib.Path]):
        """Reads links, uint64 pairs, from files; `scratch` is an empty directory for temporary files."""
        scratch.mkdir()
        self._parents = _new_map(scratch / 'parents', length)
        self._best = _new_map(scratch / 'best', length)
        self._length = length
        for start in range(0, length, _RECORDS_AT_ONCE):
            stop = min(start + _RECORDS_AT_ONCE, length)
            self._parents[start:stop] = np.arange(start, stop)
            self._best[start:stop] = _ABSENT
        for path in links:
            with path.open('rb') as file:
                while len(block := np.fromfile(file, np.uint64, 2 * _LINKS_AT_ONCE)):
                    self._join(*block.reshape(-1, 2).T)

    def _join(self, first: np.ndarray, second: np.ndarray) -> None:
        while True:
            first, second = self._roots(first), self._roots(second)
            differs = first != second
            if not differs.any():
                return
            first, second = first[differs], second[differs]
            # Several links may concern the same root: the lowest record wins, and the others follow in the next round.
            np.minimum.at(self._parents, np.maximum(first, second), np.minimum(first, second))

    def _roots(self, records: np.ndarray) -> np.ndarray:
        """Returns the lowest record of the cluster of each record, and shortens the way to it."""
        while True:
            above = self._parents[records]
            top = self._parents[above]
            if np.array_equal(above, top):
                return above
            self._parents[records] = top

    def add(self, start: int, is_present: np.ndarray, is_preferred: np.ndarray) -> None:
        """Says which records from `start` on are still in the corpus, and which of them stay before all others."""
        records = np.arange(start, start + len(is_present), dtype=np.uint64)
        ranks = _ranks(records, is_preferred, self._length)
        np.minimum.at(self._best, self._roots(records)[is_present], ranks[is_present])

    def repeated(self, start: int, is_present: np.ndarray, is_preferred: np.ndarray) -> np.ndarray:
        """Returns which of the records are present, and neither the first preferred one of their cluster nor, without
        any, the first. All records must have been added."""
        records = np.arange(start, start + len(is_present), dtype=np.uint64)
        return is_present & (_ranks(records, is_preferred, self._length) != self._best[self._roots(records)])


def _ranks(records: np.ndarray, is_preferred: np.ndarray, length: int) -> np.ndarray:
    return np.where(is_preferred, records, records + np.uint64(length))


def _new_map(path: pathlib.Path, length: int) -> np.ndarray:
    if not length:  # an empty file cannot be mapped
        return np.empty(0, np.uint64)
    return np.memmap(path, np.uint64, 'w+', shape=(length,))
