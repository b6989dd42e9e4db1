"""Reads the lines of a range of a text or JSON file, decompressed and decoded, in bounded memory."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from etils import epath

from bert_jax.errors import BadInput
from bert_jax.text import chunks
from bert_jax.text.chunks import FileRange
from bert_jax.text.sources.compression import DECOMPRESSORS, compression_of
from bert_jax.text.sources.encodings import as_utf8, detect
from bert_jax.text.sources.formats import AUTOMATIC, HEAD_BYTES, byte_order_mark, is_utf8

Item = TypeVar('Item')
_BLOCK_BYTES = 1 << 20
# Scripts without blanks between words: Chinese and Japanese, but not Korean.
_IDEOGRAPH = re.compile('[\u2e80-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff60\U00020000-\U0003ffff]')


def read_lines(file_range: FileRange, kind: str, counts: Counter, encoding: str = 'utf-8') -> Iterator[str | None]:
    """Yields the lines of a file range. A line that is too long is split (text) or replaced by None (other kinds)."""
    longest = chunks.MAX_LINE_LENGTH if kind == 'text' else chunks.MAX_RECORD_BYTES
    carried, is_skipping = b'', False
    for block in _read_blocks(file_range, kind, resolve_encoding(file_range.path, encoding), counts):
        if kind == 'text' and b'\0' in block:
            counts['nul_bytes_removed'] += block.count(b'\0')
            block = block.replace(b'\0', b'')
        head, newline, body = block.partition(b'\n')
        carried += head
        while len(carried) > longest:
            if kind == 'text':
                end = longest - _cut_character(carried[longest - 4 : longest + 1])
                counts['long_line_split'] += 1
                yield decode(carried[:end], counts)
                carried = carried[end:]
            else:
                carried, is_skipping = b'', True
        if not newline:
            carried = b'' if is_skipping else carried
            continue
        yield None if is_skipping else decode(carried, counts).rstrip('\r')
        body, newline, carried = body.rpartition(b'\n')
        is_skipping = False
        if newline:
            yield from _decoded_lines(body, counts)
    if carried or is_skipping:
        yield None if is_skipping else decode(carried, counts).rstrip('\r')


def read_whole_lines(path: str, counts: Counter) -> Iterator[str]:
    """Yields the lines of a file, never split.

    Raises:
      BadInput: for a line of more than `MAX_RECORD_BYTES`, and for a file that is damaged or not text.
    """
    for line_number, line in enumerate(read_lines(FileRange(path), 'jsonl', counts), 1):
        if line is None:
            raise line_too_long_error(f'{path}:{line_number}')
        yield line


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields lists of `size` items, the last one possibly shorter; `itertools.batched` of Python 3.12."""
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def line_too_long_error(where: str) -> BadInput:
    """Returns the error for a line that is too long to be read into memory."""
    return BadInput(where, 'is too long', f'lines of at most {chunks.MAX_RECORD_BYTES:,} bytes')


def iter_lines(text: str, counts: Counter) -> Iterable[str]:
    """Iterates over the lines of a text as `str.splitlines` finds them, split at `MAX_LINE_LENGTH`."""
    return text.splitlines() if len(text) <= chunks.MAX_LINE_LENGTH else _iter_lines_of_long_text(text, counts)


def _iter_lines_of_long_text(text: str, counts: Counter) -> Iterator[str]:
    start = 0
    while start < len(text):
        stop = min(len(text), start + chunks.MAX_LINE_LENGTH)
        stop += text[stop - 1] == '\r' and text.startswith('\n', stop)
        lines = text[start:stop].splitlines(keepends=True)
        is_ended = stop == len(text) or len(lines[-1].splitlines()[0]) < len(lines[-1])
        if not is_ended and len(lines) > 1:
            stop -= len(lines.pop())
        elif not is_ended and text[stop].splitlines() != ['']:
            counts['long_line_split'] += 1
        for line in lines:
            yield line.splitlines()[0]
        start = stop


