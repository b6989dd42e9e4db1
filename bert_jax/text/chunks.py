"""Chunks of a source, the units of work of `prepare`; the division does not depend on the processes.

Small files are read together. Large ones are read by ranges: text, JSON and CSV by bytes, parquet by row groups, Arrow
by batches, TFDS by records. A file that is compressed or not UTF-8 can only be read from its start, so it is one chunk,
read as a stream.

Each end of a byte range moves forward to a border, which any process finds alone by reading what follows:
- text: the end of the first blank line that begins at or after it. A document thus belongs to the chunk in which it
  begins (one that begins exactly at an end, to the chunk before). Without a blank line in `MAX_DOCUMENT_LENGTH` bytes,
  the border is the first line that begins there; without a line in `MAX_LINE_LENGTH` bytes, the first character.
- JSON: the first line that begins at or after it.
The ranges of CSV files begin at records; see `sources/delimited.py`.
"""

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator
from typing import BinaryIO, cast

from etils import epath

MAX_LINE_LENGTH = 1 << 20  # bytes; a longer line of a text file is split
MAX_RECORD_BYTES = 1 << 26  # bytes; a longer line of JSON is a bad record
MAX_DOCUMENT_LENGTH = 1 << 24  # characters (bytes, at a border); a longer document is cut
_MIN_CHUNK = 1 << 22  # bytes
_MAX_CHUNK = 1 << 26  # bytes
_MIN_CHUNKS = 64  # a source with fewer chunks of `_MAX_CHUNK` gets smaller ones
_BUFFER_BYTES = 1 << 16
_BLANK = rb'[\t\v\f\r\x1c-\x1f ]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80'
_BLANK_LINE = re.compile(rb'\n(?:' + _BLANK + rb')*\n')  # white space of any script


@dataclasses.dataclass(frozen=True)
class FileRange:
    """A file, or a range of its bytes (text, jsonl, csv), row groups (parquet), batches (arrow) or records (tfds).

    `stop` -1 is the end.
    """

    path: str
    start: int = 0
    stop: int = -1

    @property
    def is_whole_file(self) -> bool:
        return (self.start, self.stop) == (0, -1)


SizedRanges = list[tuple[FileRange, int]]  # with the bytes of each


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A unit of work; `source_index` is the index of its source."""

    kind: str
    source_index: int
    ranges: tuple[FileRange, ...]
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class Source:
    """The chunks of a source in order, and the state of its files, {path: [bytes, modification time]}."""

    name: str
    chunks: tuple[Chunk, ...]
    files: dict[str, list[int]]


def grouped(kind: str, source_index: int, sized: SizedRanges, size: int = _MIN_CHUNK) -> tuple[Chunk, ...]:
    """Groups consecutive ranges into chunks of at most `size` bytes, or of one range."""
    chunks, ranges, total = [], [], 0
    for file_range, length in sized:
        if ranges and total + length > size:
            chunks.append(Chunk(kind, source_index, tuple(ranges), total))
            ranges, total = [], 0
        ranges.append(file_range)
        total += length
    return (*chunks, Chunk(kind, source_index, tuple(ranges), total))


def chunk_size(total: int) -> int:
    """Returns the size of the chunks of a source of `total` bytes."""
    return min(_MAX_CHUNK, max(_MIN_CHUNK, total // _MIN_CHUNKS))


def steps(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of the ranges of `size` that cover [0, length)."""
    for start in range(0, length, size):
        yield start, min(start + size, length)


# --- Borders. ---


@contextlib.contextmanager
def open_binary(path: epath.Path) -> Iterator[BinaryIO]:
    """Opens a local or remote file for reading, as a buffered file whose `readline` takes a limit."""
    with path.open('rb') as file:
        yield (
            file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, file), _BUFFER_BYTES)
        )


def find_range(file: BinaryIO, file_range: FileRange, kind: str) -> tuple[int, int]:
    """Returns the (start, stop) of the bytes that belong to a range of a file; those of CSV files are exact."""
    end = file.seek(0, 2)
    stop = end if file_range.stop == -1 else file_range.stop
    return _border(file, file_range.start, end, kind), _border(file, stop, end, kind)


def _border(file: BinaryIO, position: int, end: int, kind: str) -> int:
    if kind == 'csv' or position <= 0 or position >= end:
        return max(0, min(position, end))
    file.seek(position - 1)
    if kind == 'jsonl':
        while (line := file.readline(MAX_LINE_LENGTH)) and not line.endswith(b'\n'):
            pass
        return file.tell()
    line = file.readline(MAX_LINE_LENGTH + 1)
    if not line.endswith(b'\n'):
        return end if file.tell() == end and len(line) <= MAX_LINE_LENGTH else position + first_character(line[1:])
    first_line = file.tell()
    next_document = _after_blank_line(file, first_line, position + MAX_DOCUMENT_LENGTH)
    return first_line if next_document is None else next_document


def _after_blank_line(file: BinaryIO, start: int, limit: int) -> int | None:
    """Returns the end of the first blank line that begins in [start, limit), or of the file if that ends first."""
    position, carried = start - 1, b''
    file.seek(position)  # the last byte of a line
    while position + 1 < limit:
        block = file.read(_BUFFER_BYTES)
        data = carried + block
        if match := _BLANK_LINE.search(data):
            return position + match.end() if position + match.start() + 1 < limit else None
        if not block:
            return file.tell()
        cut = data.rfind(b'\n')
        cut = len(data) if cut == -1 or len(data) - cut > MAX_LINE_LENGTH else cut
        position, carried = position + cut, data[cut:]
    return None


def first_character(data: bytes) -> int:
    """Returns the offset, 0 to 3, of the first whole UTF-8 character."""
    return next((i for i, byte in enumerate(data[:3]) if byte & 0xC0 != 0x80), min(3, len(data)))
