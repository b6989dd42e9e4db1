"""A source -> chunks: what one process reads in one go, the same however many processes there are.

Small files are read together, large ones by ranges: text and JSON by bytes, parquet by row groups, TFDS by records.
A compressed file has no place to begin but its start: it is one chunk, read as a stream.

A range of bytes is moved to borders that any process finds alone by looking at what follows its two ends:
- text: behind the first blank line that begins at or after the end, so that a document belongs to the chunk in which it
  begins (one that begins right at an end, to the chunk before); where there is none within `MAX_DOCUMENT_LENGTH` bytes,
  the first line that begins there; where there is none of these within `MAX_LINE_LENGTH` bytes, the first character.
- JSON: the first line that begins at or after the end.
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

MAX_LINE_LENGTH = 1 << 20  # bytes; a longer line of a text file is read as several
MAX_RECORD_BYTES = 1 << 26  # bytes; a longer line of JSON is a bad record
MAX_DOCUMENT_LENGTH = 1 << 24  # characters (bytes, at a border); a longer document is cut into several
_MIN_CHUNK = 1 << 22  # bytes
_MAX_CHUNK = 1 << 26  # bytes
_CHUNKS = 64  # chunks are smaller than `_MAX_CHUNK` if there would be fewer of them
_RECORDS_PER_CHUNK = 1 << 14  # of TFDS, which does not tell bytes
_BUFFER_BYTES = 1 << 16
FILE_KINDS = ('text', 'jsonl', 'parquet')
_BLANK = rb'[\t\v\f\r\x1c-\x1f ]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80'
_BLANK_LINE = re.compile(rb'\n(?:' + _BLANK + rb')*\n')  # white space of any script
_VERSION = re.compile(r'[\d*]+\.[\d*]+\.[\d*]+')


@dataclasses.dataclass(frozen=True)
class FileRange:
    """A file, or a range of it: bytes (text, jsonl), row groups (parquet), records (tfds). `stop` -1 is the end."""

    path: str
    start: int = 0
    stop: int = -1

    @property
    def is_whole_file(self) -> bool:
        return (self.start, self.stop) == (0, -1)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """What is read in one go; `source_index` is the index of its source."""

    kind: str
    source_index: int
    ranges: tuple[FileRange, ...]
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class Source:
    """The chunks of a source in order, and what its files were when it was looked at: {path: [bytes, mtime_ns]}."""

    name: str
    chunks: tuple[Chunk, ...]
    files: dict[str, list[int]]


def plan_source(
    source: str, source_index: int, text_field: str, group_field: str = '', documents: str = 'blank_lines'
) -> Source:
    """Looks at a source's files: their sizes, their first bytes, the columns of tables. Empty files are left out.

    Raises:
      BadInput: for a source that is unknown, has no file or only empty ones, files of another format, a table without
        a column.
    """
    kind, _, rest = source.partition(':')
    if source == 'python-docs':
        from bert_jax.text import python_docs

        sized = [(FileRange(str(path)), path.stat().st_size) for _, path in python_docs.find_modules()]
        return Source(source, _grouped(kind, source_index, sized), {})  # installing again would change the times
    if kind == 'tfds':
        records = open_tfds(rest, [text_field, *filter(None, [group_field])])
        ranges = _ranges(len(records), _RECORDS_PER_CHUNK)
        chunks = [Chunk(kind, source_index, (FileRange(rest, a, b),), b - a) for a, b in ranges]
        return Source(source, tuple(chunks), {})
    if kind not in FILE_KINDS:
        raise BadInput('config.data.source', f'is {source!r}', 'python-docs, text:, jsonl:, parquet: or tfds:')
    paths = find_files(rest)
    if not paths:
        raise _no_file_error(source, rest)
    files = _sizes_and_times(paths)
    paths = [path for path in paths if files[str(path)][0]]
    if not paths:
        raise BadInput(next(iter(files)), 'is empty: it holds no text', 'a file with text')
    for path in filter(is_local, paths):  # of an object store they are looked at when the file is read
        check_first_bytes(str(path), _first_bytes(path), kind)
    size = min(_MAX_CHUNK, max(_MIN_CHUNK, sum(length for length, _ in files.values()) // _CHUNKS))
    if kind == 'parquet':
        sized = [file_range for path in paths for file_range in _row_groups(path, size, [text_field, group_field])]
    else:
        whole = kind == 'text' and documents == 'file'
        sized = [file_range for path in paths for file_range in _byte_ranges(path, files[str(path)][0], size, whole)]
    return Source(source, _grouped(kind, source_index, sized, size), files)


def _first_bytes(path: epath.Path) -> bytes:
    try:
        with path.open('rb') as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise BadInput(str(path), f'cannot be read ({error.strerror or error})', 'a file to read') from error


def _no_file_error(source: str, pattern: str) -> BadInput:
    where, expected = f'data.source={source}', 'at least one file'
    if is_local(pattern) and os.path.isdir(pattern):
        fix = f"--config.data.source='{source.rstrip('/')}/*' (with /** the files in its subdirectories too)"
        return BadInput(where, f'{pattern} is a directory', 'a file, or a pattern that matches files', fix)
    return BadInput(where, f'no file matches {pattern}', expected)


def find_files(pattern: str) -> list[epath.Path]:
    """The files of a glob, sorted by name."""
    if not is_local(pattern):
        head, _, tail = pattern.partition('*')
        root = head.rpartition('/')[0]
        files = sorted(epath.Path(root).glob(pattern[len(root) + 1 :])) if tail or '*' in pattern else []
        files = files or [path for path in [epath.Path(pattern)] if path.exists()]
    else:
        files = [epath.Path(name) for name in sorted(_local_names(pattern))]
    return [path for path in files if not path.is_dir()]


def _local_names(pattern: str) -> list[str]:
    """What a glob matches. Where nothing does, a leading directory that exists under that very name is no pattern."""
    if found := glob.glob(pattern, recursive=True):
        return found
    parts = pattern.split('/')
    for end in range(len(parts), 0, -1):
        literal = '/'.join(parts[:end])
        if glob.has_magic(literal) and os.path.exists(literal):
            return glob.glob('/'.join([glob.escape(literal), *parts[end:]]), recursive=True)
    return []


def stat_files(source: str) -> dict[str, list[int]]:
    """{path: [bytes, time of the last change]} of a source that is files; {} of another, or where there are none."""
    kind, _, rest = source.partition(':')
    return _sizes_and_times(find_files(rest)) if kind in FILE_KINDS else {}


def _sizes_and_times(paths: list[epath.Path]) -> dict[str, list[int]]:
    return {str(path): [size_of(path), int(modified_at(path))] for path in paths}


def _grouped(
    kind: str, source_index: int, sized: list[tuple[FileRange, int]], size: int = _MIN_CHUNK
) -> tuple[Chunk, ...]:
    """Parts in order, as many to a chunk as keep within `size`, at least one."""
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


def _byte_ranges(path: epath.Path, length: int, size: int, whole: bool) -> list[tuple[FileRange, int]]:
    if whole or path.suffix in ('.gz', '.zst') or length < 2 * size:
        return [(FileRange(str(path)), length)]
    return [(FileRange(str(path), a, b), b - a) for a, b in _ranges(length, size)]


def _row_groups(path: epath.Path, size: int, fields: list[str]) -> list[tuple[FileRange, int]]:
    from bert_jax.text.parquet import plan_row_groups

    sizes = plan_row_groups(path, [field for field in fields if field])
    if sum(sizes) < 2 * size:
        return [(FileRange(str(path)), sum(sizes))]
    return [(FileRange(str(path), group, group + 1), sizes[group]) for group in range(len(sizes))]


def check_field(field: str, names: Iterable[str], where: str) -> None:
    """Raises `BadInput` when the data have no such field."""
    names = list(names)
    if field not in names:
        fix = '--config.data.text_field=NAME (or group_field)'
        raise BadInput(where, f'has no field {field!r}', ', '.join(names), fix)


def open_tfds(spec: str, fields: list[str]) -> Any:
    """The records of `NAME[/CONFIG][:VERSION][:SPLIT]`, readable by index, without TensorFlow.

    Raises:
      BadInput: for a dataset, a split or a feature that is not there.
    """
    import tensorflow_datasets as tfds

    head, bracket, slicing = spec.partition('[')  # a slice may hold colons of its own: train[:10%]
    name, _, split = head.rpartition(':')
    if not name or _VERSION.fullmatch(split):
        name, split = head, 'train'
    split += bracket + slicing
    where = f'data.source=tfds:{spec}'
    try:
        builder: Any = tfds.builder(name, file_format='array_record')
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        found = f'is not a dataset here ({type(error).__name__})'
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
    """Opens a file for reading; those of object stores too know how to read a line up to a length."""
    with path.open('rb') as file:
        yield (
            file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, file), _BUFFER_BYTES)
        )


def find_range(file: BinaryIO, file_range: FileRange, kind: str) -> tuple[int, int]:
    """The bytes (start, stop) that belong to a part of a text or JSON file."""
    end = file.seek(0, 2)
    stop = end if file_range.stop == -1 else file_range.stop
    return _border(file, file_range.start, end, kind), _border(file, stop, end, kind)


def _border(file: BinaryIO, place: int, end: int, kind: str) -> int:
    if place <= 0 or place >= end:
        return max(0, min(place, end))
    file.seek(place - 1)
    if kind == 'jsonl':
        while (line := file.readline(MAX_LINE_LENGTH)) and not line.endswith(b'\n'):
            pass
        return file.tell()
    line = file.readline(MAX_LINE_LENGTH + 1)
    if not line.endswith(b'\n'):
        return end if file.tell() == end and len(line) <= MAX_LINE_LENGTH else place + first_character(line[1:])
    first_line = file.tell()
    found = _after_blank_line(file, first_line, place + MAX_DOCUMENT_LENGTH)
    return first_line if found is None else found


def _after_blank_line(file: BinaryIO, start: int, limit: int) -> int | None:
    """Where the first blank line that begins at or after `start` ends, or the file; None if it begins after `limit`."""
    position, rest = start - 1, b''
    file.seek(position)  # at the end of a line
    while position + 1 < limit:
        block = file.read(_BUFFER_BYTES)
        data = rest + block
        if found := _BLANK_LINE.search(data):
            return position + found.end() if position + found.start() + 1 < limit else None
        if not block:
            return file.tell()
        kept = data.rfind(b'\n')
        kept = len(data) if kept == -1 or len(data) - kept > MAX_LINE_LENGTH else kept
        position, rest = position + kept, data[kept:]
    return None


def first_character(data: bytes) -> int:
    """Where the first whole UTF-8 character of some bytes begins: 0 to 3."""
    return next((i for i, byte in enumerate(data[:3]) if byte & 0xC0 != 0x80), min(3, len(data)))
