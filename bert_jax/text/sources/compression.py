"""Decompresses files as streams, in bounded memory; a truncated or damaged file is an error, never a shorter text."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from bert_jax.errors import BadInput

_BLOCK_BYTES = 1 << 20
_COMPRESSED_BYTES = 1 << 16  # per read
_ZST_BYTES = 1 << 11  # compressed bytes per read: four bytes of zstd may expand to 128 KiB


def without_compression(name: str) -> str:
    """Returns the name of a file without the suffix of its compression, if it has one, in any case of letters."""
    suffix = compression_of(name)
    return name[: len(name) - len(suffix)]


def compression_of(name: str) -> str:
    """Returns the key of `DECOMPRESSORS` that the name of a file ends in; '' if it has none."""
    return next((suffix for suffix in DECOMPRESSORS if name.lower().endswith(suffix)), '')


def _read_gz(path: str, file: Any) -> Iterator[bytes]:
    stream = gzip.GzipFile(fileobj=file)
    try:
        while block := stream.read(_BLOCK_BYTES):
            yield block
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged_error(path, error) from None


def _read_bz2(path: str, file: Any) -> Iterator[bytes]:
    yield from _read_streams(path, file, bz2.BZ2Decompressor)


def _read_xz(path: str, file: Any) -> Iterator[bytes]:
    yield from _read_streams(path, file, lzma.LZMADecompressor, padding=b'\0')


def _read_streams(path: str, file: Any, decompressor: Callable[[], Any], padding: bytes = b'') -> Iterator[bytes]:
    """Decompresses stream by stream: the readers of bz2 and lzma ignore damage after the first stream.

    Args:
      padding: bytes that may follow a stream.
    """
    stream: Any = decompressor()  # None between streams
    data = b''
    while data or (stream and not stream.needs_input) or (data := file.read(_COMPRESSED_BYTES)):
        if stream is None:
            data = data.lstrip(padding)
            if not data:
                continue
            stream = decompressor()
        try:
            block = stream.decompress(data, _BLOCK_BYTES)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise _damaged_error(path, error) from None
        if block:
            yield block
        data, stream = (stream.unused_data, None) if stream.eof else (b'', stream)
    if stream is not None:
        raise _damaged_error(path, EOFError())


def _read_zst(path: str, file: Any) -> Iterator[bytes]:
    """Decompresses frame by frame: the stream reader of zstandard mistakes a truncated file for a complete one."""
    import zstandard

    frame, unused = None, b''
    try:
        while data := unused or file.read(_ZST_BYTES):
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            if block := frame.decompress(data):
                yield block
            unused = frame.unused_data if frame.eof else b''
            frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise _damaged_error(path, error) from None
    if frame is not None:
        raise _damaged_error(path, EOFError())


def _damaged_error(path: str, error: Exception) -> BadInput:
    return BadInput(path, f'is truncated or damaged ({type(error).__name__})', 'a complete file', 'copy it again')


# {suffix: function from the name and the open file to blocks of its content}
DECOMPRESSORS: dict[str, Callable[[str, Any], Iterator[bytes]]] = {
    '.gz': _read_gz,
    '.bz2': _read_bz2,
    '.xz': _read_xz,
    '.zst': _read_zst,
}
