"""Reads the main text of HTML pages and web archives with resiliparse (the extra `web`)."""

import importlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from etils import epath

from bert_jax.errors import BadInput
from bert_jax.text import chunks
from bert_jax.text.chunks import FileRange, SizedRanges
from bert_jax.text.sources.compression import compression_of
from bert_jax.text.sources.formats import AUTOMATIC, byte_order_mark, is_utf8
from bert_jax.text.sources.lines import iter_lines, read_bytes
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.records import Texts, clean
from bert_jax.text.stats import Stats

_EXTRACTION = 'resiliparse.extract.html2text'
_TOO_LARGE = f'holds more than {chunks.MAX_RECORD_BYTES >> 20} MiB'
_EXPECTED = 'an HTML page'
_WARC_HEAD_BYTES = 1 << 20
_WARC_HEADER = re.compile(rb'\s*WARC/.*?\r?\n\r?\n', re.DOTALL)
_CONTENT_LENGTH = re.compile(rb'^content-length:[ \t]*(\d+)', re.IGNORECASE | re.MULTILINE)
_HTML = ('text/html', 'application/xhtml+xml')
_HEAD_BYTES = 1 << 10  # of a response without a type, inspected
_HTML_START = re.compile(rb'(?:\xef\xbb\xbf)?\s*<(?:!doctype html|!--|html|head|body|title|meta|h1|div|p)[\s>]', re.I)


def divide(path: epath.Path, length: int, size: int, options: ReadOptions) -> SizedRanges:
    """Returns the whole file as one range.

    Raises:
      BadInput: if the library is missing.
    """
    del size, options
    _library(_EXTRACTION)
    return [(FileRange(str(path)), length)]


def read_html(file_range: FileRange, options: ReadOptions, stats: Stats) -> Texts:
    """Yields the main text of a page."""
    page = _Stream(read_bytes(file_range.path)).read_all(chunks.MAX_RECORD_BYTES + 1)
    yield from _text_of_page(page, '', options, stats, file_range.path)


def read_warc(file_range: FileRange, options: ReadOptions, stats: Stats) -> Texts:
    """Yields the main text of each HTML page of a web archive, and each plain text of a WET file.

    Records of other types are counted. A response without a type is read if it begins like HTML.
    """
    types = _library('fastwarc.warc').WarcRecordType
    wanted = (types.response, types.resource, types.conversion)
    last = 0
    try:
        stream: Any = _Stream(read_bytes(file_range.path))
        for index, record in enumerate(
            _library('fastwarc.warc').ArchiveIterator(stream, record_types=types.any_type, auto_decode='all')
        ):
            last = record.stream_pos
            if record.record_type not in wanted:
                continue
            kind, head = _content_type(record), b''
            where = f'{file_range.path}, record {index + 1}'
            if not kind:
                head = record.reader.read(_HEAD_BYTES)
                kind = _HTML[0] if _HTML_START.match(head) else ''
            if kind in _HTML:
                page = head + record.reader.read(chunks.MAX_RECORD_BYTES + 1 - len(head))
                yield from _text_of_page(page, record.http_charset or '', options, stats, where)
            elif kind == 'text/plain' and record.record_type == types.conversion:
                text = record.reader.read(chunks.MAX_RECORD_BYTES).decode('utf-8', 'replace')
                yield iter_lines(clean(text, stats.counts), stats.counts), None
            else:
                stats.counts['other_content_type'] += 1
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged_error(file_range.path, str(error)) from None
    if not compression_of(file_range.path):
        _check_record_is_whole(file_range.path, last)


def _check_record_is_whole(path: str, position: int) -> None:
    """Raises `BadInput` if a WARC file ends within the record at a position: fastwarc only gives a shorter record."""
    with chunks.open_binary(epath.Path(path)) as file:
        file.seek(position)
        head = file.read(_WARC_HEAD_BYTES)
        end = file.seek(0, 2)
    header = _WARC_HEADER.match(head)
    length = _CONTENT_LENGTH.search(header[0]) if header else None
    if header is None or length is None or position + header.end() + int(length[1]) > end:
        raise _damaged_error(path, 'its last record is cut')


def _damaged_error(path: str, why: str) -> BadInput:
    return BadInput(path, f'is damaged ({why})', 'a complete WARC file', 'copy it again')


def _content_type(record: Any) -> str:
    """Returns the type of the content of a WARC record in lower case, without parameters; '' if none is declared."""
    declared = record.http_content_type if record.is_http else record.headers.get('Content-Type')
    return (declared or '').partition(';')[0].strip().lower()


def _text_of_page(page: bytes, declared: str, options: ReadOptions, stats: Stats, where: str) -> Texts:
    """Yields the lines of the text of a page, or counts it as a bad record.

    Args:
      declared: the encoding that the server declared, or ''.
    """
    stats.records += 1
    if len(page) > chunks.MAX_RECORD_BYTES:
        stats.skip_record(lambda: where, _TOO_LARGE, _EXPECTED)
        return
    extract = _library(_EXTRACTION).extract_plain_text
    html = _decoded(page, declared, options.encoding, stats.counts)
    text = extract(html, main_content=True, alt_texts=False, list_bullets=False, comments=False)
    yield iter_lines(clean(text, stats.counts), stats.counts), None


def _decoded(page: bytes, declared: str, encoding: str, counts: Counter) -> str:
    """Decodes a page as `data.encoding` says, or else as the page or the server does, or as its bytes suggest."""
    encodings = _library('resiliparse.parse.encoding')
    if encoding == AUTOMATIC or is_utf8(encoding):
        marked = byte_order_mark(page)[1]
        # A declared encoding that browsers do not know is ignored, as they do.
        declared = encodings.map_encoding_to_html5(declared, False) or ''
        encoding = marked or declared or encodings.detect_encoding(page, from_html_meta=True) or 'utf-8'
    html = encodings.bytes_to_str(page, encoding, 'replace', fallback_encodings=())
    counts['invalid_bytes'] += html.count('\ufffd')
    return html


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        expected, fix = 'the extra `web`', "pip install 'bert_jax[web]'"
        raise BadInput('config.data.source', 'html: and warc: need resiliparse', expected, fix) from None


class _Stream:
    """Blocks of bytes as the file that fastwarc reads."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks, self._block, self._position = blocks, b'', 0

    def read(self, size: int = -1) -> bytes:
        """Returns at most `size` bytes, and b'' only at the end."""
        while not self._block:
            if (block := next(self._blocks, None)) is None:
                return b''
            self._block = block
        size = len(self._block) if size < 0 else size
        data, self._block = self._block[:size], self._block[size:]
        self._position += len(data)
        return data

    def read_all(self, limit: int) -> bytes:
        """Returns the rest of the file, or its first `limit` bytes."""
        parts, size = [], 0
        while size < limit and (data := self.read(limit - size)):
            parts.append(data)
            size += len(data)
        return b''.join(parts)

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        raise OSError('a stream cannot be rewound')

    def close(self) -> None:
        pass
