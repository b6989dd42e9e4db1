"""Cuts a corpus into windows of sentences and assigns them to rows, once per (corpus, data config).

The index of windows is written straight to files, block by block, in memory that does not grow with the corpus. It is
memory-mapped from there.

`N` windows, `R` rows, `S` segments (sentences, overlong ones cut), `D` documents.
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
from bert_jax.text.splits import NpyWriter, Split, SplitRange

_PLAN_VERSION = 4
_SHORT_KEY = 0x5EED  # planned lengths depend on the corpus and the data config, not on the seed of a run
_SENTENCES_AT_ONCE = 1 << 18  # of whole documents, processed together
_SAMPLED_BLOCKS = 16  # of `_SENTENCES_AT_ONCE` each


@dataclasses.dataclass(frozen=True)
class WindowIndex:
    """The windows of one epoch, memory-mapped.

    segments: [S+1] int64, the first token of each segment, then the number of tokens.
    documents: [D+1] int64, the first segment of each document, then S; documents of one token have no windows.
    document_of: [N] int64, the document of each window.
    first_segment: [N] int64; num_segments: [N] int32, the segments of each window.
    start: [N] int64, first token of each window.  length: [N] int32, tokens in it.
    target: [N] int32, tokens of its example, without special tokens.
    rows: [R+1] int64, the first window of each row, then N. Without packing a row is one window.
    by_length: [D] int64, documents from the longest to the shortest, with `nsp`.
    num_holding: [limit+1] int64, number of documents with at least that many tokens, with `nsp`.
    by_bucket: [R] int64, rows sorted by bucket, shortest first, with `bucket_lengths`.
    bucket_sizes: [K] int64, number of rows of each of the K `config.row_lengths`, with `bucket_lengths`.
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
    """Returns 3 for [CLS] A [SEP] B [SEP], or 2 for [CLS] A [SEP]."""
    return 2 if data.pairing == 'none' else 3


def max_tokens(data: config.Data) -> int:
    """Returns the tokens of a sequence that fills a row, without special tokens."""
    return data.sequence_length - num_special_tokens(data)


# --- The files of an index. ---


def load_windows(corpus_directory: str, split_name: str, split: Split | SplitRange, data: config.Data) -> WindowIndex:
    """Memory-maps the index of a split from the corpus's directory, after building it on first use.

    Several processes may build it at the same time: they build the same index, and the first to finish publishes it.
    If the corpus is read-only, each process builds its own in the temporary directory.

    Raises:
      BadInput: if the split has too few documents for `data.pairing`, or no disk has room for the index.
    """
    if data.pairing == 'nsp' and len(split.documents) - 1 < 2:
        raise BadInput(
            f'{corpus_directory} ({split_name})',
            f'has fewer than 2 documents ({len(split.documents) - 1}); a random next sentence needs another document',
            'at least 2 documents; a blank line separates documents in a text file',
            '--config.data.pairing=sop or --config.data.pairing=none',
        )
    settings = [_PLAN_VERSION, split_name, data.sequence_length, data.short_sequence_probability, data.pairing]
    if data.packing:
        packing = [data.masking.rate, config.num_predictions(data), config.max_sequences(data)]
        settings.append(packing)
    if data.bucket_lengths:
        settings.append(config.row_lengths(data))
    settings.append(split.size)
    directory = pathlib.Path(corpus_directory) / 'plans' / json_digest(settings)
    if directory.is_dir():
        if not (damage := checksums.find_damage(directory)):
            return open_windows(directory)
        say_anywhere(f'The index of windows in {directory} is damaged ({damage}); rebuilding it')
        shutil.rmtree(directory, ignore_errors=True)  # in a read-only corpus it stays, unused
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
            return open_windows(pathlib.Path(name))  # mapped files outlive their directory entries
    except OSError as error:
        raise _cannot_write(pathlib.Path(tempfile.gettempdir()), error) from error


def _cannot_write(directory: pathlib.Path, error: OSError) -> BadInput:
    return BadInput(
        str(directory),
        f'cannot store the index of windows: {error.strerror or error}',
        'a writable disk with about 50 bytes per window and 8 bytes per sentence',
        'free disk space, or --config.data.local_copy=DIR on another disk',
    )


def open_windows(directory: pathlib.Path) -> WindowIndex:
    """Memory-maps the files of an index."""
    # Plain arrays over the mapped files: `np.memmap` costs microseconds per access.
    names = [field.name for field in dataclasses.fields(WindowIndex)]
    return WindowIndex(**{name: np.asarray(map_array(directory / f'{name}.npy')) for name in names})


