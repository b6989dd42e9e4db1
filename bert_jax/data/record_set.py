"""Reads TFRecord files as rows in any order, with an index that is built once.

    CACHE/bert_jax/records/KEY/offsets.npy     int64 [N + 1], the start of each record of one file, then the end
    CACHE/bert_jax/records/KEY/hashes.npy      uint64 [N], the hash of each record's tokens before masking
    CACHE/bert_jax/records/KEY/facts.json      `FileSummary`
    CACHE/bert_jax/records/KEY/checksums.json  of these files

CACHE is $XDG_CACHE_HOME or ~/.cache, because records may be read-only and runs share them. KEY depends on the path,
size and modification time of the file, so a changed file is indexed again. `N` records, `B` rows.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
from array import array
from collections.abc import Iterator

import numpy as np

from bert_jax import activity
from bert_jax.console import say
from bert_jax.data.tfrecords import FRAME_BYTES, Examples, decode, read_frames, unframe
from bert_jax.errors import BadInput
from bert_jax.files import is_local, json_digest, map_array, new_directory
from bert_jax.json_files import read_json
from bert_jax.runtime.caches import cache_directory
from bert_jax.text import checksums
from bert_jax.text.sources.files import find_files

_INDEX_VERSION = 2
_RECORDS_AT_ONCE = 128
_WORTH_PROCESSES = 1 << 26  # bytes from which on several processes index


@dataclasses.dataclass(frozen=True)
class FileSummary:
    """A summary of all records of a file.

    Attributes:
      sequence_length, num_predictions: the lengths of the longest lists, padding included.
      largest_id: of all tokens; largest_at: the offset of its record.
      unlabeled_at: the offset of a record without next_sentence_labels, or -1 if all have them.
      digest: SHA-256 over all records.
    """

    sequence_length: int = 0
    num_predictions: int = 0
    largest_id: int = -1
    largest_at: int = 0
    unlabeled_at: int = -1
    digest: str = ''


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """An indexed file with memory-mapped `offsets` and `hashes`; see above."""

    path: str
    summary: FileSummary
    offsets: np.ndarray
    hashes: np.ndarray

    def read(self, records: list[int]) -> Iterator[tuple[int, bytes]]:
        """Yields (offset, data) of the records with these indices.

        Raises:
          BadInput: if a record has changed since the file was indexed.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            for record in records:
                start, stop = self.offsets[record : record + 2].tolist()
                yield start, unframe(os.pread(descriptor, stop - start, start), stop - start, self.path, start)
        finally:
            os.close(descriptor)


class RecordSet:
    """The records of several files, or a selection of them, as rows."""

    def __init__(self, files: list[RecordFile], chosen: list[np.ndarray] | None = None):
        """Args: chosen, per file, the ascending indices of the records to take; by default all."""
        self.files, self._chosen = files, chosen
        counts = [len(file.hashes) for file in files] if chosen is None else [len(indices) for indices in chosen]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def sequence_length(self) -> int:
        """L, inferred from the records."""
        return max(file.summary.sequence_length for file in self.files)

    @property
    def num_predictions(self) -> int:
        """P as written, inferred from the records."""
        return max(file.summary.num_predictions for file in self.files)

    @property
    def digest(self) -> str:
        """A hash of the content of all files in order, independent of names and times."""
        return json_digest([file.summary.digest for file in self.files])

    def split(self, fraction: float) -> tuple['RecordSet', 'RecordSet']:
        """Splits into (remainder, fraction) by a hash of each record's tokens, so masked copies stay together."""
        held = [file.hashes < np.uint64(fraction * 2**64) for file in self.files]
        parts = [[np.flatnonzero(mask).astype(np.uint32) for mask in masks] for masks in ([~h for h in held], held)]
        return RecordSet(self.files, parts[0]), RecordSet(self.files, parts[1])

    def read(self, rows: np.ndarray) -> tuple[Examples, list[tuple[str, int]]]:
        """Reads rows, [B] int64, and returns the examples and the (file, offset) of each.

        Raises:
          BadInput: if a record is damaged; it gives the file and the offset.
        """
        files = np.searchsorted(self._starts, rows, side='right') - 1
        records: list[bytes] = [b''] * len(rows)
        locations = [('', 0)] * len(rows)
        for file_index in np.unique(files).tolist():
            file, slots = self.files[file_index], np.flatnonzero(files == file_index)
            indices = rows[slots] - self._starts[file_index]
            if self._chosen is not None:
                indices = self._chosen[file_index][indices]
            for slot, (offset, data) in zip(slots.tolist(), file.read(indices.tolist()), strict=True):
                records[slot], locations[slot] = data, (file.path, offset)
        return decode(records, locations), locations


def open_records(source: str, *, progress: bool = True) -> RecordSet:
    """Opens the files of `tfrecord:GLOB`, sorted by name, and builds missing indexes.

    Raises:
      BadInput: if no file matches, or a record is damaged; it gives the file and the offset.
    """
    pattern = source.partition(':')[2]
    if not is_local(pattern):
        raise BadInput(
            f'data.source={source}',
            'is not on a disk',
            'files that can be read at random',
            'copy the records to a disk',
        )
    paths = [str(path) for path in find_files(pattern)]
    if not paths:
        raise BadInput(f'data.source={source}', f'no file matches {pattern}', 'at least one file')
    missing = [path for path in paths if not _directory_of(path).is_dir()]
    if missing:
        _build(missing, progress)
    files = [_load(path) for path in paths]
    if not any(len(file.hashes) for file in files):
        raise BadInput(f'data.source={source}', 'holds no record', 'at least one record')
    return RecordSet(files)


