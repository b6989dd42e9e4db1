"""TFRecord files as rows that can be read in any order, by an index that is built once.

    CACHE/bert_jax/records/KEY/offsets.npy     int64 [N + 1], where each record of one file starts; the last one closes
    CACHE/bert_jax/records/KEY/hashes.npy      uint64 [N], of each record's tokens before they were masked
    CACHE/bert_jax/records/KEY/facts.json      `FileSummary`
    CACHE/bert_jax/records/KEY/checksums.json  of these files

CACHE is $XDG_CACHE_HOME or ~/.cache: records may lie where nothing can be written, and runs share them. KEY tells path,
size and time of the last change of the file: a file that changes is indexed again. `N` records, `B` rows.
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
from bert_jax.text.chunks import find_files

_INDEX_VERSION = 2
_RECORDS_AT_ONCE = 128
_WORTH_PROCESSES = 1 << 26  # bytes; less is indexed in this process


@dataclasses.dataclass(frozen=True)
class FileSummary:
    """What all records of a file have in common.

    Attributes:
      sequence_length, num_predictions: of the longest lists, padding included.
      largest_id: of all tokens; largest_at: the offset of its record.
      unlabeled_at: the offset of a record without next_sentence_labels, -1 when all have them.
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
    """One indexed file; arrays are memory-mapped. `offsets` and `hashes` are as above."""

    path: str
    summary: FileSummary
    offsets: np.ndarray
    hashes: np.ndarray

    def read(self, records: list[int]) -> Iterator[tuple[int, bytes]]:
        """(offset, data) of some records, by number.

        Raises:
          BadInput: for one that is not what it was when the file was indexed.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            for record in records:
                start, stop = self.offsets[record : record + 2].tolist()
                yield start, unframe(os.pread(descriptor, stop - start, start), stop - start, self.path, start)
        finally:
            os.close(descriptor)


class RecordSet:
    """The records of some files, or some of them, as rows."""

    def __init__(self, files: list[RecordFile], chosen: list[np.ndarray] | None = None):
        """Args: chosen, of each file, the numbers of the records to take, ascending; all without it."""
        self.files, self._chosen = files, chosen
        counts = [len(file.hashes) for file in files] if chosen is None else [len(numbers) for numbers in chosen]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def sequence_length(self) -> int:
        """L, inferred."""
        return max(file.summary.sequence_length for file in self.files)

    @property
    def num_predictions(self) -> int:
        """P as written, inferred."""
        return max(file.summary.num_predictions for file in self.files)

    @property
    def digest(self) -> str:
        """A hash of all files' content in their order; not of names or times."""
        return json_digest([file.summary.digest for file in self.files])

    def split(self, fraction: float) -> tuple['RecordSet', 'RecordSet']:
        """(rest, fraction), by the hash of each record's tokens: copies with other masks are on the same side."""
        held = [file.hashes < np.uint64(fraction * 2**64) for file in self.files]
        parts = [[np.flatnonzero(mask).astype(np.uint32) for mask in masks] for masks in ([~h for h in held], held)]
        return RecordSet(self.files, parts[0]), RecordSet(self.files, parts[1])

    def read(self, rows: np.ndarray) -> tuple[Examples, list[tuple[str, int]]]:
        """The records of some rows, [B] int64, and the (file, offset) of each.

        Raises:
          BadInput: names file and offset of one that is damaged.
        """
        files = np.searchsorted(self._starts, rows, side='right') - 1
        found: list[bytes] = [b''] * len(rows)
        locations = [('', 0)] * len(rows)
        for number in np.unique(files).tolist():
            file, slots = self.files[number], np.flatnonzero(files == number)
            records = rows[slots] - self._starts[number]
            if self._chosen is not None:
                records = self._chosen[number][records]
            for slot, (offset, data) in zip(slots.tolist(), file.read(records.tolist()), strict=True):
                found[slot], locations[slot] = data, (file.path, offset)
        return decode(found, locations), locations


def open_records(source: str, *, progress: bool = True) -> RecordSet:
    """Opens the files of `tfrecord:GLOB`, sorted by name; indexes those that have no index yet.

    Raises:
      BadInput: when there is no file, or names file and offset of the first record that is damaged.
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
    """Indexes files, in several processes when there is much to do; each index stays once it is whole."""
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
    directory = _directory_of(path)  # of the file as it is before it is read
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
    """Reads a file once, every record checked: (summary, offsets [N + 1], hashes [N])."""
    summary, digest, stop = FileSummary(), hashlib.sha256(), 0
    offsets, hashes = array('q'), array('Q')
    with open(path, 'rb') as file:
        frames = read_frames(file, path)
        while some := list(itertools.islice(frames, _RECORDS_AT_ONCE)):
            examples = decode([data for _, data in some], [(path, offset) for offset, _ in some])
            for (offset, data), ids, length in zip(some, examples.original_ids(), examples.lengths, strict=True):
                digest.update(hashlib.sha256(data).digest())
                offsets.append(offset)
                tokens = ids[:length].astype('<i4').tobytes()
                hashes.append(int.from_bytes(hashlib.blake2b(tokens, digest_size=8).digest(), 'little'))
                stop = offset + len(data) + FRAME_BYTES
            summary = _widened(summary, examples, [offset for offset, _ in some])
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
