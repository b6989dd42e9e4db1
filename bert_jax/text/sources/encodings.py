"""The encodings of text files: byte order marks, other encodings turned into UTF-8, and detection."""

import codecs
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

from bert_jax.errors import BadInput
from bert_jax.text.sources.formats import HEAD_BYTES, bare_utf16, byte_order_mark, check_text_head, is_utf8

_LEGACY = (  # those that are detected; of those that fit equally well, the first
    *('cp1252', 'cp1250', 'cp1251', 'cp1253', 'cp1254', 'cp1255', 'cp1256', 'cp1257', 'cp1258'),
    *('iso8859_2', 'iso8859_5', 'iso8859_7', 'koi8_r', 'mac_roman'),
    *('cp932', 'euc_jp', 'gb18030', 'big5', 'cp949'),
)
_EQUAL_COHERENCE = 0.05  # two encodings whose likelihoods as a language differ by less fit equally well
_MAX_DAMAGED = 0.5  # of the bytes beyond ASCII may be invalid in a damaged UTF-8 file; in another encoding, most are
_SAMPLE_BYTES = 1 << 16  # of text with other bytes than ASCII, from which an encoding is detected


def as_utf8(path: str, blocks: Iterator[bytes], encoding: str, counts: Counter) -> Iterator[bytes]:
    """Yields the blocks of a whole file in UTF-8, without its byte order mark, which overrules `encoding`.

    Bytes that are invalid in UTF-8 stay as they are; those that are invalid in another encoding are replaced and
    counted.

    Raises:
      BadInput: if the file does not begin as text.
    """
    head, blocks = peek(blocks)
    mark, marked = byte_order_mark(head)
    if not mark:
        check_text_head(path, head, encoding)
    blocks = _skip(blocks, mark)
    encoding = marked or encoding
    return blocks if is_utf8(encoding) else _transcode(blocks, encoding, counts)


def peek(blocks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Returns (the first `HEAD_BYTES` of a stream, the whole stream)."""
    first_blocks: list[bytes] = []
    while sum(map(len, first_blocks)) < HEAD_BYTES and (block := next(blocks, b'')):
        first_blocks.append(block)
    return b''.join(first_blocks)[:HEAD_BYTES], itertools.chain(first_blocks, blocks)


def _skip(blocks: Iterable[bytes], count: int) -> Iterator[bytes]:
    for block in blocks:
        if block[count:]:
            yield block[count:]
        count = max(0, count - len(block))


def _transcode(blocks: Iterable[bytes], encoding: str, counts: Counter) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)('replace')
    for block in itertools.chain(blocks, [b'']):
        text = decoder.decode(block, final=not block)
        if invalid := text.count('\ufffd'):
            counts['invalid_bytes'] += invalid
            counts['invalid_utf8_replaced'] += sum('\ufffd' in line for line in text.split('\n'))
        if text:
            yield text.encode('utf-8', 'replace')


def detect(path: str, blocks: Iterator[bytes]) -> str:
    """Returns the encoding of a file, UTF-8 if all of it is valid.

    Raises:
      BadInput: if no encoding fits.
    """
    head, blocks = peek(blocks)
    mark, marked = byte_order_mark(head)
    if mark:
        return marked
    if order := bare_utf16(head):
        return f'utf-16-{order.lower()}'
    decoder, sample, is_valid = codecs.getincrementaldecoder('utf-8')(), bytearray(), True
    for block in itertools.chain(blocks, [b'']):
        if is_valid:
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError:
                is_valid = False
        if len(sample) < _SAMPLE_BYTES and not block.isascii():
            lines = block.splitlines(keepends=True)
            sample += b''.join(line for line in lines if not line.isascii())[: _SAMPLE_BYTES - len(sample)]
        if not is_valid and len(sample) >= _SAMPLE_BYTES:
            break
    return 'utf-8' if is_valid else _detect_legacy(path, bytes(sample))


def _detect_legacy(path: str, sample: bytes) -> str:
    """Returns the encoding of lines that are not all UTF-8, but perhaps nearly so."""
    from charset_normalizer import from_bytes

    num_valid = len(sample.decode('utf-8', 'ignore').encode())
    if len(sample) - num_valid < _MAX_DAMAGED * sum(byte > 127 for byte in sample):
        return 'utf-8'
    matches = list(from_bytes(sample, cp_isolation=list(_LEGACY)))  # the best first
    likely = [
        match.encoding
        for match in matches
        if match.chaos == matches[0].chaos and match.coherence >= matches[0].coherence - _EQUAL_COHERENCE
    ]
    if not likely:
        fix = '--config.data.encoding=NAME for all files without a byte order mark, or convert this one with iconv'
        raise BadInput(path, 'has an encoding that was not recognized', 'text in UTF-8 or a common encoding', fix)
    return min(likely, key=_LEGACY.index)
