"""Merges encoded chunks into the splits of a corpus: drops duplicates and writes documents in the order of the source.

The result does not depend on which process encoded which chunk. Duplicates are found on disk: (digest, index) of every
document goes to one of many bucket files, chosen by the digest. Each bucket is small enough to be sorted in memory; of
equal documents the one with the lowest index stays.
"""

import dataclasses
import itertools
import math
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from bert_jax.errors import BadInput
from bert_jax.json_files import read_json
from bert_jax.text.checksums import first_mismatch
from bert_jax.text.encode import DOCUMENT, LINE
from bert_jax.text.near_duplicates.clusters import Clusters
from bert_jax.text.splits import SplitWriter

MIN_DOCUMENTS = 2  # that a split needs for next-sentence prediction
_KEY: Any = np.dtype([('high', 'u8'), ('low', 'u8'), ('index', 'u8')])  # Any: ty takes it for float64
_MAX_BUCKET_BYTES = 1 << 26  # sorted at once
_RECORDS_AT_ONCE = 1 << 18
_TOKENS_AT_ONCE = 1 << 21
_Selections = Callable[[], Iterator[tuple[int, np.ndarray, np.ndarray]]]  # see `_selections`


@dataclasses.dataclass(frozen=True)
class MixtureComponent:
    """One source of a mixture: its encoded chunks, its weight, and the split of its documents ('': chosen by hash)."""

    chunks: list[pathlib.Path]
    weight: float
    split: str


def merge(
    components: list[MixtureComponent],
    scratch: pathlib.Path,
    writers: dict[str, SplitWriter],
    unk_id: int,
    *,
    validation_fraction: float,
    deduplicate_lines: bool,
    links: dict[str, list[pathlib.Path]],
) -> tuple[Counter, Counter, list[int]]:
    """Writes the documents of all chunks to their splits.

    Of equal documents (and lines, with `deduplicate_lines`) only the first is used. Of near copies, only the first that
    is held out is used; if none is, the first. A document of a source of weight w is written floor(w) times, and once
    more if its hash is below the fractional part of w. Repetitions follow the whole source and are for training only.

    A document goes to validation if the hash of its group is below `validation_fraction`, so its split stays the same
    as the source grows. The groups of the first two documents are always for training; if fewer than two documents
    remain for validation, those with the lowest hashes go there.

    Args:
      scratch: an empty directory on the disk of the chunks; needs 24 bytes per document (and line).
      unk_id: of the tokenizer.
      links: {table: files of links between near copies}; for 'documents', and 'lines' if those are searched, too.

    Returns:
      {reason: count} of what was dropped; the counts of `words` and `unknown` tokens written; the number of training
      documents after each component.

    Raises:
      BadInput: for a chunk that has changed since it was written; it is removed.
    """
    for component in components:
        for chunk in component.chunks:
            _verify_chunk(chunk)
    dropped, measured = Counter(), Counter()
    kept, kept_lines = _drop_duplicates(components, scratch, deduplicate_lines, dropped)
    if 'documents' in links:
        selections = _selections(components, kept, validation_fraction)
        clusters = Clusters(scratch / 'near-documents', kept.length, links['documents'])
        dropped['near_duplicate_document'] = _drop_near_copies(kept, clusters, selections)
    if 'lines' in links:
        kept_lines = kept_lines or _line_flags(components, scratch)
        selections = _selections(components, kept, validation_fraction, kept_lines)
        clusters = Clusters(scratch / 'near-lines', kept_lines.length, links['lines'])
        dropped['near_duplicate_paragraph'] = _drop_near_copies(kept_lines, clusters, selections)
        dropped['document_of_near_duplicates'] = _drop_emptied(components, kept, kept_lines)
    is_validation = _split_by_hash(components, kept, validation_fraction)
    first_document = first_line = 0
    documents_after: list[int] = []
    for component in components:
        for repetition in range(max(1, math.ceil(component.weight))):
            document, line = first_document, first_line
            for block in itertools.chain.from_iterable(map(_read_blocks, component.chunks)):
                is_kept = kept.read(document, len(block.table))
                lines_kept = np.ones(len(block.lines), bool)
                if kept_lines is not None:
                    lines_kept = kept_lines.read(line, len(block.lines))
                if repetition == 0:
                    is_thinned = _copies(block.table, component.weight) == 0
                    dropped['thinned_by_weight'] += int((is_kept & is_thinned).sum())
                for name, chosen in _destinations(block.table, component, repetition, is_validation).items():
                    if (chosen & is_kept).any():
                        words, ids = block.write(writers[name], chosen & is_kept, lines_kept)
                        measured['words'] += words
                        measured['unknown'] += int((ids == unk_id).sum())
                document, line = document + len(block.table), line + len(block.lines)
        first_document, first_line = document, line
        documents_after.append(writers['train'].counts['documents'])
    return +dropped, measured, documents_after