def join_wrapped(lines: Iterable[str]) -> Iterator[str]:
    """Joins wrapped lines into paragraphs, which blank lines separate; yields each as one line.

    Ideographs are joined without a blank between them. A paragraph longer than `MAX_LINE_LENGTH` is split.
    """
    pending, size = [], 0
    for line in lines:
        line = line.strip()
        if pending and (not line or size > chunks.MAX_LINE_LENGTH):
            yield ''.join(pending)
            pending, size = [], 0
        if line:
            if pending and not (_IDEOGRAPH.match(pending[-1][-1]) and _IDEOGRAPH.match(line)):
                pending.append(' ')
            pending.append(line)
            size += len(line) + 1
    if pending:
        yield ''.join(pending)


def _decoded_lines(body: bytes, counts: Counter) -> Iterator[str]:
    if b'\r' not in body:
        try:
            yield from body.decode('utf-8').split('\n')
            return
        except UnicodeDecodeError:
            pass  # line by line, to count the lines that are not UTF-8
    for line in body.split(b'\n'):
        yield decode(line, counts).rstrip('\r')


def _cut_character(around: bytes) -> int:
    """Returns how many bytes before the last byte of `around` the character of that byte begins."""
    return next((i for i in range(4) if around[-1 - i] & 0xC0 != 0x80), 0)


def read_file(path: str, encoding: str, counts: Counter) -> Iterator[bytes]:
    """Yields blocks of a whole text file, decompressed and in UTF-8.

    Raises:
      BadInput: for a file that is damaged, or that does not begin as text.
    """
    yield from as_utf8(path, read_bytes(path), encoding, counts)


def read_bytes(path: str) -> Iterator[bytes]:
    """Yields blocks of a file, decompressed if its name says that it is compressed."""
    with chunks.open_binary(epath.Path(path)) as file:
        decompress = DECOMPRESSORS.get(compression_of(path))
        yield from decompress(path, file) if decompress else _read_range(file, None)


def resolve_encoding(path: str, encoding: str) -> str:
    """Returns an encoding, or if it is `auto`, the one that is detected in a file."""
    return detect(path, read_bytes(path)) if encoding == AUTOMATIC else encoding


def is_divisible(path: epath.Path, encoding: str) -> bool:
    """Whether ranges of a file can be read without what precedes them: it is not compressed, and UTF-8."""
    if compression_of(path.name) or not is_utf8(encoding):
        return False
    with chunks.open_binary(path) as file:
        return byte_order_mark(file.read(HEAD_BYTES))[1] in ('', 'utf-8')


def _read_blocks(file_range: FileRange, kind: str, encoding: str, counts: Counter) -> Iterator[bytes]:
    if file_range.is_whole_file:
        yield from read_file(file_range.path, encoding, counts)
        return
    with chunks.open_binary(epath.Path(file_range.path)) as file:
        start, stop = chunks.find_range(file, file_range, kind)
        file.seek(start)
        blocks = _read_range(file, stop)
        yield from blocks if file_range.start else as_utf8(file_range.path, blocks, encoding, counts)


def _read_range(file: Any, stop: int | None) -> Iterator[bytes]:
    remaining = None if stop is None else stop - file.tell()
    while block := file.read(_BLOCK_BYTES if remaining is None else min(remaining, _BLOCK_BYTES)):
        remaining = None if remaining is None else remaining - len(block)
        yield block


def locate_line(file_range: FileRange, line_number: int, kind: str = 'jsonl') -> str:
    """Returns 'FILE:LINE' of a line of a file range; `line_number` counts from 1 in the range, LINE in the file."""
    if file_range.start:
        with chunks.open_binary(epath.Path(file_range.path)) as file:
            remaining = chunks.find_range(file, file_range, kind)[0]
            file.seek(0)
            while block := file.read(min(remaining, _BLOCK_BYTES)):
                line_number, remaining = line_number + block.count(b'\n'), remaining - len(block)
    return f'{file_range.path}:{line_number}'


def decode(data: bytes, counts: Counter) -> str:
    """Decodes UTF-8; replaces invalid bytes, and counts them and the lines (or records) that hold them."""
    try:
        return data.decode('utf-8')
    except UnicodeDecodeError:
        counts['invalid_utf8_replaced'] += 1
        counts['invalid_bytes'] += len(data) - len(data.decode('utf-8', 'ignore').encode())
        return data.decode('utf-8', 'replace')
