"""Which windows of sentences there are, and which share a row: planned once per (corpus, data config).

A plan is made in memory that does not grow with the corpus, documents after documents, straight into files, and is
memory-mapped from there.

`N` windows, `R` rows, `S` segments (sentences, the overlong ones cut), `D` documents.
"""

import dataclasses
import errno
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

import numpy as np

from bert_jax import config
from bert_jax.console import say_anywhere
from bert_jax.data import random
from bert_jax.data.masking import num_masked
from bert_jax.data.packing import WINDOWS_IN_BLOCK, pack
from bert_jax.errors import BadInput
from bert_jax.files import json_digest, map_array, new_directory
from bert_jax.text import checksums
from bert_jax.text.splits import NpyWriter, Split

_PLAN_VERSION = 4
_SHORT_KEY = 0x5EED  # planned lengths belong to the corpus and the data config, not to the seed of a run
_SENTENCES_AT_ONCE = 1 << 18  # of whole documents, planned together
_SAMPLED_BLOCKS = 16  # of `_SENTENCES_AT_ONCE` each


@dataclasses.dataclass(frozen=True)
class WindowIndex:
    """The windows of one epoch, memory-mapped.

    segments: [S+1] int64, token position where each segment starts; the last one closes.
    documents: [D+1] int64, segment where each document starts; documents of one token are left out of windows.
    document_of: [N] int64, the document of each window.
    first_segment: [N] int64; num_segments: [N] int32, the segments of each window.
    start: [N] int64, first token of each window.  length: [N] int32, tokens in it.
    target: [N] int32, tokens that its example holds, special tokens not counted.
    rows: [R+1] int64, the first window of each row; the last one closes. Without packing a row is a window.
    by_length: [D] int64, documents from the longest to the shortest, with `nsp`.
    num_holding: [limit+1] int64, how many documents hold at least so many tokens, with `nsp`.
    by_bucket: [R] int64, rows from the bucket of the shortest to that of the longest, with `bucket_lengths`.
    bucket_sizes: [K] int64, how many rows each of the K `config.row_lengths` has, with `bucket_lengths`.
    """

    segments: np.ndarray
    documents: np.ndarray
    document_of: np.ndarray
    first_segment: np.ndarray
    num_segments: np.ndarray
    start: np.ndarray
    length: np.ndarray
    target: np.ndarray
    rows: np.ndarray
    by_length: np.ndarray
    num_holding: np.ndarray
    by_bucket: np.ndarray
    bucket_sizes: np.ndarray

    @property
    def num_windows(self) -> int:
        return len(self.start)

    @property
    def num_rows(self) -> int:
        return len(self.rows) - 1


_INT32 = ('num_segments', 'length', 'target')
_WINDOW_FIELDS = ('document_of', 'first_segment', 'num_segments', 'start', 'length', 'target')
_APPENDED = ('segments', 'documents', *_WINDOW_FIELDS, 'rows')


def num_special_tokens(data: config.Data) -> int:
    """[CLS] A [SEP] B [SEP], or [CLS] A [SEP]."""
    return 2 if data.pairing == 'none' else 3


def max_tokens(data: config.Data) -> int:
    """Tokens in a sequence that fills a row, without its special tokens."""
    return data.sequence_length - num_special_tokens(data)


# --- A plan in its directory. ---


