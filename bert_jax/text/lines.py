"""A part of a text or JSON file -> its lines, decompressed and decoded, none longer than fits into memory."""

import codecs
import gzip
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from etils import epath

from bert_jax.errors import BadInput
from bert_jax.text import chunks
from bert_jax.text.chunks import FileRange
from bert_jax.text.formats import HEAD_BYTES, check_text

Item = TypeVar('Item')
_BLOCK_BYTES = 1 << 20
# Scripts that put no blanks between words: Chinese and Japanese, not Korean.
_IDEOGRAPH = re.compile('[\u2e80-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff60\U00020000-\U0003ffff]')
_ZST_BYTES = 1 << 11  # compressed: four bytes of zstd may stand for 128 KiB


def read_lines(file_range: FileRange, kind: str, counts: Counter) -> Iterator[str | None]:
    """The lines of a part. One that is too long comes as several (text) or as None (JSON)."""
    longest = chunks.MAX_LINE_LENGTH if kind == 'text' else chunks.MAX_RECORD_BYTES
    rest, is_skipping = b'', False
    for block in _read_blocks(file_range, kind):
        if kind == 'text' and b'\0' in block:
            counts['nul_bytes_removed'] += block.count(b'\0')
            block = block.replace(b'\0', b'')
        head, newline, body = block.partition(b'\n')
        rest += head
        while len(rest) > longest:
            if kind == 'text':
                end = longest - _cut_character(rest[longest - 4 : longest + 1])
                counts['long_line_split'] += 1
                yield decode(rest[:end], counts)
                rest = rest[end:]
            else:
                rest, is_skipping = b'', True
        if not newline:
            rest = b'' if is_skipping else rest
            continue
        yield None if is_skipping else decode(rest, counts).rstrip('\r')
        body, newline, rest = body.rpartition(b'\n')
        is_skipping = False
        if newline:
            yield from _decoded_lines(body, counts)
    if rest or is_skipping:
        yield None if is_skipping else decode(rest, counts).rstrip('\r')


def read_whole_lines(path: str, counts: Counter) -> Iterator[str]:
    """The lines of a file, each as a whole.

    Raises:
      BadInput: for a line of more than `MAX_RECORD_BYTES` bytes, and for a file that is damaged or of another kind.
    """
    for number, line in enumerate(read_lines(FileRange(path), 'jsonl', counts), 1):
        if line is None:
            raise line_too_long_error(f'{path}:{number}')
        yield line


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter; as `itertools.batched` of Python 3.12."""
    remaining = iter(items)
    while some := list(itertools.islice(remaining, size)):
        yield some


def line_too_long_error(where: str) -> BadInput:
    """The error for a line that is not read into memory."""
    return BadInput(where, 'is too long a line', f'lines of at most {chunks.MAX_RECORD_BYTES:,} bytes')


def iter_lines(text: str, counts: Counter) -> Iterable[str]:
    """The lines of a text, as `str.splitlines` finds them; one of more than `MAX_LINE_LENGTH` comes in parts."""
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
    """Lines that were wrapped at some width -> the paragraphs between blank lines, each in one line.

    Ideographs are joined without a blank between them. A paragraph that is longer than a line may be comes in parts.
    """
    held, size = [], 0
    for line in lines:
        line = line.strip()
        if held and (not line or size > chunks.MAX_LINE_LENGTH):
            yield ''.join(held)
            held, size = [], 0
        if line:
            if held and not (_IDEOGRAPH.match(held[-1][-1]) and _IDEOGRAPH.match(line)):
                held.append(' ')
            held.append(line)
            size += len(line) + 1
    if held:
        yield ''.join(held)


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
    """How many bytes before the last of `around` its character begins; 0 when it begins with it."""
    return next((i for i in range(4) if around[-1 - i] & 0xC0 != 0x80), 0)


def _read_blocks(file_range: FileRange, kind: str) -> Iterator[bytes]:
    path = epath.Path(file_range.path)
    with chunks.open_binary(path) as file:
        if path.suffix == '.zst':
            blocks = _decompress_zst(path, file)
        elif path.suffix == '.gz':
            blocks = _read_gz(path, file)
        else:
            start, stop = (0, None) if file_range.is_whole_file else chunks.find_range(file, file_range, kind)
            file.seek(start)
            blocks = _read_range(file, stop)
        yield from blocks if file_range.start else _checked(file_range.path, blocks)


def _checked(path: str, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks of a file without its byte order mark; raises `BadInput` when the first bytes are not of UTF-8."""
    first: list[bytes] = []
    while sum(map(len, first)) < HEAD_BYTES and (block := next(blocks, b'')):
        first.append(block)
    head = b''.join(first)[:HEAD_BYTES]
    check_text(path, head)
    mark = len(codecs.BOM_UTF8) * head.startswith(codecs.BOM_UTF8)
    for block in itertools.chain(first, blocks):
        if block[mark:]:
            yield block[mark:]
        mark = max(0, mark - len(block))


def _read_range(file: Any, stop: int | None) -> Iterator[bytes]:
    left = None if stop is None else stop - file.tell()
    while block := file.read(_BLOCK_BYTES if left is None else min(left, _BLOCK_BYTES)):
        left = None if left is None else left - len(block)
        yield block


def _read_gz(path: epath.Path, file: Any) -> Iterator[bytes]:
    try:
        stream = gzip.GzipFile(fileobj=file)
        while block := stream.read(_BLOCK_BYTES):
            yield block
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged_error(path, error) from None


def _decompress_zst(path: epath.Path, file: Any) -> Iterator[bytes]:
    """Frame by frame: the stream reader of zstandard takes a truncated file for a complete one."""
    import zstandard

    frame, rest = None, b''
    try:
        while data := rest or file.read(_ZST_BYTES):
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            if block := frame.decompress(data):
                yield block
            rest = frame.unused_data if frame.eof else b''
            frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise _damaged_error(path, error) from None
    if frame is not None:
        raise _damaged_error(path, EOFError())


def _damaged_error(path: epath.Path, error: Exception) -> BadInput:
    return BadInput(str(path), f'is truncated or damaged ({type(error).__name__})', 'a complete file', 'copy it again')


def locate_line(file_range: FileRange, number: int) -> str:
    """The place of the `number`th line of a part, counted from the beginning of its file."""
    if file_range.start:
        with chunks.open_binary(epath.Path(file_range.path)) as file:
            left = chunks.find_range(file, file_range, 'jsonl')[0]
            file.seek(0)
            while block := file.read(min(left, _BLOCK_BYTES)):
                number, left = number + block.count(b'\n'), left - len(block)
    return f'{file_range.path}:{number}'


def decode(data: bytes, counts: Counter) -> str:
    """UTF-8; what is not is replaced, and its lines (or records) and bytes are counted."""
    try:
        return data.decode('utf-8')
    except UnicodeDecodeError:
        counts['invalid_utf8_replaced'] += 1
        counts['invalid_bytes'] += len(data) - len(data.decode('utf-8', 'ignore').encode())
        return data.decode('utf-8', 'replace')
