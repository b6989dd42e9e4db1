"""The sketches of a chunk on disk: written next to its tables, read by bucket. `TABLE` is `documents` or `lines`.

TABLE.index.bin    uint64 [N], the record of each sketched text in TABLE.bin
TABLE.words.bin    uint16 [N, K], the low bits of the sketch of its words
TABLE.keys.bin     uint64, the band keys of up to 32,768 texts at a time: [bands, texts], each band sorted
TABLE.order.bin    uint32, for each key, its text among those
"""

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from bert_jax.text.near_duplicates.settings import NUM_VALUES, Bands, NearDuplicates
from bert_jax.text.near_duplicates.sketches import Sketches, band_keys, sketch

_TEXTS_PER_BLOCK = 1 << 15
_MIN_PARAGRAPH_WORDS = 20  # shorter paragraphs are not compared


class ChunkSketcher:
    """Writes the sketches of the texts of a chunk while it is encoded."""

    def __init__(self, directory: pathlib.Path, settings: NearDuplicates):
        self._writers = {table: _Writer(directory, table, settings.bands) for table in settings.tables}
        self._open: Sketches | None = None  # of a document whose last block has not been added yet

    def add(
        self, blocks: list[str], is_last: list[bool], documents: np.ndarray, lines: list[str], lines_kept: np.ndarray
    ) -> None:
        """Adds blocks of documents; the first ones continue an open document, and the last one may leave one open.

        Args:
          is_last: whether each block is the last of its document.
          documents: which of the completed documents have a record.
          lines: of all blocks.
          lines_kept: which of them have a record.
        """
        sketches = sketch(blocks, 0)
        if self._open is not None:
            sketches = Sketches(*map(np.concatenate, zip(self._open, sketches, strict=True)))
            is_last = [False, *is_last]
        ends = np.flatnonzero(is_last) + 1
        complete = ends[-1] if len(ends) else 0
        self._open = None
        if complete < len(is_last):
            self._open = _merged(Sketches(*(values[complete:] for values in sketches)), np.array([0]))
        if complete:
            whole = _merged(Sketches(*(values[:complete] for values in sketches)), np.append(0, ends[:-1]))
            self._writers['documents'].add(whole, documents & (whole.num_words > 0), documents)
        if 'lines' in self._writers:
            sketches = sketch(lines, _MIN_PARAGRAPH_WORDS)
            self._writers['lines'].add(sketches, lines_kept[sketches.index], lines_kept)

    def close(self) -> None:
        """Completes the files."""
        for writer in self._writers.values():
            writer.close()


def _merged(sketches: Sketches, starts: np.ndarray) -> Sketches:
    """Returns the sketches of documents, given those of their blocks and the first block of each."""
    minima = (np.minimum.reduceat(values, starts, axis=0) for values in (sketches.shingles, sketches.words))
    return Sketches(np.arange(len(starts)), np.add.reduceat(sketches.num_words, starts), *minima)


class _Writer:
    def __init__(self, directory: pathlib.Path, table: str, bands: Bands):
        names = ('index', 'words', 'keys', 'order')
        self._files = {name: (directory / f'{table}.{name}.bin').open('wb') for name in names}
        self._bands, self._num_records = bands, 0
        self._keys = np.empty((bands.num_bands, 0), np.uint64)  # of texts that are not in a block yet

    def add(self, sketches: Sketches, is_written: np.ndarray, is_recorded: np.ndarray) -> None:
        """Adds the sketches selected by `is_written`; `is_recorded` says which of all texts have a record."""
        records = self._num_records + np.cumsum(is_recorded) - 1
        self._num_records += int(is_recorded.sum())
        self._files['index'].write(records[sketches.index[is_written]].astype(np.uint64).tobytes())
        self._files['words'].write(sketches.words[is_written].astype(np.uint16).tobytes())
        keys = band_keys(sketches.shingles[is_written], self._bands)
        self._keys = np.concatenate([self._keys, keys], axis=1)
        while self._keys.shape[1] >= _TEXTS_PER_BLOCK:
            self._write_block(self._keys[:, :_TEXTS_PER_BLOCK])
            self._keys = self._keys[:, _TEXTS_PER_BLOCK:]

    def _write_block(self, keys: np.ndarray) -> None:
        order = np.argsort(keys, axis=1, kind='stable')
        self._files['keys'].write(np.take_along_axis(keys, order, axis=1).tobytes())
        self._files['order'].write(order.astype(np.uint32).tobytes())

    def close(self) -> None:
        self._write_block(self._keys)
        for file in self._files.values():
            file.close()


