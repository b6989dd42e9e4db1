"""Reads CSV and TSV files: cells may be quoted and then contain delimiters and line feeds.

Whether a line feed ends a record depends on all quotation marks before it, so a large file is scanned once for the
records at which its ranges begin. The scan looks only at quoted cells, which takes a fraction of the time of reading.
"""

import contextlib
import csv
import functools
import itertools
import mmap
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from etils import epath

from bert_jax.errors import BadInput
from bert_jax.files import is_local
from bert_jax.text import chunks
from bert_jax.text.chunks import FileRange, SizedRanges
from bert_jax.text.sources.lines import is_divisible, line_too_long_error, locate_line, read_lines
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.records import BadRecord, Texts, text_or_skip
from bert_jax.text.stats import Stats

_DELIMITERS = {'csv': ',;\t|', 'tsv': '\t'}  # {kind: delimiters that a file of this kind may have}
_HEADER_LENGTH = 1 << 16  # characters from the start of a file, in which its first record is searched for
_MAX_CELLS = 1_000_000  # of a record
_HEADER_FIX = (
    '--config.data.text_field=NAME, one of the columns; --config.data.columns=\'("NAME", …)\' if there is no header; '
    '--config.data.delimiter=CHARACTER'
)
_QUOTES = '--config.data.quotes=False, if quotation marks are part of the text'


class _Layout(NamedTuple):
    """The layout of a file; `has_header` says whether the first record names the columns."""

    columns: list[str]
    delimiter: str
    has_header: bool


def divide(kind: str, path: epath.Path, length: int, size: int, options: ReadOptions) -> SizedRanges:
    """Divides a large local file into ranges that begin at records; other files are read whole.

    Raises:
      BadInput: if a file on disk lacks a column.
    """
    whole = [(FileRange(str(path)), length)]
    if not is_local(path):
        return whole
    layout = _find_layout(kind, str(path), options)
    if length < 2 * size or not layout.delimiter.isascii() or not is_divisible(path, options.encoding):
        return whole
    borders = [0, *_record_starts(path, size, layout.delimiter, options.quotes), length]
    ranges = itertools.pairwise(borders)
    return [(FileRange(str(path), start, stop), stop - start) for start, stop in ranges] if len(borders) > 2 else whole


