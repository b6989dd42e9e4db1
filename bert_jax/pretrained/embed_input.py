"""Reads the input of `embed`: texts, one per line, or a column of JSON lines, CSV, TSV or parquet."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax.config.finetuning import Task
from bert_jax.data.labelled import TABLES, Record, read_records, split_source
from bert_jax.errors import BadInput
from bert_jax.text.sources.lines import read_whole_lines

_TEXT = 'text'  # a text per line, the format of any file whose suffix names no other
_FORMATS = (_TEXT, *TABLES)


class InputText(NamedTuple):
    """A text to embed. id: of its record; None without an id column."""

    text: str
    id: Any = None


class InputSummary(NamedTuple):
    """What an input holds.

    num_texts: all of them.  digest: changes with any text or id.  has_ids: whether every record has an id.
    has_integer_ids: whether these ids all are integers of 64 bits.
    """

    num_texts: int
    digest: str
    has_ids: bool
    has_integer_ids: bool


def read_inputs(source: str, text_field: str, id_field: str, counts: Counter) -> Iterator[InputText]:
    """Yields the texts of a source, in order.

    Args:
      text_field: the column of the texts, in formats with columns.  id_field: that of the ids, if there is one.
      counts: {event: count}; updated for lines that are not UTF-8, whose invalid bytes are replaced.

    Raises:
      BadInput: if the file does not exist; names the line of a record without text.
    """
    file_format, path = split_source(source, _FORMATS)
    if not Path(path).is_file():
        expected = f'a file of texts, or FORMAT:FILE with FORMAT one of {", ".join(_FORMATS)}'
        raise BadInput(f'--input={source}', 'is not a file', expected)
    if file_format in ('', _TEXT):
        yield from map(InputText, read_whole_lines(path, counts))
        return
    for record in read_records(f'{file_format}:{path}', Task(text=text_field), ()):
        yield InputText(_text_of(record, text_field), record.fields.get(id_field))


def summarize(source: str, text_field: str, id_field: str, counts: Counter) -> InputSummary:
    """Reads a source once, so that bad input is found before anything else happens; arguments as of `read_inputs`."""
    digest, num_texts, num_ids, num_integers = hashlib.blake2b(digest_size=16), 0, 0, 0
    for each in read_inputs(source, text_field, id_field, counts):
        digest.update(repr(tuple(each)).encode())
        num_texts, num_ids = num_texts + 1, num_ids + (each.id is not None)
        num_integers += type(each.id) is int and -(2**63) <= each.id < 2**63
    return InputSummary(num_texts, digest.hexdigest(), 0 < num_ids == num_texts, 0 < num_integers == num_texts)


def _text_of(record: Record, column: str) -> str:
    value = record.fields.get(column)
    if isinstance(value, str):
        return value
    if value is None:
        names = ', '.join(map(str, record.fields)) or 'nothing'
        raise BadInput(record.where, f'has no {column!r}; it has {names}', 'a text', '--text_field=COLUMN')
    raise BadInput(record.where, f'{column!r} is of type {type(value).__name__}', 'text', '--text_field=COLUMN')
