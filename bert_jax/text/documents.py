"""Reads the documents of a chunk one at a time, in memory that does not grow with the source."""

import dataclasses
import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from etils import epath

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.text import chunks
from bert_jax.text.chunks import Chunk, FileRange
from bert_jax.text.lines import decode, iter_lines, join_wrapped, locate_line, read_lines
from bert_jax.text.parquet import read_rows
from bert_jax.text.sentences import split_into_sentences
from bert_jax.text.stats import Stats

_LINES_AT_ONCE = 1 << 14
_MAX_VALUES = 1_000_000  # lists and objects of a JSON record; an empty one takes 56 bytes, but two in the file
_RECORDS_AT_ONCE = 256
_BYTES_AT_ONCE = 1 << 25  # of a batch of records, unless one record is larger


@dataclasses.dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
      text: lines separated by line feeds; each is stripped, and none is empty or contains NUL.
      group: the value of `data.group_field`.
      is_split: whether each line is one sentence.
    """

    text: str  # not a list of lines: many short strings take much more memory
    group: str | None = None
    is_split: bool = False

    @property
    def lines(self) -> list[str]:
        return self.text.split('\n')

    @property
    def sentences(self) -> list[str]:
        return self.lines if self.is_split else [s for line in self.lines for s in split_into_sentences(line)]

    @property
    def num_characters(self) -> int:
        return len(self.text) - self.text.count('\n')


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """Options for reading and cleaning documents, lines and sentences; see the fields of `config.Data`."""

    text_field: str = 'text'
    group_field: str = ''
    split_sentences: bool = True
    deduplicate_lines: bool = False
    documents: str = 'blank_lines'
    join_lines: bool = False
    languages: tuple[str, ...] = ()
    quality_rules: tuple[str, ...] = ()
    boilerplate_documents: int = 0
    redact: tuple[str, ...] = ()

    @property
    def cleans(self) -> bool:
        """Whether documents are cleaned after they are read; see `text/cleaning`."""
        return bool(self.languages or self.quality_rules or self.boilerplate_documents or self.redact)

    @classmethod
    def from_config(cls, data: config.Data) -> 'ReadOptions':
        """Takes the options from the fields of `config.Data` with the same names."""
        return cls(**{field.name: getattr(data, field.name) for field in dataclasses.fields(cls)})


class _BadRecord(Exception):
    """A record that is skipped; its arguments are (found, expected)."""


def read_chunk(chunk: Chunk, options: ReadOptions, stats: Stats) -> Generator[Document, None, None]:
    """Yields the documents of a chunk, in order.

    In a text file, each line is a sentence or paragraph, and a blank line or the end of the file ends a document.

    Raises:
      BadInput: for a file that cannot be read, is damaged, or consists mostly of bad records or bytes that are not
        UTF-8. The message names the file and line, never the text.
    """
    for file_range in chunk.ranges:
        try:
            yield from _read_range(chunk.kind, file_range, options, stats)
        except OSError as error:
            raise BadInput(
                file_range.path, f'cannot be read ({error.strerror or type(error).__name__})', 'a file to read'
            ) from error


def _read_range(kind: str, file_range: FileRange, options: ReadOptions, stats: Stats) -> Iterator[Document]:
    num_documents, num_bad = 0, stats.counts['bad_record_skipped']
    with stats.of_file(file_range.path) as check:
        for paragraphs, group in _READERS[kind](file_range, options, stats):
            for document in _documents(paragraphs, group, options, stats):
                num_documents += 1
                yield document
            check()
    if not num_documents and file_range.is_whole_file and kind in chunks.FILE_KINDS:
        if stats.counts['bad_record_skipped'] > num_bad:
            raise stats.bad_records_error('no record can be used')
        stats.counts['empty_file'] += 1


def _documents(paragraphs: Iterable[str], group: str | None, options: ReadOptions, stats: Stats) -> Iterator[Document]:
    """Yields one document, or several if it is too long."""
    lines, blocks, size = [], [], 0
    for line in _short_lines(paragraphs, stats.counts):
        if size >= chunks.MAX_DOCUMENT_LENGTH:
            stats.counts['long_document_cut'] += 1
            stats.characters += size
            yield Document('\n'.join(blocks + lines), group, not options.split_sentences)
            lines, blocks, size = [], [], 0
        elif len(lines) >= _LINES_AT_ONCE:  # joined, they take less memory
            blocks.append('\n'.join(lines))
            lines = []
        lines.append(line)
        size += len(line)
    stats.characters += size
    if lines:
        yield Document('\n'.join(blocks + lines), group, not options.split_sentences)
    else:
        stats.counts['empty_document'] += 1


def _short_lines(paragraphs: Iterable[str], counts: Counter) -> Iterator[str]:
    """Strips paragraphs and splits long ones, as records may hold lines of any length."""
    for paragraph in paragraphs:
        if len(paragraph) <= chunks.MAX_LINE_LENGTH:
            pieces = (paragraph,)
        else:
            starts = range(0, len(paragraph), chunks.MAX_LINE_LENGTH)
            pieces = [paragraph[start : start + chunks.MAX_LINE_LENGTH] for start in starts]
            counts['long_line_split'] += len(pieces) - 1
        for piece in pieces:
            if text := piece.strip():
                yield text


# --- Readers: each kind yields (paragraphs, group) per document. ---

_Texts = Iterator[tuple[Iterable[str], str | None]]


def _read_python_docs(file_range: FileRange, options: ReadOptions, stats: Stats) -> _Texts:
    del options
    from bert_jax.text import python_docs

    paragraphs = python_docs.read_paragraphs(epath.Path(file_range.path), stats.counts)
    yield (_clean(paragraph, stats.counts) for paragraph in paragraphs), None


def _read_text(file_range: FileRange, options: ReadOptions, stats: Stats) -> _Texts:
    lines: Iterator[Any] = read_lines(file_range, 'text', stats.counts)
    if options.documents == 'file':
        yield (join_wrapped(lines) if options.join_lines else lines), None
        return
    for is_text, document in itertools.groupby(lines, lambda line: bool(line) and not line.isspace()):
        if is_text and options.join_lines:
            yield join_wrapped(document), None
        elif is_text:
            yield document, None


def _read_jsonl(file_range: FileRange, options: ReadOptions, stats: Stats) -> _Texts:
    for line_number, line in enumerate(read_lines(file_range, 'jsonl', stats.counts), 1):
        if line is not None and not line.strip():
            continue
        yield from _text_or_skip(line, _parsed, options, stats, functools.partial(locate_line, file_range, line_number))


def _text_or_skip(
    record: Any, parse: Callable[[Any], dict[str, Any]], options: ReadOptions, stats: Stats, locate: Callable[[], str]
) -> _Texts:
    """Yields the text of a record; if the record is bad, counts it instead."""
    stats.records += 1
    try:
        text = _text_of(parse(record), options, stats.counts)
    except _BadRecord as bad:
        stats.skip_record(locate, *bad.args)
        return
    yield text


_ARRAY_HINT = "; jq -c '.[]' FILE turns an array into lines"


def _parsed(line: str | None) -> dict[str, Any]:
    expected = 'one JSON object per line'
    if line is None:
        raise _BadRecord(f'is longer than {chunks.MAX_RECORD_BYTES >> 20} MiB', expected)
    if len(line) > _MAX_VALUES and line.count('[') + line.count('{') > _MAX_VALUES:
        raise _BadRecord(f'holds more than {_MAX_VALUES:,} lists and objects', expected)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        column = f' (column {error.colno})' if isinstance(error, json.JSONDecodeError) else ''
        if line.lstrip().startswith('['):
            expected += _ARRAY_HINT
        raise _BadRecord(f'is not JSON{column}', expected) from None
    if isinstance(record, list):
        raise _BadRecord('is a JSON array', expected + _ARRAY_HINT)
    if not isinstance(record, dict):
        raise _BadRecord(f'is a JSON {type(record).__name__}', expected)
    return record


def _read_parquet(file_range: FileRange, options: ReadOptions, stats: Stats) -> _Texts:
    columns = [options.text_field, *filter(None, [options.group_field])]
    for row, record in read_rows(
        file_range.path, file_range.start, file_range.stop, columns, _BYTES_AT_ONCE, _RECORDS_AT_ONCE
    ):
        yield from _text_or_skip(record, dict, options, stats, functools.partial('{}:{}'.format, file_range.path, row))


def _read_tfds(file_range: FileRange, options: ReadOptions, stats: Stats) -> _Texts:
    records = chunks.open_tfds(file_range.path, [])
    start, count = file_range.start, 1
    while start < file_range.stop:
        indices = range(start, min(start + count, file_range.stop))
        batch = records.__getitems__(indices)
        start += len(indices)
        largest = max(len(record.get(options.text_field) or b'') for record in batch)
        count = max(1, min(4 * count, _RECORDS_AT_ONCE, _BYTES_AT_ONCE // max(1, largest)))
        for index, record in zip(indices, batch, strict=True):
            locate = functools.partial('tfds:{}:{}'.format, file_range.path, index)
            yield from _text_or_skip(record, dict, options, stats, locate)


_READERS: dict[str, Callable[[FileRange, ReadOptions, Stats], _Texts]] = {
    'python-docs': _read_python_docs,
    'text': _read_text,
    'jsonl': _read_jsonl,
    'parquet': _read_parquet,
    'tfds': _read_tfds,
}


# --- Text of records. ---


def _text_of(record: dict[str, Any], options: ReadOptions, counts: Counter) -> tuple[Iterable[str], str | None]:
    for field in filter(None, (options.text_field, options.group_field)):
        if field not in record:
            names = ', '.join(map(str, list(record)[:20]))
            option = 'text_field' if field == options.text_field else 'group_field'
            raise _BadRecord(f'has no field {field!r}', f'--config.data.{option}=NAME, one of: {names}')
    text = record[options.text_field]
    if isinstance(text, bytes):
        text = decode(text, counts)
    if text is not None and not isinstance(text, str):
        raise _BadRecord(f'field {options.text_field!r} is of type {type(text).__name__}', 'text')
    group = record[options.group_field] if options.group_field else None
    group = None if group is None else group.decode('utf-8', 'replace') if isinstance(group, bytes) else str(group)
    lines = iter_lines(_clean(text or '', counts), counts)
    return (join_wrapped(lines) if options.join_lines else lines), group


def _clean(text: str, counts: Counter) -> str:
    if '\0' in text:
        counts['nul_bytes_removed'] += text.count('\0')
        text = text.replace('\0', '')
    try:
        text.encode('utf-8')
    except UnicodeEncodeError:  # a lone surrogate, written as an escape in JSON or in a string literal
        counts['invalid_utf8_replaced'] += 1
        num_before = text.count('\ufffd')
        text = text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
        counts['invalid_bytes'] += text.count('\ufffd') - num_before
    return text