def _record_starts(path: epath.Path, size: int, delimiter: str, quotes: bool) -> Iterator[int]:
    """Yields where the first record after every `size` bytes begins."""
    # A cell is quoted if a quotation mark follows a delimiter or the end of a record; '""' is a mark within it.
    cell = re.compile(rb'(?<=[' + re.escape(delimiter).encode() + rb'\n\r])"[^"]*+(?:""[^"]*+)*+"?')
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begins_quoted = re.compile(rb'(?:\xef\xbb\xbf)?"[^"]*+(?:""[^"]*+)*+"?').match(data) if quotes else None
        position, target = begins_quoted.end() if begins_quoted else 0, size
        for quoted in itertools.chain(cell.finditer(data, position) if quotes else (), [None]):
            stop = quoted.start() if quoted else len(data)
            while target < stop and (newline := data.find(b'\n', max(position, target - 1), stop)) != -1:
                if newline + 1 < len(data):
                    yield newline + 1
                data.madvise(mmap.MADV_DONTNEED, 0, newline // mmap.PAGESIZE * mmap.PAGESIZE)  # bounds the memory
                target = ((newline + 1) // size + 1) * size
            position = quoted.end() if quoted else stop


def _find_layout(kind: str, path: str, options: ReadOptions) -> _Layout:
    """Finds the delimiter with which the first record names the columns that are read, or most records have `columns`.

    Raises:
      BadInput: if there is none.
    """
    head, best = _first_lines(path, options), []
    for delimiter in options.delimiter or _DELIMITERS[kind]:
        rows = _rows_of(head, delimiter, options)
        if rows and {*options.fields} <= {*rows[0]}:
            return _Layout(rows[0], delimiter, True)
        num_fitting = sum(len(cells) == len(options.columns) for cells in rows)
        if options.columns and 2 * num_fitting > len(rows):
            return _Layout(list(options.columns), delimiter, False)
        best = max([best, *rows[:1]], key=len)
    raise _layout_error(path, best, options)


def _rows_of(lines: list[str], delimiter: str, options: ReadOptions) -> list[list[str]]:
    """Returns the records of the first lines of a file; [] if they cannot be parsed."""
    rows = []
    with contextlib.suppress(csv.Error):  # of the last record, which may continue in the next line
        for cells in filter(None, _reader(lines, delimiter, options)):
            rows.append(cells)  # one by one, so that those before an error stay
    return rows


def _first_lines(path: str, options: ReadOptions) -> list[str]:
    head, length = [], 0
    for line in read_lines(FileRange(path), 'csv', Counter(), options.encoding):
        head.append(f'{line or ""}\n')
        length += len(head[-1])
        if length > _HEADER_LENGTH:
            break
    return head


def _layout_error(path: str, cells: list[str], options: ReadOptions) -> BadInput:
    if options.columns:
        expected = f'{len(options.columns)}: data.columns={",".join(options.columns)}'
        fix = '--config.data.columns, a name for each column; --config.data.delimiter=CHARACTER'
        return BadInput(f'{path}:1', f'has {len(cells)} cells', expected, fix)
    missing = next((field for field in options.fields if field not in cells), options.fields[0])
    found = f'is no header with the column {missing!r}, but {len(cells)} {"cell" if len(cells) == 1 else "cells"}'
    return BadInput(f'{path}:1', found, 'names of columns', _HEADER_FIX)  # without the cells, which may be text


def read(kind: str, file_range: FileRange, options: ReadOptions, stats: Stats) -> Texts:
    """Yields the text of the records of a file range."""
    layout = _find_layout(kind, file_range.path, options)
    parse = functools.partial(_parsed, columns=layout.columns)
    is_header = layout.has_header and not file_range.start
    for line_number, record in _read_records(file_range, layout, options, stats.counts):
        if is_header and not isinstance(record, BadRecord):
            is_header = False
            continue
        locate = functools.partial(locate_line, file_range, line_number, 'csv')
        yield from text_or_skip(record, parse, options, stats, locate)


def _parsed(cells: Any, columns: list[str]) -> dict[str, Any]:
    if isinstance(cells, BadRecord):
        raise cells
    if len(cells) != len(columns):
        expected = f'{len(columns)}, as there are columns; cells that contain the delimiter in quotation marks'
        raise BadRecord(f'has {len(cells)} {"cell" if len(cells) == 1 else "cells"}', expected)
    return dict(zip(columns, cells, strict=True))


def _read_records(
    file_range: FileRange, layout: _Layout, options: ReadOptions, counts: Counter
) -> Iterator[tuple[int, list[str] | BadRecord]]:
    """Yields (number of its first line in the range, cells of the record, or why it has none)."""
    lines = _Lines(file_range, layout.delimiter, options, counts)
    reader = _reader(lines, layout.delimiter, options)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if lines.are_over or 'field limit' in str(error):
                where = locate_line(file_range, first, 'csv')
                raise BadInput(
                    where, 'begins a quoted cell without an end', 'a closing quotation mark', _QUOTES
                ) from None
            yield first, BadRecord(f'is not CSV ({error})', 'cells with quotation marks doubled inside quoted ones')
            continue
        if cells:
            yield first, cells


class _Lines:
    """The lines of a file range for `csv.reader`; `are_over` says that it has taken all."""

    def __init__(self, file_range: FileRange, delimiter: str, options: ReadOptions, counts: Counter):
        self._lines = enumerate(read_lines(file_range, 'csv', counts, options.encoding), 1)
        self._file_range, self._delimiter = file_range, delimiter
        self.are_over = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line_number, line = next(self._lines, (0, ''))
        if not line_number:
            self.are_over = True
            raise StopIteration
        if line is None or (len(line) > _MAX_CELLS and line.count(self._delimiter) > _MAX_CELLS):
            raise line_too_long_error(locate_line(self._file_range, line_number, 'csv'))
        return f'{line}\n'


def _reader(lines: Iterable[str], delimiter: str, options: ReadOptions) -> Any:
    csv.field_size_limit(chunks.MAX_RECORD_BYTES)
    quoting = csv.QUOTE_MINIMAL if options.quotes else csv.QUOTE_NONE
    return csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