def _destinations(
    table: np.ndarray, component: MixtureComponent, repetition: int, is_validation: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns {split: mask of the documents of a table that go to it}; repetitions are for training only."""
    is_copied = _copies(table, component.weight) > repetition
    if component.split:
        goes_to_validation = np.full(len(table), component.split == 'validation')
    else:
        goes_to_validation = is_validation(table)
    train = {'train': is_copied & ~goes_to_validation}
    return train if repetition else train | {'validation': is_copied & goes_to_validation}


def _verify_chunk(chunk: pathlib.Path) -> None:
    record = read_json(chunk / 'chunk.json')
    if difference := first_mismatch(chunk, record['files']):
        (chunk / 'chunk.json').unlink()  # so that the chunk counts as unfinished
        raise BadInput(str(chunk), difference, 'an intact chunk', 'run the same command; it encodes this chunk again')


# --- Reading chunks in bounded memory. ---


@dataclasses.dataclass(frozen=True)
class _Block:
    """Consecutive documents of a chunk with their tokens."""

    table: np.ndarray  # DOCUMENT
    lines: np.ndarray  # LINE
    sentences: np.ndarray  # lengths
    tokens: np.ndarray

    def write(self, writer: SplitWriter, documents: np.ndarray, lines: np.ndarray) -> tuple[int, np.ndarray]:
        """Writes the lines that both masks select; returns (number of words, ids) of them."""
        lines = lines & np.repeat(documents, self.table['lines'])
        sentences = np.repeat(lines, self.lines['sentences'])
        ids = self.tokens if lines.all() else self.tokens[np.repeat(sentences, self.sentences)]
        starts = np.cumsum(self.table['lines'], dtype=np.int64) - self.table['lines']  # every document has lines
        counts = np.add.reduceat(self.lines['sentences'] * lines, starts, dtype=np.int64)
        writer.add(ids, self.sentences[sentences], counts[counts > 0])
        return int((self.lines['words'] * lines).sum(dtype=np.int64)), ids


def _count_records(components: list[MixtureComponent], name: str, dtype: np.dtype) -> int:
    return (
        sum((chunk / name).stat().st_size for component in components for chunk in component.chunks) // dtype.itemsize
    )


def _read_tables(chunk: pathlib.Path) -> Iterator[np.ndarray]:
    with (chunk / 'documents.bin').open('rb') as file:
        while len(table := np.fromfile(file, DOCUMENT, _RECORDS_AT_ONCE)):
            yield table


def _read_blocks(chunk: pathlib.Path) -> Iterator[_Block]:
    dtype = np.dtype(read_json(chunk / 'chunk.json')['dtype'])
    with (
        (chunk / 'lines.bin').open('rb') as lines,
        (chunk / 'sentences.bin').open('rb') as sentences,
        (chunk / 'tokens.bin').open('rb') as tokens,
    ):
        for table in _read_tables(chunk):
            while len(table):
                fit = np.searchsorted(np.cumsum(table['tokens']), _TOKENS_AT_ONCE)
                block, table = np.split(table, [max(1, fit)])
                counts = [int(block[name].sum(dtype=np.int64)) for name in ('lines', 'sentences', 'tokens')]
                yield _Block(
                    block,
                    np.fromfile(lines, LINE, counts[0]),
                    np.fromfile(sentences, np.uint32, counts[1]),
                    np.fromfile(tokens, dtype, counts[2]),
                )


def _read_tables_by_lines(chunk: pathlib.Path) -> Iterator[np.ndarray]:
    """Yields tables whose documents together have a bounded number of lines."""
    for table in _read_tables(chunk):
        while len(table):
            fit = np.searchsorted(np.cumsum(table['lines'], dtype=np.int64), _RECORDS_AT_ONCE)
            block, table = np.split(table, [max(1, fit)])
            yield block


def _read_lines(chunk: pathlib.Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    with (chunk / 'lines.bin').open('rb') as lines:
        for block in _read_tables_by_lines(chunk):
            yield block, np.fromfile(lines, LINE, int(block['lines'].sum(dtype=np.int64)))


# --- Duplicates. ---


class _Flags:
    """A boolean array on disk, initially all True."""

    def __init__(self, path: pathlib.Path, length: int):
        self._path = path
        self.length = length
        with path.open('wb') as file:
            for start in range(0, length, 1 << 24):
                file.write(b'\1' * min(1 << 24, length - start))

    def clear(self, indices: np.ndarray) -> None:
        if len(indices):
            flags = np.memmap(self._path, bool, 'r+')
            flags[indices] = False
            flags.flush()

    def read(self, start: int, count: int) -> np.ndarray:
        return np.fromfile(self._path, bool, count, offset=start)


def _drop_duplicates(
    components: list[MixtureComponent], scratch: pathlib.Path, deduplicate_lines: bool, dropped: Counter
) -> tuple[_Flags, _Flags | None]:
    """Returns which documents and, with `deduplicate_lines`, which lines stay; counts the others in `dropped`."""
    kept = _Flags(scratch / 'documents', _count_records(components, 'documents.bin', DOCUMENT))
    dropped['duplicate_document'] = _drop_repeated(kept, _document_keys(components), scratch)
    if not deduplicate_lines:
        return kept, None
    kept_lines = _line_flags(components, scratch)
    dropped['duplicate_line'] = _drop_repeated(kept_lines, _line_keys(components, kept), scratch)
    dropped['document_of_duplicate_lines'] = _drop_emptied(components, kept, kept_lines)
    return kept, kept_lines


def _line_flags(components: list[MixtureComponent], scratch: pathlib.Path) -> _Flags:
    return _Flags(scratch / 'lines', _count_records(components, 'lines.bin', LINE))


def _document_keys(components: list[MixtureComponent]) -> Iterator[np.ndarray]:
    start = 0
    for component in components:
        for chunk in component.chunks:
            for table in _read_tables(chunk):
                keys = np.empty(len(table), _KEY)
                keys['high'], keys['low'] = _digest_halves(table).T
                keys['index'] = np.arange(start, start + len(table))
                start += len(table)
                yield keys


def _line_keys(components: list[MixtureComponent], kept: _Flags) -> Iterator[np.ndarray]:
    document = start = 0
    for component in components:
        for chunk in component.chunks:
            for table, lines in _read_lines(chunk):
                keys = np.zeros(len(lines), _KEY)
                keys['high'] = lines['digest']
                keys['index'] = np.arange(start, start + len(lines))
                flags = np.repeat(kept.read(document, len(table)), table['lines'])
                document, start = document + len(table), start + len(lines)
                yield keys[flags]


def _digest_halves(table: np.ndarray) -> np.ndarray:
    """Returns the two halves of each digest, uint64 [N, 2]."""
    return np.frombuffer(table['digest'].tobytes(), '<u8').reshape(-1, 2)


def _drop_repeated(flags: _Flags, keys: Iterable[np.ndarray], scratch: pathlib.Path) -> int:
    """Clears the flags of all but the first of equal keys; returns their number."""
    num_buckets = max(1, -(-flags.length * _KEY.itemsize // _MAX_BUCKET_BYTES))
    buckets = [scratch / f'keys-{index:05d}' for index in range(num_buckets)]
    for block in keys:
        bucket_of_key = (block['high'] % num_buckets).astype(np.int64)
        order = np.argsort(bucket_of_key, kind='stable')
        ends = np.cumsum(np.bincount(bucket_of_key, minlength=num_buckets))
        for path, records in zip(buckets, np.split(block[order], ends[:-1]), strict=True):
            if len(records):
                with path.open('ab') as file:
                    file.write(records.tobytes())
    num_dropped = 0
    for path in buckets:
        if path.exists():
            bucket = np.fromfile(path, _KEY)
            bucket = bucket[np.lexsort((bucket['low'], bucket['high']))]  # stable: equal keys keep their order
            is_repeated = (bucket['high'][1:] == bucket['high'][:-1]) & (bucket['low'][1:] == bucket['low'][:-1])
            flags.clear(bucket['index'][1:][is_repeated])
            num_dropped += int(is_repeated.sum())
            path.unlink()
    return num_dropped


def _drop_emptied(components: list[MixtureComponent], kept: _Flags, kept_lines: _Flags) -> int:
    """Clears the flags of documents left with no lines; returns their number."""
    document = start = num_dropped = 0
    for component in components:
        for chunk in component.chunks:
            for table, lines in _read_lines(chunk):
                flags = kept.read(document, len(table))
                has_lines = np.logical_or.reduceat(
                    kept_lines.read(start, len(lines)), np.cumsum(table['lines'], dtype=np.int64) - table['lines']
                )
                emptied = np.flatnonzero(flags & ~has_lines)
                kept.clear(document + emptied)
                num_dropped += len(emptied)
                document, start = document + len(table), start + len(lines)
    return num_dropped


def _drop_near_copies(flags: _Flags, clusters: Clusters, selections: _Selections) -> int:
    """Clears the flags of all used records of each cluster but one; returns their number."""
    for start, is_used, is_held_out in selections():
        clusters.add(start, is_used, is_held_out)
    num_dropped = 0
    for start, is_used, is_held_out in selections():
        repeated = np.flatnonzero(clusters.repeated(start, is_used, is_held_out))
        flags.clear(start + repeated)
        num_dropped += len(repeated)
    return num_dropped


def _selections(
    components: list[MixtureComponent], kept: _Flags, validation_fraction: float, kept_lines: _Flags | None = None
) -> _Selections:
    """Returns a function that yields, block by block, (first document, which are used, which of those are held out).

    With `kept_lines`, the same of lines.
    """
    is_validation = _split_by_hash(components, kept, validation_fraction)

    def select() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        document = line = 0
        for component in components:
            for table in itertools.chain.from_iterable(map(_read_tables_by_lines, component.chunks)):
                is_used = kept.read(document, len(table)) & (_copies(table, component.weight) > 0)
                is_held_out = _destinations(table, component, 0, is_validation)['validation']
                if kept_lines is None:
                    yield document, is_used, is_held_out
                else:
                    is_used, is_held_out = (np.repeat(mask, table['lines']) for mask in (is_used, is_held_out))
                    yield line, is_used & kept_lines.read(line, len(is_used)), is_held_out
                document, line = document + len(table), line + int(table['lines'].sum(dtype=np.int64))

    return select


# --- Weights and splits. ---


def _copies(table: np.ndarray, weight: float) -> np.ndarray:
    """Returns how often each document of a source of this weight is used."""
    num_whole = math.floor(weight)
    return num_whole + (_digest_halves(table)[:, 1] < np.float64(weight - num_whole) * 2.0**64)


def _split_by_hash(
    components: list[MixtureComponent], kept: _Flags, fraction: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function of a table that says which documents go to validation."""
    train, lowest, num_below, document = [], np.empty(0, np.uint64), 0, 0
    limit = np.uint64(int(fraction * 2**64))
    for component in components:
        for chunk in component.chunks:
            for table in _read_tables(chunk):
                flags = kept.read(document, len(table)) & (_copies(table, component.weight) > 0)
                document += len(table)
                if component.split or not fraction:
                    continue
                uniform = table['uniform'][flags]
                train += uniform[: MIN_DOCUMENTS - len(train)].tolist()
                others = uniform[~np.isin(uniform, np.array(train, np.uint64))]
                num_below += int((others < limit).sum())
                lowest = np.sort(np.concatenate([lowest, others]))[:MIN_DOCUMENTS]
    held_for_training = np.array(train, np.uint64)
    last = limit - np.uint64(1) if limit else None
    if num_below < MIN_DOCUMENTS and fraction:
        last = lowest[-1] if len(lowest) else None

    def is_validation(table: np.ndarray) -> np.ndarray:
        if last is None:
            return np.zeros(len(table), bool)
        return (table['uniform'] <= last) & ~np.isin(table['uniform'], held_for_training)

    return is_validation