def load_windows(corpus_directory: str, split_name: str, split: Split, data: config.Data) -> WindowIndex:
    """The plan of a split, memory-mapped from beside its corpus; made there at the first use.

    Any number of processes may find none and make it: they make the same, and the first to finish publishes it. If the
    corpus is read-only, each makes its own in the directory for temporary files.

    Raises:
      BadInput: when the split has too few documents for what `data.pairing` asks, or no disk has room for the plan.
    """
    if data.pairing == 'nsp' and len(split.documents) - 1 < 2:
        raise BadInput(
            f'{corpus_directory} ({split_name})',
            f'holds {len(split.documents) - 1} document(s): a random next sentence needs another document',
            'at least 2 documents; a blank line separates documents in a text file',
            '--config.data.pairing=sop or --config.data.pairing=none',
        )
    settings = [_PLAN_VERSION, split_name, data.sequence_length, data.short_sequence_probability, data.pairing]
    if data.packing:
        packing = [data.masking.rate, config.num_predictions(data), config.max_sequences(data)]
        settings.append(packing)
    if data.bucket_lengths:
        settings.append(config.row_lengths(data))
    settings.append([split.num_tokens, len(split.sentences), len(split.documents)])
    directory = pathlib.Path(corpus_directory) / 'plans' / json_digest(settings)
    if directory.is_dir():
        if not (damage := checksums.find_damage(directory)):
            return open_windows(directory)
        say_anywhere(f'The plan in {directory} is damaged ({damage}); rebuilding it')
        shutil.rmtree(directory, ignore_errors=True)  # in a corpus that is read-only it stays, unused
    try:
        if not directory.is_dir():
            with new_directory(directory) as temporary:
                build_windows(split, data, temporary)
                checksums.write_checksums(temporary)
            return open_windows(directory)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise _cannot_write(directory, error) from error
    try:
        with tempfile.TemporaryDirectory(prefix='plan-') as name:
            build_windows(split, data, pathlib.Path(name))
            return open_windows(pathlib.Path(name))  # what is mapped stays when its name is gone
    except OSError as error:
        raise _cannot_write(pathlib.Path(tempfile.gettempdir()), error) from error


def _cannot_write(directory: pathlib.Path, error: OSError) -> BadInput:
    return BadInput(
        str(directory),
        f'cannot take the plan of the windows: {error.strerror or error}',
        'a disk with room: some 50 bytes a window, 8 a sentence',
        'make room, or --config.data.local_copy=DIR on another disk',
    )


def open_windows(directory: pathlib.Path) -> WindowIndex:
    """Maps the files of a plan."""
    # Plain arrays over the mapped files: `np.memmap` costs microseconds at every look.
    names = [field.name for field in dataclasses.fields(WindowIndex)]
    return WindowIndex(**{name: np.asarray(map_array(directory / f'{name}.npy')) for name in names})


# --- Planning. ---


def build_windows(split: Split, data: config.Data, directory: pathlib.Path) -> None:
    """Cuts every document into windows, as the original's `create_instances_from_document` does; writes the plan.

    Sentences are taken until the planned length is reached: the full row, or with probability
    `short_sequence_probability` a length drawn from 2 to the full row. Other than there, a lone last
    sentence joins the window before it, so that a pair can be cut between sentences, and a
    sentence longer than a row is cut into segments instead of being thrown away.
    """
    writers = {
        name: NpyWriter(directory / f'{name}.npy', np.int32 if name in _INT32 else np.int64) for name in _APPENDED
    }
    num_segments = num_windows = 0
    waiting: list[np.ndarray] = []  # [N, 6] windows that are not yet packed
    try:
        for first, last in _document_blocks(split):
            segments, documents = _cut_long_sentences(split, first, last, max_tokens(data))
            writers['segments'].append(segments[:-1])
            writers['documents'].append(documents[:-1] + num_segments)
            waiting.append(_windows(segments, documents, first, num_segments, data))
            num_segments += len(segments) - 1
            while sum(map(len, waiting)) >= WINDOWS_IN_BLOCK:
                block, rest = np.split(np.concatenate(waiting), [WINDOWS_IN_BLOCK])
                num_windows += _write_rows(writers, block, num_windows, data)
                waiting = [rest]
        if any(map(len, waiting)):
            num_windows += _write_rows(writers, np.concatenate(waiting), num_windows, data)
        writers['segments'].append([split.num_tokens])
        writers['documents'].append([num_segments])
        writers['rows'].append([num_windows])
    finally:
        for writer in writers.values():
            writer.close()
    _rank_documents(split, max_tokens(data) if data.pairing == 'nsp' else 0, directory)
    _sort_rows(data, directory)