class StoredSketches:
    """The sketches of one table of all chunks. Texts are numbered in the order of the chunks."""

    def __init__(self, chunks: Sequence[pathlib.Path], table: str, record_bytes: int):
        """Takes the directories of the chunks; `record_bytes` is the size of a record of the table."""
        self._chunks, self._table = list(chunks), table
        sizes = [self._path(i, 'index').stat().st_size // 8 for i in range(len(chunks))]
        records = [(chunk / f'{table}.bin').stat().st_size // record_bytes for chunk in chunks]
        self._starts = np.cumsum([0, *sizes])  # of the texts of each chunk
        self._records = np.cumsum([0, *records])

    @property
    def num_chunks(self) -> int:
        return len(self._chunks)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _path(self, chunk_index: int, name: str) -> pathlib.Path:
        return self._chunks[chunk_index] / f'{self._table}.{name}.bin'

    def _map(self, chunk_index: int, name: str, dtype: type) -> np.ndarray:
        return np.memmap(self._path(chunk_index, name), dtype, 'r')

    def bucket(self, bands: Bands, band: int, part: int, num_parts: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the (keys, texts) of one of `num_parts` equal ranges of the keys of a band."""
        bounds = np.array([part * 2**64 // num_parts, (part + 1) * 2**64 // num_parts - 1], np.uint64)
        keys, texts = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for chunk_index in range(len(self._chunks)):
            for start, keys_of_block, order in self._blocks(chunk_index, bands.num_bands, band):
                low = np.searchsorted(keys_of_block, bounds[0])
                high = np.searchsorted(keys_of_block, bounds[1], 'right')
                keys.append(np.array(keys_of_block[low:high]))
                texts.append(start + order[low:high].astype(np.int64))
        return np.concatenate(keys), np.concatenate(texts)

    def _blocks(self, chunk_index: int, num_bands: int, band: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields (first text, sorted keys, texts of the keys from there) of each block of a chunk."""
        first, stop = self._starts[chunk_index : chunk_index + 2].tolist()
        if first == stop:
            return
        keys, order = self._map(chunk_index, 'keys', np.uint64), self._map(chunk_index, 'order', np.uint32)
        for start in range(first, stop, _TEXTS_PER_BLOCK):
            count = min(_TEXTS_PER_BLOCK, stop - start)
            offset = (start - first) * num_bands + band * count
            yield start, keys[offset : offset + count], order[offset : offset + count]

    def keys_of_chunk(self, chunk_index: int, bands: Bands) -> Iterator[tuple[int, int, int]]:
        """Yields (band, key, text) of all texts of a chunk."""
        for band in range(bands.num_bands):
            for start, keys, order in self._blocks(chunk_index, bands.num_bands, band):
                for key, text in zip(keys.tolist(), order.tolist(), strict=True):
                    yield band, key, start + text

    def words_of_chunk(self, chunk_index: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (text, sketch of its words) of all texts of a chunk."""
        first, stop = self._starts[chunk_index : chunk_index + 2].tolist()
        if first < stop:
            words = self._map(chunk_index, 'words', np.uint16).reshape(-1, NUM_VALUES)
            for text in range(first, stop):
                yield text, words[text - first]

    def words(self, texts: np.ndarray) -> np.ndarray:
        """Returns the sketches of the words of texts in ascending order, uint16 [N, K]."""
        found = [
            self._map(chunk_index, 'words', np.uint16).reshape(-1, NUM_VALUES)[within]
            for chunk_index, within in self._by_chunk(texts)
        ]
        return np.concatenate(found)

    def records(self, texts: np.ndarray) -> np.ndarray:
        """Returns the records of texts in ascending order, uint64 [N]; those of all chunks are counted together."""
        found = [
            self._map(chunk_index, 'index', np.uint64)[within] + np.uint64(self._records[chunk_index])
            for chunk_index, within in self._by_chunk(texts)
        ]
        return np.concatenate(found)

    def _by_chunk(self, texts: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (chunk, its texts, counted from its first) for each chunk with any of the texts."""
        bounds = np.searchsorted(texts, self._starts)
        for chunk_index in np.flatnonzero(np.diff(bounds)).tolist():
            within = texts[bounds[chunk_index] : bounds[chunk_index + 1]] - self._starts[chunk_index]
            yield chunk_index, within
