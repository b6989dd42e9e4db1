"""Recognizes files by their first bytes, so that a binary file never becomes a corpus of noise."""

import codecs
import shlex

from bert_jax.errors import BadInput

HEAD_BYTES = 1 << 12  # of a file, inspected
AUTOMATIC = 'auto'  # the encoding that is detected in each file

# (offset, bytes at it, description of the file, fix for a file named {0})
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b'PAR1', 'a parquet file', '--config.data.source=parquet:{0}'),
    (0, b'\x1f\x8b', 'compressed with gzip', 'mv {0} {0}.gz'),
    (0, b'\x28\xb5\x2f\xfd', 'compressed with zstandard', 'mv {0} {0}.zst'),
    (0, b'BZh', 'compressed with bzip2', 'mv {0} {0}.bz2'),
    (0, b'\xfd7zXZ\0', 'compressed with xz', 'mv {0} {0}.xz'),
    (0, b'\x04\x22\x4d\x18', 'compressed with lz4', 'lz4 -d {0} {0}.txt'),
    (0, b'PK\x03\x04', 'a zip archive (or an Office, OpenDocument or EPUB file)', 'extract its text to a UTF-8 file'),
    (0, b'7z\xbc\xaf\x27\x1c', 'a 7-Zip archive', 'extract its files'),
    (0, b'Rar!\x1a\x07', 'a RAR archive', 'extract its files'),
    (257, b'ustar', 'a tar archive', 'tar --extract --file={0}'),
    (0, b'%PDF-', 'a PDF', 'pdftotext {0}'),
    (0, b'%!PS-', 'PostScript', 'extract its text to a UTF-8 file'),
    (0, b'{\\rtf', 'RTF', 'save it as plain text in UTF-8'),
    (0, b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1', 'an Office file', 'save it as plain text in UTF-8'),
    (0, b'ARROW1', 'an Arrow file', '--config.data.source=hf:DIRECTORY, with its directory'),
    (0, b'FEA1', 'a Feather file', 'convert it to parquet or to JSON lines'),
    (0, b'ORC', 'an ORC file', 'convert it to parquet or to JSON lines'),
    (0, b'Obj\x01', 'an Avro file', 'convert it to parquet or to JSON lines'),
    (0, b'SQLite format 3\0', 'an SQLite database', 'export its text as JSON lines'),
    (0, b'\x89HDF\r\n\x1a\n', 'an HDF5 file', 'export its text as JSON lines'),
    (0, b'\x93NUMPY', 'a NumPy array', 'use a text file'),
    (0, b'\x89PNG\r\n\x1a\n', 'an image', 'use a text file'),
    (0, b'\xff\xd8\xff', 'an image', 'use a text file'),
    (0, b'GIF8', 'an image', 'use a text file'),
    (0, b'\x7fELF', 'a program', 'use a text file'),
)
_COMPRESSED = {'.gz': b'\x1f\x8b', '.zst': b'\x28\xb5\x2f\xfd', '.bz2': b'BZh', '.xz': b'\xfd7zXZ\0'}
_SKIPPABLE = b'\x2a\x4d\x18'  # bytes 1 to 3 of a zstandard frame that holds no data
_TABLES = {'parquet': (b'PAR1',), 'arrow': (b'\xff\xff\xff\xff', b'ARROW1')}  # {kind of source: how its files begin}

_MARKS = (  # UTF-32 first, as its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF8, 'utf-8'),
    (codecs.BOM_UTF32_LE, 'utf-32-le'),
    (codecs.BOM_UTF32_BE, 'utf-32-be'),
    (codecs.BOM_UTF16_LE, 'utf-16-le'),
    (codecs.BOM_UTF16_BE, 'utf-16-be'),
)


def check_first_bytes(path: str, head: bytes, kind: str, encoding: str = 'utf-8') -> None:
    """Checks the first `HEAD_BYTES` of a file on disk, compressed or not.

    Args:
      kind: of the files, such as `text` or `parquet`.
      encoding: of the text, or `auto`.

    Raises:
      BadInput: if they show that the file has another format.
    """
    if kind in _TABLES:
        if not head.startswith(_TABLES[kind]):
            found = known[0] if (known := _known_format(head)) else f'not a file in the format {kind}'
            raise BadInput(path, f'is {found}', f'a file in the format {kind}')
        return
    suffix = next((suffix for suffix in _COMPRESSED if path.lower().endswith(suffix)), '')
    if not suffix:
        check_text_head(path, head, encoding)
    elif not head.startswith(_COMPRESSED[suffix]) and not (suffix == '.zst' and head[1:4] == _SKIPPABLE):
        known = _known_format(head)
        raise BadInput(path, f'is {known[0] if known else "not compressed"}', f'a {suffix} file, as its name says')


def check_text_head(path: str, head: bytes, encoding: str = 'utf-8') -> None:
    """Raises `BadInput` if the first (decompressed) bytes of a file are not text in an encoding."""
    if known := _known_format(head):
        name, fix = known
        raise BadInput(path, f'is {name}', 'text', fix.format(shlex.quote(path)))
    if is_utf8(encoding) and (order := bare_utf16(head)):
        found = f'is UTF-16 ({order}, no byte order mark)'
        raise BadInput(path, found, 'text in UTF-8', '--config.data.encoding=auto')


def _known_format(head: bytes) -> tuple[str, str] | None:
    """Returns (description, fix) of a file in a known format; None for text and unknown formats."""
    if byte_order_mark(head)[1] not in ('', 'utf-8'):  # its text may look like signatures
        return None
    for start, signature, name, fix in _SIGNATURES:
        if head.startswith(signature, start) and not (start == 0 and signature.isalnum() and _is_prose(head)):
            return name, fix
    return None


def is_utf8(encoding: str) -> bool:
    """Whether an encoding is UTF-8, by any of its names."""
    return encoding != AUTOMATIC and codecs.lookup(encoding).name == 'utf-8'


def byte_order_mark(head: bytes) -> tuple[int, str]:
    """Returns (length, encoding) of the byte order mark at the start of a file; (0, '') without one."""
    return next(((len(mark), encoding) for mark, encoding in _MARKS if head.startswith(mark)), (0, ''))


def bare_utf16(head: bytes) -> str:
    """Returns the byte order (LE, BE) of UTF-16 without a byte order mark; '' for anything else.

    Every other byte of ASCII text in UTF-16 is 0.
    """
    if byte_order_mark(head)[0]:
        return ''
    for first, order in ((1, 'LE'), (0, 'BE')):
        zeros, others = head[first::2].count(0), head[1 - first :: 2].count(0)
        if len(head) >= 8 and zeros > len(head) / 6 and others < zeros / 8:
            return order
    return ''


def _is_prose(head: bytes) -> bool:
    """Whether bytes that begin with a signature made of letters are text: they hold no control characters."""
    return not any(byte < 32 and byte not in b'\t\n\v\f\r\x1b' for byte in head)