# --- Building an index. ---


def build_windows(split: Split | SplitRange, data: config.Data, directory: pathlib.Path) -> None:
    """Cuts every document into windows, like the original's `create_instances_from_document`, and writes the index.

    Sentences are added until the planned length is reached: the full row, or with probability
    `short_sequence_probability` a random length from 2 to the full row. Unlike in the original, a single last sentence
    joins the window before it, so that a pair can be cut between sentences, and a sentence longer than a row is cut
    into segments instead of being dropped.
    """
    writers = {
        name: NpyWriter(directory / f'{name}.npy', np.int32 if name in _INT32 else np.int64) for name in _APPENDED
    }
    num_segments = num_windows = 0
    waiting: list[np.ndarray] = []  # [N, 6] windows that are not packed yet
    try:
        for first, last in _document_blocks(split):
            segments, documents = _cut_long_sentences(split, first, last, max_tokens(data))
            writers['segments'].append(segments[:-1])
            writers['documents'].append(documents[:-1] + num_segments)
            waiting.append(_windows(segments, documents, first, num_segments, data))
            num_segments += len(segments) - 1
            while sum(map(len, waiting)) >= WINDOWS_IN_BLOCK:
                block, remaining = np.split(np.concatenate(waiting), [WINDOWS_IN_BLOCK])
                num_windows += _write_rows(writers, block, num_windows, data)
                waiting = [remaining]
        if any(map(len, waiting)):
            num_windows += _write_rows(writers, np.concatenate(waiting), num_windows, data)
        writers['segments'].append([split.end])
        writers['documents'].append([num_segments])
        writers['rows'].append([num_windows])
    finally:
        for writer in writers.values():
            writer.close()
    _rank_documents(split, max_tokens(data) if data.pairing == 'nsp' else 0, directory)
    _sort_rows(data, directory)


def _document_blocks(split: Split | SplitRange) -> Iterator[tuple[int, int]]:
    """Yields ranges of documents with a bounded number of sentences in total, or of a single document."""
    documents, first = split.documents, 0
    while first < len(documents) - 1:
        most = min(len(documents) - 1, first + _SENTENCES_AT_ONCE)  # every document has a sentence
        ends = np.asarray(documents[first + 1 : most + 1])
        last = first + max(1, int(np.searchsorted(ends, documents[first] + _SENTENCES_AT_ONCE, side='right')))
        yield first, last
        first = last


