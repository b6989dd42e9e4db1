"""The search for near copies as Apache Beam transforms: the links of `comparison`, found by shuffles instead of files.

band keys   (key, text)                   grouped by key, into pairs of texts to compare
pairs       (first, second), distinct     joined with the sketch of the first text, then with that of the second
links                                     grouped by their first text, and written
"""

import pathlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam
import numpy as np

from bert_jax.files import new_file
from bert_jax.text.near_duplicates.comparison import candidate_pairs, estimate_similarity
from bert_jax.text.near_duplicates.files import StoredSketches
from bert_jax.text.near_duplicates.settings import Bands, NearDuplicates

_TEXTS_PER_FILE = 1 << 22


def write_links(
    pipeline: Any, sketches: StoredSketches, settings: NearDuplicates, directory: pathlib.Path, table: str
) -> None:
    """Adds transforms to a pipeline that write the links of a table to a directory that all workers see."""
    chunks = pipeline | apache_beam.Create(range(sketches.num_chunks)) | apache_beam.Reshuffle()
    words = chunks | 'words' >> apache_beam.FlatMap(_words, sketches)
    pairs = (
        chunks
        | 'keys' >> apache_beam.FlatMap(_keys, sketches, settings.bands)
        | 'by key' >> apache_beam.GroupByKey()
        | 'pairs' >> apache_beam.FlatMap(_pairs)
        | apache_beam.Distinct()
    )
    with_first = (
        {'others': pairs, 'words': words}
        | 'by first' >> apache_beam.CoGroupByKey()
        | 'attach' >> apache_beam.FlatMap(_attach)
    )
    links = (
        {'others': with_first, 'words': words}
        | 'by second' >> apache_beam.CoGroupByKey()
        | 'compare' >> apache_beam.FlatMap(_compare, settings.similarity)
    )
    _ = links | 'by file' >> apache_beam.GroupByKey() | 'write' >> apache_beam.Map(_write, sketches, directory, table)


def _words(chunk_index: int, sketches: StoredSketches) -> Iterator[tuple[int, bytes]]:
    for text, words in sketches.words_of_chunk(chunk_index):
        yield text, words.tobytes()


def _keys(chunk_index: int, sketches: StoredSketches, bands: Bands) -> Iterator[tuple[bytes, int]]:
    for band, key, text in sketches.keys_of_chunk(chunk_index, bands):
        yield struct.pack('>BQ', band, key), text


def _pairs(element: tuple[bytes, Iterable[int]]) -> Iterator[tuple[int, int]]:
    texts = np.sort(np.fromiter(element[1], np.int64))
    pairs = candidate_pairs(np.zeros(len(texts), np.uint64), texts)
    yield from zip(*pairs.T.tolist(), strict=True)


def _attach(element: tuple[int, dict[str, Iterable[Any]]]) -> Iterator[tuple[int, tuple[int, bytes]]]:
    first, groups = element
    [words] = groups['words']
    for second in groups['others']:
        yield second, (first, words)


def _compare(element: tuple[int, dict[str, Iterable[Any]]], similarity: float) -> Iterator[tuple[int, tuple[int, int]]]:
    second, groups = element
    [words] = groups['words']
    for first, words_of_first in groups['others']:
        both = (np.frombuffer(each, np.uint16) for each in (words_of_first, words))
        if estimate_similarity(*both) >= similarity:
            yield first // _TEXTS_PER_FILE, (first, second)


def _write(
    element: tuple[int, Iterable[tuple[int, int]]], sketches: StoredSketches, directory: pathlib.Path, table: str
) -> None:
    index, links = element
    distinct, members = np.unique(np.array(sorted(links)), return_inverse=True)
    with new_file(directory / f'{table}-beam-{index:05d}.bin') as temporary:
        sketches.records(distinct)[members.reshape(-1, 2)].tofile(temporary)
