"""Reads the input of `embed`: texts, one per line, or a column of JSON lines, CSV, TSV or parquet."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax.config.finetuning import Task
from bert_jax.data.labelled import Record, read_records
from bert_jax.errors import BadInput
from bert_jax.text.sources.compression import without_compression
from bert_jax.text.sources.lines import read_whole_lines

_SUFFIXES = {'.jsonl': 'jsonl', '.ndjson': 'jsonl', '.csv': 'csv', '.tsv': 'tsv', '.parquet': 'parquet'}
_FORMATS = ('text', 'jsonl', 'csv', 'tsv', 'parquet')


class InputText(NamedTuple):
    """A text to embed. id: of its record; None without an id column."""

    text: str
    id: Any = None


class InputSummary(NamedTuple):
    """What an input holds.

    num_texts: all of them.  digest: changes with any text or id.  has_ids: whether every record has an id.
    """

    num_texts: int
    digest: str
    has_ids: bool


def split_format(source: str) -> tuple[str, str]:
    """Returns (format, file) of FORMAT:FILE, or of a file, whose name may end in .gz, .zst, .bz2 or .xz.

    Raises:
      BadInput: if the file does not exist.
    """
    name, _, path = source.partition(':')
    if name not in _FORMATS or Path(source).exists():
        bare = Path(without_compression(source))
        name, path = _SUFFIXES.get(bare.suffix, 'text'), source
    if not Path(path).is_file():
        expected = f'a file of texts, or FORMAT:FILE with FORMAT one of {", ".join(_FORMATS)}'
        raise BadInput(f'--input={source}', 'is not a file', expected)
    return name, path


def read_inputs(source: str, text_field: str, id_field: str, counts: Counter) -> Iterator[InputText]:
    """Yields the texts of a source, in order.

    Args:
      text_field: the column of the texts, in formats with columns.  id_field: that of the ids, if there is one.
      counts: {event: count}; updated for lines that are not UTF-8, whose invalid bytes are replaced.

    Raises:
      BadInput: names the line of a record without text.
    """
    file_format, path = split_format(source)
    if file_format == 'text':
        yield from map(InputText, read_whole_lines(path, counts))
        return
    for record in read_records(f'{file_format}:{path}', Task(text=text_field), ()):
        yield InputText(_text_of(record, text_field), record.fields.get(id_field))


def summarize(source: str, text_field: str, id_field: str, counts: Counter) -> InputSummary:
    """Reads a source once, so that bad input is found before anything else happens; arguments as of `read_inputs`."""
    digest, num_texts, num_ids = hashlib.blake2b(digest_size=16), 0, 0
    for each in read_inputs(source, text_field, id_field, counts):
        digest.update(repr(tuple(each)).encode())
        num_texts, num_ids = num_texts + 1, num_ids + (each.id is not None)
    return InputSummary(num_texts, digest.hexdigest(), 0 < num_ids == num_texts)


def _text_of(record: Record, column: str) -> str:
    value = record.fields.get(column)
    if isinstance(value, str):
        return value
    if value is None:
        names = ', '.join(map(str, record.fields)) or 'nothing'
        raise BadInput(record.where, f'has no {column!r}; it has {names}', 'a text', '--text_field=COLUMN')
    raise BadInput(record.where, f'{column!r} is of type {type(value).__name__}', 'text', '--text_field=COLUMN')
