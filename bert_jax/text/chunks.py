"""Divides a source into chunks, the units of work of `prepare`; the division does not depend on the processes.

Small files are read together. Large ones are read by ranges: text and JSON by bytes, parquet by row groups, TFDS by
records. A compressed file can only be read from its start, so it is one chunk, read as a stream.

Each end of a byte range moves forward to a border, which any process finds alone by reading what follows:
- text: the end of the first blank line that begins at or after it. A document thus belongs to the chunk in which it
  begins (one that begins exactly at an end, to the chunk before). Without a blank line in `MAX_DOCUMENT_LENGTH` bytes,
  the border is the first line that begins there; without a line in `MAX_LINE_LENGTH` bytes, the first character.
- JSON: the first line that begins at or after it.
"""

import contextlib
import dataclasses
import glob
import io
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, cast

from etils import epath

from bert_jax.errors import BadInput
from bert_jax.files import is_local, modified_at, size_of
from bert_jax.text.formats import HEAD_BYTES, check_first_bytes

MAX_LINE_LENGTH = 1 << 20  # bytes; a longer line of a text file is split
MAX_RECORD_BYTES = 1 << 26  # bytes; a longer line of JSON is a bad record
MAX_DOCUMENT_LENGTH = 1 << 24  # characters (bytes, at a border); a longer document is cut
_MIN_CHUNK = 1 << 22  # bytes
_MAX_CHUNK = 1 << 26  # bytes
_MIN_CHUNKS = 64  # a source with fewer chunks of `_MAX_CHUNK` gets smaller ones
_RECORDS_PER_CHUNK = 1 << 14  # of TFDS, which does not know their sizes
_BUFFER_BYTES = 1 << 16
FILE_KINDS = ('text', 'jsonl', 'parquet')
_BLANK = rb'[\t\v\f\r\x1c-\x1f ]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80'
_BLANK_LINE = re.compile(rb'\n(?:' + _BLANK + rb')*\n')  # white space of any script
_VERSION = re.compile(r'[\d*]+\.[\d*]+\.[\d*]+')


@dataclasses.dataclass(frozen=True)
class FileRange:
    """A file, or a range of its bytes (text, jsonl), row groups (parquet) or records (tfds); `stop` -1 is the end."""

    path: str
    start: int = 0
    stop: int = -1

    @property
    def is_whole_file(self) -> bool:
        return (self.start, self.stop) == (0, -1)


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