def _document_blocks(split: Split) -> Iterator[tuple[int, int]]:
    """(first, past the last) of documents that together have a bounded number of sentences, or of one document."""
    documents, first = split.documents, 0
    while first < len(documents) - 1:
        most = min(len(documents) - 1, first + _SENTENCES_AT_ONCE)  # no document is without a sentence
        ends = np.asarray(documents[first + 1 : most + 1])
        last = first + max(1, int(np.searchsorted(ends, documents[first] + _SENTENCES_AT_ONCE, side='right')))
        yield first, last
        first = last


def _cut_long_sentences(split: Split, first: int, last: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """([S+1] token positions of the segments of some documents, [D+1] the segment where each begins, from 0)."""
    documents = np.array(split.documents[first : last + 1])
    sentences = np.array(split.sentences[documents[0] : documents[-1] + 1])
    documents -= documents[0]
    lengths = np.diff(sentences)
    pieces = np.where(lengths > limit, -(-lengths // max(limit // 2, 1)), 1)
    if not (pieces > 1).any():
        return sentences, documents
    first_piece = np.concatenate([[0], np.cumsum(pieces)])
    sentence_of = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(first_piece[-1]) - first_piece[sentence_of]
    starts = sentences[sentence_of] + number * lengths[sentence_of] // pieces[sentence_of]
    return np.append(starts, sentences[-1]), first_piece[documents]


def _windows(
    segments: np.ndarray, documents: np.ndarray, first_document: int, segments_before: int, data: config.Data
) -> np.ndarray:
    """[N, 6] int64, the windows of some documents in order; columns as in `_WINDOW_FIELDS`."""
    limit = max_tokens(data)
    token_bounds = segments[documents]
    active = np.flatnonzero(np.diff(token_bounds) >= 2)
    position = token_bounds[active] if data.pairing == 'none' else documents[active]
    found, round_number = [np.zeros((0, 6), np.int64)], 0
    while len(active):
        target = _planned_lengths(first_document + active, round_number, data, limit)
        if data.pairing == 'none':
            begin, last = position, token_bounds[active + 1]
            end = np.minimum(begin + target, last)
            first, count = np.zeros_like(begin), np.zeros_like(begin)
            position = end
        else:
            begin, last = position, documents[active + 1]
            position = np.searchsorted(segments, segments[begin] + target, side='left')
            position = np.minimum(np.maximum(position, begin + 2), last)
            position = np.where(last - position == 1, last, position)
            first, count = segments_before + begin, position - begin
            begin, end = segments[begin], segments[position]
        kept = np.maximum(np.minimum(target, end - begin), 2)
        found.append(np.stack([first_document + active, first, count, begin, end - begin, kept], axis=1))
        unfinished = position < last
        active, position, round_number = active[unfinished], position[unfinished], round_number + 1
    windows = np.concatenate(found)
    return windows[np.argsort(windows[:, 3], kind='stable')]


def _planned_lengths(documents: np.ndarray, round_number: int, data: config.Data, limit: int) -> np.ndarray:
    draws = random.bits(random.fold_in(random.fold_in(_SHORT_KEY, documents), round_number), 2)
    short = random.uniform(draws[:, 0]) < data.short_sequence_probability
    return np.where(short, 2 + random.below(draws[:, 1], limit - 1), limit)


def _write_rows(writers: dict[str, NpyWriter], windows: np.ndarray, num_before: int, data: config.Data) -> int:
    """Writes windows in the order of their rows, and where each row begins; returns how many windows."""
    if data.packing:
        order, rows = pack(
            windows[:, _WINDOW_FIELDS.index('target')] + num_special_tokens(data),
            predictions_of_lengths(data),
            capacity=data.sequence_length,
            max_predictions=config.num_predictions(data),
            max_sequences=config.max_sequences(data),
        )
        windows = windows[order]
    else:
        rows = np.arange(len(windows) + 1)
    for name, column in zip(_WINDOW_FIELDS, windows.T, strict=True):
        writers[name].append(column)
    writers['rows'].append(num_before + rows[:-1])
    return len(windows)


def predictions_of_lengths(data: config.Data) -> np.ndarray:
    """[L + 1] int64, the predictions of a sequence of each length, special tokens counted."""
    return np.minimum(num_masked(np.arange(data.sequence_length + 1), data.masking.rate), config.num_predictions(data))


def sample_lengths(split: Split, data: config.Data) -> np.ndarray:
    """[L + 1] int64, how many windows of each length, special tokens counted, a part of a split gives.

    The part is blocks of documents spread evenly over the split, all of it where it is small. It depends on nothing
    but the split and the data config.
    """
    blocks, counts = [*_document_blocks(split)], np.zeros(data.sequence_length + 1, np.int64)
    for index in sorted({*np.linspace(0, len(blocks) - 1, _SAMPLED_BLOCKS, dtype=int).tolist()} if blocks else ()):
        first, last = blocks[index]
        segments, documents = _cut_long_sentences(split, first, last, max_tokens(data))
        windows = _windows(segments, documents, first, 0, data)
        lengths = windows[:, _WINDOW_FIELDS.index('target')] + num_special_tokens(data)
        counts += np.bincount(lengths, minlength=len(counts))
    return counts


def _rank_documents(split: Split, limit: int, directory: pathlib.Path) -> None:
    """Writes `by_length` and `num_holding`; empty for 0."""

    def lacking() -> Iterator[tuple[int, np.ndarray]]:
        for first, last in _document_blocks(split):
            bounds = np.asarray(split.sentences[np.asarray(split.documents[first : last + 1])])
            yield first, limit - np.minimum(np.diff(bounds), limit)

    path = directory / 'by_length.npy'
    counts = _counting_sort(lacking, limit + 1, path) if limit else _nothing(path)
    np.save(directory / 'num_holding.npy', np.cumsum(counts)[::-1])


def _sort_rows(data: config.Data, directory: pathlib.Path) -> None:
    """Writes `by_bucket` and `bucket_sizes`; empty without buckets."""
    lengths = np.array(config.row_lengths(data)) - num_special_tokens(data)
    targets = map_array(directory / 'target.npy')

    def buckets() -> Iterator[tuple[int, np.ndarray]]:
        for first in range(0, len(targets), _SENTENCES_AT_ONCE):
            yield first, np.searchsorted(lengths, targets[first : first + _SENTENCES_AT_ONCE])

    path = directory / 'by_bucket.npy'
    counts = _counting_sort(buckets, len(lengths), path) if data.bucket_lengths else _nothing(path)
    np.save(directory / 'bucket_sizes.npy', counts)


def _nothing(path: pathlib.Path) -> np.ndarray:
    nothing = np.zeros(0, np.int64)
    np.save(path, nothing)
    return nothing


def _counting_sort(
    parts: Callable[[], Iterator[tuple[int, np.ndarray]]], num_keys: int, path: pathlib.Path
) -> np.ndarray:
    """Writes the places of keys in the order of the keys, equal ones as they stand, in two passes.

    Args:
      parts: gives (place of the first, keys below `num_keys`), part after part.

    Returns:
      [num_keys] int64, how often each key stands there.
    """
    counts = np.zeros(num_keys, np.int64)
    for _, keys in parts():
        counts += np.bincount(keys, minlength=num_keys)
    starts = np.cumsum(counts) - counts  # where the places of each key begin
    places = np.lib.format.open_memmap(path, 'w+', np.int64, (int(counts.sum()),))
    for first, keys in parts():
        order = np.argsort(keys, kind='stable')
        in_order = keys[order]
        rank = np.arange(len(order)) - np.searchsorted(in_order, in_order, side='left')
        places[starts[in_order] + rank] = first + order
        starts += np.bincount(keys, minlength=num_keys)
    places.flush()
    return counts
