"""Reads text files and JSON lines."""

import functools
import itertools
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from bert_jax.text import chunks
from bert_jax.text.chunks import FileRange, SizedRanges
from bert_jax.text.sources.lines import is_divisible, join_wrapped, locate_line, read_lines
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.records import BadRecord, Texts, text_or_skip
from bert_jax.text.stats import Stats

_MAX_VALUES = 1_000_000  # lists and objects of a JSON record; an empty one takes 56 bytes, but two in the file
_ARRAY_HINT = "; jq -c '.[]' FILE turns an array into lines"


def divide_text(path: epath.Path, length: int, size: int, options: ReadOptions) -> SizedRanges:
    """Divides a text file into ranges of `size` bytes; a file that is one document, not at all."""
    return [(FileRange(str(path)), length)] if options.documents == 'file' else divide(path, length, size, options)


def divide(path: epath.Path, length: int, size: int, options: ReadOptions) -> SizedRanges:
    """Divides a file of lines into ranges of `size` bytes, unless it must be read from its start."""
    if length < 2 * size or not is_divisible(path, options.encoding):
        return [(FileRange(str(path)), length)]
    return [(FileRange(str(path), start, stop), stop - start) for start, stop in chunks.steps(length, size)]


def read_text(file_range: FileRange, options: ReadOptions, stats: Stats) -> Texts:
    """Yields the documents of a text file: between blank lines, or the whole file."""
    lines: Iterator[Any] = read_lines(file_range, 'text', stats.counts, options.encoding)
    if options.documents == 'file':
        yield (join_wrapped(lines) if options.join_lines else lines), None
        return
    for is_text, document in itertools.groupby(lines, lambda line: bool(line) and not line.isspace()):
        if is_text and options.join_lines:
            yield join_wrapped(document), None
        elif is_text:
            yield document, None


def read_jsonl(file_range: FileRange, options: ReadOptions, stats: Stats) -> Texts:
    """Yields the text of each record of a file of JSON lines."""
    for line_number, line in enumerate(read_lines(file_range, 'jsonl', stats.counts, options.encoding), 1):
        if line is not None and not line.strip():
            continue
        locate = functools.partial(locate_line, file_range, line_number)
        yield from text_or_skip(line, _parsed, options, stats, locate)


def _parsed(line: str | None) -> dict[str, Any]:
    expected = 'one JSON object per line'
    if line is None:
        raise BadRecord(f'is longer than {chunks.MAX_RECORD_BYTES >> 20} MiB', expected)
    if len(line) > _MAX_VALUES and line.count('[') + line.count('{') > _MAX_VALUES:
        raise BadRecord(f'holds more than {_MAX_VALUES:,} lists and objects', expected)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        column = f' (column {error.colno})' if isinstance(error, json.JSONDecodeError) else ''
        if line.lstrip().startswith('['):
            expected += _ARRAY_HINT
        raise BadRecord(f'is not JSON{column}', expected) from None
    if isinstance(record, list):
        raise BadRecord('is a JSON array', expected + _ARRAY_HINT)
    if not isinstance(record, dict):
        raise BadRecord(f'is a JSON {type(record).__name__}', expected)
    return record