def plan_source(
    source: str, source_index: int, text_field: str, group_field: str = '', documents: str = 'blank_lines'
) -> Source:
    """Divides a source into chunks, after a look at its files: sizes, first bytes, columns. Empty files are skipped.

    Raises:
      BadInput: for an unknown kind of source, one without files or with empty files only, files of another format, or a
        table without a requested column.
    """
    kind, _, location = source.partition(':')
    if source == 'python-docs':
        from bert_jax.text import python_docs

        sized = [(FileRange(str(path)), path.stat().st_size) for _, path in python_docs.find_modules()]
        return Source(source, _grouped(kind, source_index, sized), {})  # reinstalling a package would change the times
    if kind == 'tfds':
        records = open_tfds(location, [text_field, *filter(None, [group_field])])
        ranges = _ranges(len(records), _RECORDS_PER_CHUNK)
        chunks = [
            Chunk(kind, source_index, (FileRange(location, start, stop),), stop - start) for start, stop in ranges
        ]
        return Source(source, tuple(chunks), {})
    if kind not in FILE_KINDS:
        expected = 'python-docs, text:GLOB, jsonl:GLOB, parquet:GLOB or tfds:NAME'
        raise BadInput('config.data.source', f'is {source!r}', expected)
    paths = find_files(location)
    if not paths:
        raise _no_file_error(source, location)
    files = _sizes_and_times(paths)
    paths = [path for path in paths if files[str(path)][0]]
    if not paths:
        raise BadInput(next(iter(files)), 'is empty', 'a file with text')
    for path in filter(is_local, paths):  # remote files are checked when they are read
        check_first_bytes(str(path), _first_bytes(path), kind)
    size = min(_MAX_CHUNK, max(_MIN_CHUNK, sum(length for length, _ in files.values()) // _MIN_CHUNKS))
    if kind == 'parquet':
        sized = [file_range for path in paths for file_range in _row_groups(path, size, [text_field, group_field])]
    else:
        is_one_document = kind == 'text' and documents == 'file'
        sized = [
            file_range
            for path in paths
            for file_range in _byte_ranges(path, files[str(path)][0], size, never_divided=is_one_document)
        ]
    return Source(source, _grouped(kind, source_index, sized, size), files)


def _first_bytes(path: epath.Path) -> bytes:
    try:
        with path.open('rb') as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise BadInput(str(path), f'cannot be read ({error.strerror or error})', 'a file to read') from error


def _no_file_error(source: str, pattern: str) -> BadInput:
    where = f'config.data.source={source}'
    if is_local(pattern) and os.path.isdir(pattern):
        fix = f"--config.data.source='{source.rstrip('/')}/*' (/** also matches files in subdirectories)"
        return BadInput(where, f'{pattern} is a directory', 'a file, or a pattern that matches files', fix)
    is_relative = is_local(pattern) and not os.path.isabs(pattern)
    directory = f' in {os.getcwd()}' if is_relative else ''
    return BadInput(where, f'no file matches {pattern}{directory}', 'a file, or a pattern that matches files')


def find_files(pattern: str) -> list[epath.Path]:
    """Returns the files that match a glob, sorted by name."""
    if not is_local(pattern):
        head, _, tail = pattern.partition('*')
        root = head.rpartition('/')[0]
        files = sorted(epath.Path(root).glob(pattern[len(root) + 1 :])) if tail or '*' in pattern else []
        files = files or [path for path in [epath.Path(pattern)] if path.exists()]
    else:
        files = [epath.Path(name) for name in sorted(_local_names(pattern))]
    return [path for path in files if not path.is_dir()]


def _local_names(pattern: str) -> list[str]:
    """Returns the matches of a glob. If there are none, leading directories with such names are taken literally."""
    if found := glob.glob(pattern, recursive=True):
        return found
    names = pattern.split('/')
    for end in range(len(names), 0, -1):
        literal = '/'.join(names[:end])
        if glob.has_magic(literal) and os.path.exists(literal):
            return glob.glob('/'.join([glob.escape(literal), *names[end:]]), recursive=True)
    return []


def stat_files(source: str) -> dict[str, list[int]]:
    """Returns {path: [bytes, modification time]} of a source of files; {} for other sources, or without files."""
    kind, _, location = source.partition(':')
    return _sizes_and_times(find_files(location)) if kind in FILE_KINDS else {}


def _sizes_and_times(paths: list[epath.Path]) -> dict[str, list[int]]:
    return {str(path): [size_of(path), int(modified_at(path))] for path in paths}


def _grouped(
    kind: str, source_index: int, sized: list[tuple[FileRange, int]], size: int = _MIN_CHUNK
) -> tuple[Chunk, ...]:
    """Groups consecutive ranges into chunks of at most `size` bytes, or of one range."""
    chunks, ranges, total = [], [], 0
    for file_range, length in sized:
        if ranges and total + length > size:
            chunks.append(Chunk(kind, source_index, tuple(ranges), total))
            ranges, total = [], 0
        ranges.append(file_range)
        total += length
    return (*chunks, Chunk(kind, source_index, tuple(ranges), total))


def _ranges(length: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, size):
        yield start, min(start + size, length)


def _byte_ranges(path: epath.Path, length: int, size: int, *, never_divided: bool) -> list[tuple[FileRange, int]]:
    if never_divided or path.suffix in ('.gz', '.zst') or length < 2 * size:
        return [(FileRange(str(path)), length)]
    return [(FileRange(str(path), start, stop), stop - start) for start, stop in _ranges(length, size)]


def _row_groups(path: epath.Path, size: int, fields: list[str]) -> list[tuple[FileRange, int]]:
    from bert_jax.text.parquet import plan_row_groups

    sizes = plan_row_groups(path, [field for field in fields if field])
    if sum(sizes) < 2 * size:
        return [(FileRange(str(path)), sum(sizes))]
    return [(FileRange(str(path), group, group + 1), sizes[group]) for group in range(len(sizes))]


def check_field(field: str, names: Iterable[str], where: str) -> None:
    """Raises `BadInput` if `field` is not among the names of the data's fields."""
    names = list(names)
    if field not in names:
        fix = '--config.data.text_field=NAME (or group_field)'
        raise BadInput(where, f'has no field {field!r}', ', '.join(names), fix)


def open_tfds(spec: str, fields: list[str]) -> Any:
    """Opens the records of `NAME[/CONFIG][:VERSION][:SPLIT]`, indexable and without TensorFlow.

    Raises:
      BadInput: for a dataset, split or feature that does not exist.
    """
    import tensorflow_datasets as tfds

    head, bracket, slicing = spec.partition('[')  # a slice may contain colons: train[:10%]
    name, _, split = head.rpartition(':')
    if not name or _VERSION.fullmatch(split):
        name, split = head, 'train'
    split += bracket + slicing
    where = f'config.data.source=tfds:{spec}'
    try:
        builder: Any = tfds.builder(name, file_format='array_record')
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        found = f'is not a dataset that TFDS can open ({type(error).__name__})'
        raise BadInput(where, found, 'NAME[/CONFIG][:VERSION][:SPLIT]') from None
    for field in fields:
        check_field(field, builder.info.features, where)
    builder.download_and_prepare(file_format='array_record')
    if split.partition('[')[0].partition('+')[0] not in builder.info.splits:
        raise BadInput(where, f'has no split {split!r}', ', '.join(builder.info.splits))
    return builder.as_data_source(split=split)


# --- Borders. ---


@contextlib.contextmanager
def open_binary(path: epath.Path) -> Iterator[BinaryIO]:
    """Opens a local or remote file for reading, as a buffered file whose `readline` takes a limit."""
    with path.open('rb') as file:
        yield (
            file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, file), _BUFFER_BYTES)
        )


def find_range(file: BinaryIO, file_range: FileRange, kind: str) -> tuple[int, int]:
    """Returns the (start, stop) of the bytes that belong to a range of a text or JSON file."""
    end = file.seek(0, 2)
    stop = end if file_range.stop == -1 else file_range.stop
    return _border(file, file_range.start, end, kind), _border(file, stop, end, kind)


def _border(file: BinaryIO, position: int, end: int, kind: str) -> int:
    if position <= 0 or position >= end:
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
