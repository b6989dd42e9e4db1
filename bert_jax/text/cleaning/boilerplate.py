"""Finds lines that recur across documents, exactly and in bounded memory.

A first pass over the text writes a pair of hashes (line, document) for each line of each document, in sorted runs.
Ranges of hashes are then read from all runs, each small enough for memory, and the documents of each line are counted.
Equal documents have equal hashes and count once, so copies of a document do not turn its lines into boilerplate. A run
holds at most `min_documents` pairs of a line, which is enough to know that it is frequent.
The second pass drops the lines. The result depends on neither the number of processes nor their order.

    LINES/00012/run-00000.npy        uint64 [N, 2], pairs of a chunk, sorted
    boilerplate.npy                  uint64 [B], hashes of the lines to drop, ascending
"""

import hashlib
import pathlib
import re
from collections.abc import Iterable

import numpy as np

from bert_jax.files import map_array, new_directory, new_file
from bert_jax.text.documents import Document
from bert_jax.text.splits import NpyWriter

FILE_NAME = 'boilerplate.npy'
_PAIRS_PER_RUN = 1 << 21  # 32 MiB
_PAIRS_AT_ONCE = 1 << 21  # of a range, approximately
_DIGITS = re.compile(r'\d+')


def line_digests(text: str) -> np.ndarray:
    """Returns a hash of each line of a text, uint64; lines that differ only in case or numbers have the same."""
    lines = _DIGITS.sub('0', text).lower().split('\n')
    digests = b''.join([hashlib.blake2b(line.encode(), digest_size=8).digest() for line in lines])
    return np.frombuffer(digests, '<u8')


class Boilerplate:
    """The lines to drop, as written by `find_boilerplate`; memory-mapped."""

    def __init__(self, path: pathlib.Path):
        self._digests = map_array(path)

    def are_in(self, digests: np.ndarray) -> np.ndarray:
        """Whether each hash is that of a line to drop."""
        if not len(self._digests):
            return np.zeros(len(digests), bool)
        indices = np.searchsorted(self._digests, digests)
        return self._digests[np.minimum(indices, len(self._digests) - 1)] == digests


def write_pairs(documents: Iterable[Document], directory: pathlib.Path, min_documents: int) -> int:
    """Writes the pairs of the lines and documents of a chunk to its directory, atomically; returns the documents.

    Args:
      min_documents: that a line must occur in to be boilerplate.
    """
    num_documents = num_runs = size = 0
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    with new_directory(directory, temporary_in=directory.parents[1]) as temporary:
        for document in documents:
            lines = np.unique(line_digests(document.text))
            digest = hashlib.blake2b(document.text.encode(), digest_size=8).digest()
            parts.append((lines, np.full(len(lines), int.from_bytes(digest, 'little'), np.uint64)))
            num_documents, size = num_documents + 1, size + len(lines)
            if size >= _PAIRS_PER_RUN:
                np.save(temporary / f'run-{num_runs:05d}.npy', _sorted_pairs(parts, min_documents))
                num_runs, parts, size = num_runs + 1, [], 0
        if parts:
            np.save(temporary / f'run-{num_runs:05d}.npy', _sorted_pairs(parts, min_documents))
    return num_documents


def _sorted_pairs(parts: list[tuple[np.ndarray, np.ndarray]], min_documents: int) -> np.ndarray:
    pairs = _distinct(np.stack([np.concatenate(column) for column in zip(*parts, strict=True)], axis=1))
    firsts = np.flatnonzero(np.append(True, pairs[1:, 0] != pairs[:-1, 0]))
    ranks = np.arange(len(pairs)) - np.repeat(firsts, np.diff(np.append(firsts, len(pairs))))
    return pairs[ranks < min_documents]


def _distinct(pairs: np.ndarray) -> np.ndarray:
    """Returns the different pairs, sorted."""
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return pairs[np.append(True, (pairs[1:] != pairs[:-1]).any(axis=1))[: len(pairs)]]


def find_boilerplate(
    directories: list[pathlib.Path], min_documents: int, path: pathlib.Path, temporary_in: pathlib.Path
) -> None:
    """Writes the hashes of the lines that occur in at least `min_documents` different documents.

    Args:
      directories: of all chunks, written by `write_pairs`.
    """
    runs = [map_array(run) for directory in directories for run in sorted(directory.glob('run-*.npy'))]
    num_ranges = -(-sum(map(len, runs)) // _PAIRS_AT_ONCE) or 1
    borders = [(index << 64) // num_ranges for index in range(1, num_ranges)]
    starts = [np.zeros(len(runs), np.int64)]
    for border in np.array(borders, np.uint64):
        starts.append(np.array([np.searchsorted(run[:, 0], border) for run in runs], np.int64))
    starts.append(np.array(list(map(len, runs)), np.int64))
    with new_file(path, temporary_in=temporary_in) as temporary:
        writer = NpyWriter(pathlib.Path(temporary), np.uint64)
        for first, last in zip(starts[:-1], starts[1:], strict=True):
            slices = [run[start:stop] for run, start, stop in zip(runs, first, last, strict=True)]
            writer.append(_frequent(np.concatenate([np.zeros((0, 2), np.uint64), *slices]), min_documents))
        writer.close()


def _frequent(pairs: np.ndarray, min_documents: int) -> np.ndarray:
    """Returns the lines, ascending, that are in pairs with at least `min_documents` different documents."""
    lines, counts = np.unique(_distinct(pairs)[:, 0], return_counts=True)
    return lines[counts >= min_documents]
