"""Encoded chunks -> the splits of a corpus: duplicates out, each document to its split, in the order of the source.

Nothing here depends on who encoded the chunks. Duplicates are found on disk: (digest, number) of every document goes
to one of many files by its digest, each small enough to be sorted in memory; of equal ones the lowest number stays.
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
from bert_jax.text.splits import SplitWriter

MIN_DOCUMENTS = 2  # documents that a split needs for next sentence prediction
_KEY: Any = np.dtype([('high', 'u8'), ('low', 'u8'), ('number', 'u8')])  # Any: ty takes it for float64
_BUCKET_BYTES = 1 << 26  # sorted at once
_RECORDS_AT_ONCE = 1 << 18
_TOKENS_AT_ONCE = 1 << 21


@dataclasses.dataclass(frozen=True)
class MixtureComponent:
    """The encoded chunks of a source: how often each document is taken, and the split they go to ('' is by hash)."""

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
) -> tuple[Counter, Counter]:
    """Writes the documents of all chunks to their splits.

    Of equal documents (and lines, if asked) only the first is taken. A document of a source of weight w is written
    floor(w) times and, when its hash is below the rest of w, once more; repetitions come after the whole source, for
    training only. A document goes to validation when the hash of its group is below the fraction: the same one however
    the source grows. But the groups of the first two documents are for training, and when fewer than two documents are
    left for validation, the lowest hashes go there.

    Args:
      scratch: an empty directory on the disk of the chunks; takes 24 bytes a document (and line).
      unk_id: of the tokenizer.

    Returns:
      what was dropped {reason: count}, and the numbers of `words` and `unknown` tokens written.

    Raises:
      BadInput: for a chunk that is not as it was written; it is removed.
    """
    for component in components:
        for chunk in component.chunks:
            _check(chunk)
    dropped, measured = Counter(), Counter()
    kept = _Flags(scratch / 'documents', _count(components, 'documents.bin', DOCUMENT))
    dropped['duplicate_document'] = _drop_repeated(kept, _document_keys(components), scratch)
    kept_lines = None
    if deduplicate_lines:
        kept_lines = _Flags(scratch / 'lines', _count(components, 'lines.bin', LINE))
        dropped['duplicate_line'] = _drop_repeated(kept_lines, _line_keys(components, kept), scratch)
        dropped['document_of_duplicate_lines'] = _drop_emptied(components, kept, kept_lines)
    is_validation = _split_by_hash(components, kept, validation_fraction)
    first_number = first_line = 0
    for component in components:
        for repetition in range(max(1, math.ceil(component.weight))):
            number, line = first_number, first_line
            for part in itertools.chain.from_iterable(map(_contents, component.chunks)):
                is_kept = kept.read(number, len(part.table))
                lines_kept = np.ones(len(part.lines), bool)
                if kept_lines is not None:
                    lines_kept = kept_lines.read(line, len(part.lines))
                if repetition == 0:
                    is_thinned = _copies(part.table, component.weight) == 0
                    dropped['thinned_by_weight'] += int((is_kept & is_thinned).sum())
                for name, chosen in _destinations(part.table, component, repetition, is_validation).items():
                    if (chosen & is_kept).any():
                        words, ids = part.write(writers[name], chosen & is_kept, lines_kept)
                        measured['words'] += words
                        measured['unknown'] += int((ids == unk_id).sum())
                number, line = number + len(part.table), line + len(part.lines)
        first_number, first_line = number, line
    return +dropped, measured


def _destinations(
    table: np.ndarray, component: MixtureComponent, repetition: int, is_validation: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """{split: which documents of a table are written to it}; repetitions are for training only."""
    is_copied = _copies(table, component.weight) > repetition
    if component.split:
        goes_to_validation = np.full(len(table), component.split == 'validation')
    else:
        goes_to_validation = is_validation(table)
    train = {'train': is_copied & ~goes_to_validation}
    return train if repetition else train | {'validation': is_copied & goes_to_validation}


def _check(chunk: pathlib.Path) -> None:
    record = read_json(chunk / 'chunk.json')
    if difference := first_mismatch(chunk, record['files']):
        (chunk / 'chunk.json').unlink()  # without it the chunk is not finished
        raise BadInput(str(chunk), f'{difference}', 'what was written', 'the same command encodes this chunk again')


# --- The parts of chunks, in bounded memory. ---


@dataclasses.dataclass(frozen=True)
class _Contents:
    """Some documents of a chunk with their text."""

    table: np.ndarray  # DOCUMENT
    lines: np.ndarray  # LINE
    sentences: np.ndarray  # lengths
    tokens: np.ndarray

    def write(self, writer: SplitWriter, documents: np.ndarray, lines: np.ndarray) -> tuple[int, np.ndarray]:
        """Writes the lines that two masks leave; returns the number of their words, and their ids."""
        lines = lines & np.repeat(documents, self.table['lines'])
        sentences = np.repeat(lines, self.lines['sentences'])
        ids = self.tokens if lines.all() else self.tokens[np.repeat(sentences, self.sentences)]
        starts = np.cumsum(self.table['lines'], dtype=np.int64) - self.table['lines']  # no document is without lines
        counts = np.add.reduceat(self.lines['sentences'] * lines, starts, dtype=np.int64)
        writer.add(ids, self.sentences[sentences], counts[counts > 0])
        return int((self.lines['words'] * lines).sum(dtype=np.int64)), ids


def _count(components: list[MixtureComponent], name: str, dtype: np.dtype) -> int:
    return (
        sum((chunk / name).stat().st_size for component in components for chunk in component.chunks) // dtype.itemsize
    )


def _tables(chunk: pathlib.Path) -> Iterator[np.ndarray]:
    with (chunk / 'documents.bin').open('rb') as file:
        while len(table := np.fromfile(file, DOCUMENT, _RECORDS_AT_ONCE)):
            yield table


def _contents(chunk: pathlib.Path) -> Iterator[_Contents]:
    dtype = np.dtype(read_json(chunk / 'chunk.json')['dtype'])
    with (
        (chunk / 'lines.bin').open('rb') as lines,
        (chunk / 'sentences.bin').open('rb') as sentences,
        (chunk / 'tokens.bin').open('rb') as tokens,
    ):
        for table in _tables(chunk):
            while len(table):
                fit = np.searchsorted(np.cumsum(table['tokens']), _TOKENS_AT_ONCE)
                some, table = np.split(table, [max(1, fit)])
                numbers = [int(some[name].sum(dtype=np.int64)) for name in ('lines', 'sentences', 'tokens')]
                yield _Contents(
                    some,
                    np.fromfile(lines, LINE, numbers[0]),
                    np.fromfile(sentences, np.uint32, numbers[1]),
                    np.fromfile(tokens, dtype, numbers[2]),
                )


def _lines_of(chunk: pathlib.Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    with (chunk / 'lines.bin').open('rb') as lines:
        for table in _tables(chunk):
            while len(table):
                fit = np.searchsorted(np.cumsum(table['lines'], dtype=np.int64), _RECORDS_AT_ONCE)
                some, table = np.split(table, [max(1, fit)])
                yield some, np.fromfile(lines, LINE, int(some['lines'].sum(dtype=np.int64)))


# --- Duplicates. ---


class _Flags:
    """A flag for each of many things, on disk; all are set to begin with."""

    def __init__(self, path: pathlib.Path, length: int):
        self._path = path
        self.length = length
        with path.open('wb') as file:
            for start in range(0, length, 1 << 24):
                file.write(b'\1' * min(1 << 24, length - start))

    def clear(self, numbers: np.ndarray) -> None:
        if len(numbers):
            flags = np.memmap(self._path, bool, 'r+')
            flags[numbers] = False
            flags.flush()

    def read(self, start: int, count: int) -> np.ndarray:
        return np.fromfile(self._path, bool, count, offset=start)


def _document_keys(components: list[MixtureComponent]) -> Iterator[np.ndarray]:
    start = 0
    for component in components:
        for chunk in component.chunks:
            for table in _tables(chunk):
                keys = np.empty(len(table), _KEY)
                keys['high'], keys['low'] = _halves(table).T
                keys['number'] = np.arange(start, start + len(table))
                start += len(table)
                yield keys


def _line_keys(components: list[MixtureComponent], kept: _Flags) -> Iterator[np.ndarray]:
    number = start = 0
    for component in components:
        for chunk in component.chunks:
            for table, lines in _lines_of(chunk):
                keys = np.zeros(len(lines), _KEY)
                keys['high'] = lines['digest']
                keys['number'] = np.arange(start, start + len(lines))
                flags = np.repeat(kept.read(number, len(table)), table['lines'])
                number, start = number + len(table), start + len(lines)
                yield keys[flags]


def _halves(table: np.ndarray) -> np.ndarray:
    """The two halves of each digest, uint64 [N, 2]."""
    return np.frombuffer(table['digest'].tobytes(), '<u8').reshape(-1, 2)


def _drop_repeated(flags: _Flags, keys: Iterable[np.ndarray], scratch: pathlib.Path) -> int:
    """Clears the flags of all but the first of equal keys; returns how many."""
    num_buckets = max(1, -(-flags.length * _KEY.itemsize // _BUCKET_BYTES))
    buckets = [scratch / f'keys-{number:05d}' for number in range(num_buckets)]
    for some in keys:
        bucket = (some['high'] % num_buckets).astype(np.int64)
        order = np.argsort(bucket, kind='stable')
        ends = np.cumsum(np.bincount(bucket, minlength=num_buckets))
        for number, records in enumerate(np.split(some[order], ends[:-1])):
            if len(records):
                with buckets[number].open('ab') as file:
                    file.write(records.tobytes())
    num_dropped = 0
    for path in buckets:
        if path.exists():
            some = np.fromfile(path, _KEY)
            some = some[np.lexsort((some['low'], some['high']))]  # stable: equal keys stay in the order of the source
            is_repeated = (some['high'][1:] == some['high'][:-1]) & (some['low'][1:] == some['low'][:-1])
            flags.clear(some['number'][1:][is_repeated])
            num_dropped += int(is_repeated.sum())
            path.unlink()
    return num_dropped


def _drop_emptied(components: list[MixtureComponent], kept: _Flags, kept_lines: _Flags) -> int:
    """Clears the flags of documents of whose lines none is left; returns how many."""
    number = start = num_dropped = 0
    for component in components:
        for chunk in component.chunks:
            for table, lines in _lines_of(chunk):
                flags = kept.read(number, len(table))
                left = np.logical_or.reduceat(
                    kept_lines.read(start, len(lines)), np.cumsum(table['lines'], dtype=np.int64) - table['lines']
                )
                emptied = np.flatnonzero(flags & ~left)
                kept.clear(number + emptied)
                num_dropped += len(emptied)
                number, start = number + len(table), start + len(lines)
    return num_dropped


# --- Weights and splits. ---


def _copies(table: np.ndarray, weight: float) -> np.ndarray:
    """How often each document of a source of this weight is taken."""
    whole = math.floor(weight)
    return whole + (_halves(table)[:, 1] < np.float64(weight - whole) * 2.0**64)


def _split_by_hash(
    components: list[MixtureComponent], kept: _Flags, fraction: float
) -> Callable[[np.ndarray], np.ndarray]:
    """A function of a table: whether each document goes to validation."""
    train, lowest, num_below, number = [], np.empty(0, np.uint64), 0, 0
    limit = np.uint64(int(fraction * 2**64))
    for component in components:
        for chunk in component.chunks:
            for table in _tables(chunk):
                flags = kept.read(number, len(table)) & (_copies(table, component.weight) > 0)
                number += len(table)
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