def _cut_long_sentences(split: Split | SplitRange, first: int, last: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns ([S+1] token positions of the segments of some documents, [D+1] their first segments, from 0)."""
    documents = np.array(split.documents[first : last + 1])
    sentences = np.array(split.sentences[documents[0] : documents[-1] + 1])
    documents -= documents[0]
    lengths = np.diff(sentences)
    num_parts = np.where(lengths > limit, -(-lengths // max(limit // 2, 1)), 1)
    if not (num_parts > 1).any():
        return sentences, documents
    first_part = np.concatenate([[0], np.cumsum(num_parts)])
    sentence_of = np.repeat(np.arange(len(lengths)), num_parts)
    part = np.arange(first_part[-1]) - first_part[sentence_of]
    starts = sentences[sentence_of] + part * lengths[sentence_of] // num_parts[sentence_of]
    return np.append(starts, sentences[-1]), first_part[documents]


def _windows(
    segments: np.ndarray, documents: np.ndarray, first_document: int, segments_before: int, data: config.Data
) -> np.ndarray:
    """Returns [N, 6] int64, the windows of some documents in order; columns as in `_WINDOW_FIELDS`."""
    limit = max_tokens(data)
    token_bounds = segments[documents]
    active = np.flatnonzero(np.diff(token_bounds) >= 2)
    position = token_bounds[active] if data.pairing == 'none' else documents[active]
    windows, round_index = [np.zeros((0, 6), np.int64)], 0
    while len(active):
        target = _planned_lengths(first_document + active, round_index, data, limit)
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
        windows.append(np.stack([first_document + active, first, count, begin, end - begin, kept], axis=1))
        unfinished = position < last
        active, position, round_index = active[unfinished], position[unfinished], round_index + 1
    in_rounds = np.concatenate(windows)
    return in_rounds[np.argsort(in_rounds[:, 3], kind='stable')]


def _planned_lengths(documents: np.ndarray, round_index: int, data: config.Data, limit: int) -> np.ndarray:
    draws = random.bits(random.fold_in(random.fold_in(_SHORT_KEY, documents), round_index), 2)
    short = random.uniform(draws[:, 0]) < data.short_sequence_probability
    return np.where(short, 2 + random.below(draws[:, 1], limit - 1), limit)


def _write_rows(writers: dict[str, NpyWriter], windows: np.ndarray, num_before: int, data: config.Data) -> int:
    """Writes windows in the order of their rows and the start of each row; returns the number of windows."""
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
    """Returns [L + 1] int64, the predictions of a sequence of each length, special tokens included."""
    return np.minimum(num_masked(np.arange(data.sequence_length + 1), data.masking.rate), config.num_predictions(data))


def sample_lengths(split: Split | SplitRange, data: config.Data) -> np.ndarray:
    """Returns [L + 1] int64, the number of windows of each length (special tokens included) in a sample of a split.

    The sample is blocks of documents spread evenly over the split, or all of a small split. It depends only on the
    split and the data config.
    """
    blocks, counts = [*_document_blocks(split)], np.zeros(data.sequence_length + 1, np.int64)
    for index in sorted({*np.linspace(0, len(blocks) - 1, _SAMPLED_BLOCKS, dtype=int).tolist()} if blocks else ()):
        first, last = blocks[index]
        segments, documents = _cut_long_sentences(split, first, last, max_tokens(data))
        windows = _windows(segments, documents, first, 0, data)
        lengths = windows[:, _WINDOW_FIELDS.index('target')] + num_special_tokens(data)
        counts += np.bincount(lengths, minlength=len(counts))
    return counts


def _rank_documents(split: Split | SplitRange, limit: int, directory: pathlib.Path) -> None:
    """Writes `by_length` and `num_holding`; both are empty for a limit of 0."""

    def missing_tokens() -> Iterator[tuple[int, np.ndarray]]:
        for first, last in _document_blocks(split):
            bounds = np.asarray(split.sentences[np.asarray(split.documents[first : last + 1])])
            yield first, limit - np.minimum(np.diff(bounds), limit)

    path = directory / 'by_length.npy'
    counts = _counting_sort(missing_tokens, limit + 1, path) if limit else _write_empty(path)
    np.save(directory / 'num_holding.npy', np.cumsum(counts)[::-1])


def _sort_rows(data: config.Data, directory: pathlib.Path) -> None:
    """Writes `by_bucket` and `bucket_sizes`; both are empty without buckets."""
    lengths = np.array(config.row_lengths(data)) - num_special_tokens(data)
    targets = map_array(directory / 'target.npy')

    def buckets() -> Iterator[tuple[int, np.ndarray]]:
        for first in range(0, len(targets), _SENTENCES_AT_ONCE):
            yield first, np.searchsorted(lengths, targets[first : first + _SENTENCES_AT_ONCE])

    path = directory / 'by_bucket.npy'
    counts = _counting_sort(buckets, len(lengths), path) if data.bucket_lengths else _write_empty(path)
    np.save(directory / 'bucket_sizes.npy', counts)


def _write_empty(path: pathlib.Path) -> np.ndarray:
    empty = np.zeros(0, np.int64)
    np.save(path, empty)
    return empty


def _counting_sort(
    parts: Callable[[], Iterator[tuple[int, np.ndarray]]], num_keys: int, path: pathlib.Path
) -> np.ndarray:
    """Writes the stable sort order of keys in two passes.

    Args:
      parts: yields (index of the first key, keys below `num_keys`) for consecutive parts.

    Returns:
      [num_keys] int64, the number of occurrences of each key.
    """
    counts = np.zeros(num_keys, np.int64)
    for _, keys in parts():
        counts += np.bincount(keys, minlength=num_keys)
    starts = np.cumsum(counts) - counts  # where the indices of each key begin
    indices = np.lib.format.open_memmap(path, 'w+', np.int64, (int(counts.sum()),))
    for first, keys in parts():
        order = np.argsort(keys, kind='stable')
        in_order = keys[order]
        rank = np.arange(len(order)) - np.searchsorted(in_order, in_order, side='left')
        indices[starts[in_order] + rank] = first + order
        starts += np.bincount(keys, minlength=num_keys)
    indices.flush()
    return counts
