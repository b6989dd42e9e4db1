"""Recognizes files by their first bytes, so that a binary or UTF-16 file never becomes a corpus of noise."""

import shlex

from bert_jax.errors import BadInput

HEAD_BYTES = 1 << 12  # of a file, inspected

# (offset, bytes at it, description of the file, fix for a file named {0})
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b'\xff\xfe\0\0', 'UTF-32', 'iconv -f UTF-32 -t UTF-8 {0} > {0}.txt'),
    (0, b'\0\0\xfe\xff', 'UTF-32', 'iconv -f UTF-32 -t UTF-8 {0} > {0}.txt'),
    (0, b'\xff\xfe', 'UTF-16', 'iconv -f UTF-16 -t UTF-8 {0} > {0}.txt'),
    (0, b'\xfe\xff', 'UTF-16', 'iconv -f UTF-16 -t UTF-8 {0} > {0}.txt'),
    (0, b'PAR1', 'a parquet file', '--config.data.source=parquet:{0}'),
    (0, b'\x1f\x8b', 'compressed with gzip', 'mv {0} {0}.gz'),
    (0, b'\x28\xb5\x2f\xfd', 'compressed with zstandard', 'mv {0} {0}.zst'),
    (0, b'BZh', 'compressed with bzip2', 'bunzip2 {0}'),
    (0, b'\xfd7zXZ\0', 'compressed with xz', 'xz --decompress {0}'),
    (0, b'\x04\x22\x4d\x18', 'compressed with lz4', 'lz4 -d {0} {0}.txt'),
    (0, b'PK\x03\x04', 'a zip archive (or an Office, OpenDocument or EPUB file)', 'extract its text to a UTF-8 file'),
    (0, b'7z\xbc\xaf\x27\x1c', 'a 7-Zip archive', 'extract its files'),
    (0, b'Rar!\x1a\x07', 'a RAR archive', 'extract its files'),
    (257, b'ustar', 'a tar archive', 'tar --extract --file={0}'),
    (0, b'%PDF-', 'a PDF', 'pdftotext {0}'),
    (0, b'%!PS-', 'PostScript', 'extract its text to a UTF-8 file'),
    (0, b'{\\rtf', 'RTF', 'save it as plain text in UTF-8'),
    (0, b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1', 'an Office file', 'save it as plain text in UTF-8'),
    (0, b'ARROW1', 'an Arrow file', 'convert it to parquet or to JSON lines'),
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
_COMPRESSED = {'.gz': b'\x1f\x8b', '.zst': b'\x28\xb5\x2f\xfd'}
_SKIPPABLE = b'\x2a\x4d\x18'  # bytes 1 to 3 of a zstandard frame that holds no data


def check_first_bytes(path: str, head: bytes, kind: str) -> None:
    """Checks the first `HEAD_BYTES` of a file on disk, compressed or not.

    Args:
      kind: of the source: `text`, `jsonl` or `parquet`.

    Raises:
      BadInput: if they show that the file has another format.
    """
    if kind == 'parquet':
        if not head.startswith(b'PAR1'):
            known = _known_format(head)
            raise BadInput(path, f'is {known[0] if known else "not a parquet file"}', 'a file that begins with PAR1')
        return
    suffix = next((suffix for suffix in _COMPRESSED if path.endswith(suffix)), '')
    if not suffix:
        check_utf8_head(path, head)
    elif not head.startswith(_COMPRESSED[suffix]) and not (suffix == '.zst' and head[1:4] == _SKIPPABLE):
        known = _known_format(head)
        raise BadInput(path, f'is {known[0] if known else "not compressed"}', f'a {suffix} file, as its name says')


def check_utf8_head(path: str, head: bytes) -> None:
    """Raises `BadInput` if the first (decompressed) bytes of a file are not UTF-8 text."""
    if known := _known_format(head):
        name, fix = known
        raise BadInput(path, f'is {name}', 'text in UTF-8', fix.format(shlex.quote(path)))


def _known_format(head: bytes) -> tuple[str, str] | None:
    """Returns (description, fix) of a file in a known format; None for text and unknown formats."""
    for start, signature, name, fix in _SIGNATURES:
        if head.startswith(signature, start) and not (start == 0 and signature.isalnum() and _is_prose(head)):
            return name, fix
    for first, order in ((1, 'LE'), (0, 'BE')):  # UTF-16 without a byte order mark: every other byte of ASCII text is 0
        zeros, others = head[first::2].count(0), head[1 - first :: 2].count(0)
        if len(head) >= 8 and zeros > len(head) / 6 and others < zeros / 8:
            return f'UTF-16 ({order}, no byte order mark)', f'iconv -f UTF-16{order} -t UTF-8 {{0}} > {{0}}.txt'
    return None


def _is_prose(head: bytes) -> bool:
    """Whether bytes that begin with a signature made of letters are text: they hold no control characters."""
    return not any(byte < 32 and byte not in b'\t\n\v\f\r\x1b' for byte in head)