# --- The index. ---


def _directory_of(path: str) -> pathlib.Path:
    try:
        cache = cache_directory()
    except OSError as error:
        found = f'cannot be indexed: {error.strerror}'
        raise BadInput(path, found, 'a place for the index', 'export XDG_CACHE_HOME=DIR') from None
    status = os.stat(path)
    key = json_digest([_INDEX_VERSION, os.path.realpath(path), status.st_size, status.st_mtime_ns])
    return cache / 'bert_jax' / 'records' / key


def _load(path: str) -> RecordFile:
    directory = _directory_of(path)
    try:
        if damage := checksums.find_damage(directory):
            raise ValueError(damage)
        paths = (directory / f'{name}.npy' for name in ('offsets', 'hashes'))
        offsets, hashes = map(map_array, paths)
        summary = FileSummary(**read_json(directory / 'facts.json'))
    except (OSError, ValueError, TypeError) as error:
        found = f'cannot be read ({type(error).__name__}: {error})'
        raise BadInput(str(directory), found, f'the index of {path}', f'rm -r {directory}') from None
    return RecordFile(path, summary, offsets, hashes)


def _build(paths: list[str], progress: bool) -> None:
    """Indexes files, in several processes if they are large; every finished index is kept."""
    sizes = [os.path.getsize(path) for path in paths]
    total, done = sum(sizes), 0

    def describe() -> str:
        return f'indexing: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB'

    if progress:
        say(f'indexing records, once: {total / 1e6:,.2f} MB in {len(paths):,} file{"s" * (len(paths) > 1)} …')
    with contextlib.ExitStack() as stack:
        indexed = map(_index, paths)
        if len(paths) > 1 and total >= _WORTH_PROCESSES:
            workers = min(len(paths), os.cpu_count() or 1)
            spawn = multiprocessing.get_context('spawn')
            pool = stack.enter_context(concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn))
            indexed = pool.map(_index, paths)
        shape = {'desc': 'indexing', 'total': total, 'unit': 'B', 'unit_scale': True}
        bar = stack.enter_context(activity.progress(describe, shown=progress, **shape))
        for size, _ in zip(sizes, indexed, strict=True):
            bar.update(size)
            done += size


def _index(path: str) -> None:
    directory = _directory_of(path)  # before reading, in case the file changes meanwhile
    summary, offsets, hashes = _scan(path)
    try:
        with new_directory(directory) as temporary:
            np.save(temporary / 'offsets.npy', offsets)
            np.save(temporary / 'hashes.npy', hashes)
            (temporary / 'facts.json').write_text(json.dumps(dataclasses.asdict(summary)) + '\n')
            checksums.write_checksums(temporary)
    except OSError as error:
        found = f'cannot be written ({error.strerror or error})'
        raise BadInput(str(directory.parent), found, 'a place for the index', 'export XDG_CACHE_HOME=DIR') from None


def _scan(path: str) -> tuple[FileSummary, np.ndarray, np.ndarray]:
    """Reads a file once and checks every record; returns (summary, offsets [N + 1], hashes [N])."""
    summary, digest, stop = FileSummary(), hashlib.sha256(), 0
    offsets, hashes = array('q'), array('Q')
    with open(path, 'rb') as file:
        frames = read_frames(file, path)
        while batch := list(itertools.islice(frames, _RECORDS_AT_ONCE)):
            examples = decode([data for _, data in batch], [(path, offset) for offset, _ in batch])
            for (offset, data), ids, length in zip(batch, examples.original_ids(), examples.lengths, strict=True):
                digest.update(hashlib.sha256(data).digest())
                offsets.append(offset)
                tokens = ids[:length].astype('<i4').tobytes()
                hashes.append(int.from_bytes(hashlib.blake2b(tokens, digest_size=8).digest(), 'little'))
                stop = offset + len(data) + FRAME_BYTES
            summary = _widened(summary, examples, [offset for offset, _ in batch])
    offsets.append(stop)
    return dataclasses.replace(summary, digest=digest.hexdigest()), np.array(offsets), np.array(hashes)


def _widened(summary: FileSummary, examples: Examples, offsets: list[int]) -> FileSummary:
    largest = np.maximum(examples.input_ids.max(axis=1), examples.masked_lm_ids.max(axis=1, initial=0))
    unlabeled = np.flatnonzero(examples.next_sentence_labels < 0)
    row = int(largest.argmax())
    is_larger = largest[row] > summary.largest_id
    return FileSummary(
        sequence_length=max(summary.sequence_length, examples.input_ids.shape[1]),
        num_predictions=max(summary.num_predictions, examples.masked_lm_ids.shape[1]),
        largest_id=int(largest[row]) if is_larger else summary.largest_id,
        largest_at=offsets[row] if is_larger else summary.largest_at,
        unlabeled_at=offsets[unlabeled[0]] if summary.unlabeled_at < 0 and len(unlabeled) else summary.unlabeled_at,
    )
