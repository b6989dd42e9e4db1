"""Chunks of a source -> a stream of documents, one at a time, in memory that does not grow with the source."""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.text import chunks
from bert_jax.text.chunks import Chunk, Part
from bert_jax.text.lines import decode, line_of, read_lines
from bert_jax.text.sentences import split_into_sentences

_RECORDS_AT_ONCE = 256
_PLACES = 3  # of bad records, remembered to be shown
_HOPELESS = 100  # bad records, more than half of a chunk's: reading on is no use


@dataclasses.dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
      lines: each without blanks around it, none empty, none with a line feed or NUL.
      group: what `data.group_field` says.
      is_split: whether each line is one sentence as it stands.
    """

    lines: list[str]
    group: str | None = None
    is_split: bool = False

    @property
    def sentences(self) -> list[str]:
        return self.lines if self.is_split else [s for line in self.lines for s in split_into_sentences(line)]

    @property
    def num_characters(self) -> int:
        return sum(map(len, self.lines))


@dataclasses.dataclass(frozen=True)
class Reading:
    """How text is found in records, cut into sentences and told apart; see the fields of `config.Data`."""

    text_field: str = 'text'
    group_field: str = ''
    split_sentences: bool = True
    deduplicate_lines: bool = False

    @classmethod
    def of(cls, data: config.Data) -> 'Reading':
        """The part of the settings that reading depends on."""
        return cls(data.text_field, data.group_field, data.split_sentences, data.deduplicate_lines)


@dataclasses.dataclass
class Tally:
    """What was met while reading.

    Attributes:
      counts: {reason: count} of what was left out or mended: `empty_document`, `invalid_utf8_replaced` (lines or
        records), `nul_bytes_removed`, `long_line_split` and `long_document_cut` (times cut), `bad_record_skipped`,
        `unparsable_module`.
      records: in all, of sources that have records.
      bad: the first bad records, [place, what is wrong, what is expected].
    """

    counts: Counter = dataclasses.field(default_factory=Counter)
    records: int = 0
    bad: list[list[str]] = dataclasses.field(default_factory=list)

    def skip(self, where: Callable[[], str], found: str, expected: str) -> None:
        """Passes over a bad record."""
        self.counts['bad_record_skipped'] += 1
        if len(self.bad) < _PLACES:
            self.bad.append([where(), found, expected])
        if self.counts['bad_record_skipped'] >= max(_HOPELESS, self.records / 2):
            raise self.refusal('more than half of the records so far are bad')

    def refusal(self, why: str) -> BadInput:
        """The error for too many bad records: names the first."""
        where, found, expected = self.bad[0]
        return BadInput(where, f'{found}; {why}', expected, 'mend the file, or --config.data.bad_records=SHARE')

    def check(self, allowed: float) -> None:
        """Raises `BadInput` when more than a share of `allowed` of the records is bad."""
        num_bad = self.counts['bad_record_skipped']
        if num_bad > allowed * self.records:
            raise self.refusal(f'{num_bad} of {self.records} records are bad')

    def add(self, other: 'Tally') -> None:
        """Takes over what another has met after this one."""
        self.counts += other.counts
        self.records += other.records
        self.bad = (self.bad + other.bad)[:_PLACES]


class _BadRecord(Exception):
    """(found, expected)"""


def read_chunk(chunk: Chunk, reading: Reading, tally: Tally) -> Iterator[Document]:
    """The documents of a chunk, in order.

    In a text file a line is a sentence or paragraph and a blank line ends a document.

    Raises:
      BadInput: for a file that cannot be read, is damaged, holds no text or hardly anything but bad records. Names
        file and line, never text.
    """
    for part in chunk.parts:
        try:
            yield from _read_part(chunk.kind, part, reading, tally)
        except OSError as error:
            raise BadInput(
                part.path, f'cannot be read ({error.strerror or type(error).__name__})', 'a file to read'
            ) from error


def _read_part(kind: str, part: Part, reading: Reading, tally: Tally) -> Iterator[Document]:
    num_texts = 0
    for paragraphs, group in _READERS[kind](part, reading, tally):
        num_texts += 1
        yield from _documents(paragraphs, group, reading, tally)
    if not num_texts and part.is_whole and kind in ('text', 'jsonl', 'parquet'):
        if tally.bad:
            raise tally.refusal('no record is good')
        raise BadInput(part.path, 'holds no text', 'a file with text', 'remove it, or narrow data.source')


def _documents(
    paragraphs: Iterator[str] | list[str], group: str | None, reading: Reading, tally: Tally
) -> Iterator[Document]:
    lines, size, is_empty, is_split = [], 0, True, not reading.split_sentences
    for line in _short_lines(paragraphs, tally.counts):
        if size >= chunks.LONGEST_DOCUMENT:
            tally.counts['long_document_cut'] += 1
            yield Document(lines, group, is_split)
            lines, size = [], 0
        lines.append(line)
        size += len(line)
        is_empty = False
    if is_empty:
        tally.counts['empty_document'] += 1
    else:
        yield Document(lines, group, is_split)


def _short_lines(paragraphs: Iterator[str] | list[str], counts: Counter) -> Iterator[str]:
    """Paragraphs without the blanks around them, long ones in parts: records hold lines of any length."""
    for paragraph in paragraphs:
        if len(paragraph) <= chunks.LONGEST_LINE:
            parts = (paragraph,)
        else:
            starts = range(0, len(paragraph), chunks.LONGEST_LINE)
            parts = [paragraph[start : start + chunks.LONGEST_LINE] for start in starts]
            counts['long_line_split'] += len(parts) - 1
        for part in parts:
            if text := part.strip():
                yield text


# --- Each kind gives (paragraphs, group). ---

_Texts = Iterator[tuple[Iterator[str] | list[str], str | None]]


def _read_python_docs(part: Part, reading: Reading, tally: Tally) -> _Texts:
    del reading
    from bert_jax.text import python_docs

    paragraphs = python_docs.read_paragraphs(epath.Path(part.path), tally.counts)
    yield (_clean(paragraph, tally.counts) for paragraph in paragraphs), None


def _read_text(part: Part, reading: Reading, tally: Tally) -> _Texts:
    del reading  # a text file has no fields
    paragraphs, size = [], 0
    for line in read_lines(part, 'text', tally.counts):
        if line and not line.isspace():
            if size >= chunks.LONGEST_DOCUMENT:
                tally.counts['long_document_cut'] += 1
                yield paragraphs, None
                paragraphs, size = [], 0
            paragraphs.append(line)
            size += len(line)
        elif paragraphs:
            yield paragraphs, None
            paragraphs, size = [], 0
    if paragraphs:
        yield paragraphs, None


def _read_jsonl(part: Part, reading: Reading, tally: Tally) -> _Texts:
    for number, line in enumerate(read_lines(part, 'jsonl', tally.counts), 1):
        if line is not None and not line.strip():
            continue
        yield from _text_or_skip(line, _parsed, reading, tally, functools.partial(line_of, part, number))


def _text_or_skip(
    record: Any, parse: Callable[[Any], dict[str, Any]], reading: Reading, tally: Tally, place: Callable[[], str]
) -> _Texts:
    """The text of a record, if it is good; else it is tallied."""
    tally.records += 1
    try:
        text = _text_of(parse(record), reading, tally.counts)
    except _BadRecord as bad:
        tally.skip(place, *bad.args)
        return
    yield text


def _parsed(line: str | None) -> dict[str, Any]:
    expected = 'a JSON object a line'
    if line is None:
        raise _BadRecord(f'is longer than {chunks.LONGEST_RECORD >> 20} MiB', expected)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        column = f' (column {error.colno})' if isinstance(error, json.JSONDecodeError) else ''
        raise _BadRecord(f'is not JSON{column}', expected) from None
    if not isinstance(record, dict):
        raise _BadRecord(f'is a JSON {type(record).__name__}', expected)
    return record


def _read_parquet(part: Part, reading: Reading, tally: Tally) -> _Texts:
    import pyarrow
    from pyarrow import parquet

    columns = [reading.text_field, *filter(None, [reading.group_field])]
    with epath.Path(part.path).open('rb') as file:
        try:
            table = parquet.ParquetFile(file)
            stop = table.metadata.num_row_groups if part.stop == -1 else part.stop
            row = sum(table.metadata.row_group(group).num_rows for group in range(part.start)) - 1
            for batch in table.iter_batches(_RECORDS_AT_ONCE, range(part.start, stop), columns):
                texts = batch.column(reading.text_field)
                if not pyarrow.types.is_null(texts.type):
                    texts = texts.cast(pyarrow.large_binary())  # decoded below, so that bad UTF-8 is counted
                groups = batch.column(reading.group_field).to_pylist() if reading.group_field else [None] * len(texts)
                for text, group in zip(texts.to_pylist(), groups, strict=True):
                    row += 1
                    record = {reading.text_field: text, reading.group_field: group}
                    place = functools.partial('{}:{}'.format, part.path, row)
                    yield from _text_or_skip(record, dict, reading, tally, place)
        except (pyarrow.ArrowException, OSError) as error:
            raise BadInput(part.path, f'cannot be read as parquet ({type(error).__name__})', 'text columns') from None


def _read_tfds(part: Part, reading: Reading, tally: Tally) -> _Texts:
    records = chunks.open_tfds(part.path, [])
    for start in range(part.start, part.stop, _RECORDS_AT_ONCE):
        indices = range(start, min(start + _RECORDS_AT_ONCE, part.stop))
        for index, record in zip(indices, records.__getitems__(indices), strict=True):
            place = functools.partial('tfds:{}:{}'.format, part.path, index)
            yield from _text_or_skip(record, dict, reading, tally, place)


_READERS: dict[str, Callable[[Part, Reading, Tally], _Texts]] = {
    'python-docs': _read_python_docs,
    'text': _read_text,
    'jsonl': _read_jsonl,
    'parquet': _read_parquet,
    'tfds': _read_tfds,
}


# --- Text out of bytes and records. ---


def _text_of(record: dict[str, Any], reading: Reading, counts: Counter) -> tuple[list[str], str | None]:
    for field in filter(None, (reading.text_field, reading.group_field)):
        if field not in record:
            raise _BadRecord(f'has no field {field!r}', ', '.join(map(str, list(record)[:20])))
    text = record[reading.text_field]
    if isinstance(text, bytes):
        text = decode(text, counts)
    if text is not None and not isinstance(text, str):
        raise _BadRecord(f'field {reading.text_field!r} is of type {type(text).__name__}', 'text')
    group = record[reading.group_field] if reading.group_field else None
    group = None if group is None else group.decode('utf-8', 'replace') if isinstance(group, bytes) else str(group)
    return _clean(text or '', counts).splitlines(), group


def _clean(text: str, counts: Counter) -> str:
    if '\0' in text:
        counts['nul_bytes_removed'] += text.count('\0')
        text = text.replace('\0', '')
    try:
        text.encode('utf-8')
    except UnicodeEncodeError:  # half of a surrogate pair, written as an escape in JSON or in a string literal
        counts['invalid_utf8_replaced'] += 1
        text = text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    return text
