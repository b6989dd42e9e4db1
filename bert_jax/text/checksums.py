"""A checksum for each MiB of a file, so that a part of it can be checked without reading the rest."""

import hashlib
import pathlib
from collections.abc import Iterator

BLOCK_BYTES = 1 << 20


def digest(block: bytes | memoryview) -> str:
    """The first 64 bits of SHA-256, in hexadecimal."""
    return hashlib.sha256(block).hexdigest()[:16]


def file_digests(path: pathlib.Path) -> list[str]:
    """The digest of each MiB of a file."""
    with path.open('rb') as file:
        return [digest(block) for block in iter(lambda: file.read(BLOCK_BYTES), b'')]


def files_in(directory: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    """(name, path) of all files below a directory, sorted by name; names have '/' between their parts."""
    paths = (path for path in directory.rglob('*') if path.is_file())
    return iter(sorted((path.relative_to(directory).as_posix(), path) for path in paths))


def first_difference(directory: pathlib.Path, files: dict[str, dict]) -> str | None:
    """The first file that is not as `files`, {name: {bytes, blocks}}, says, and what is wrong with it; or None."""
    for name in files:
        path = directory / name
        if not path.is_file():
            return f'{path} is missing'
        if path.stat().st_size != files[name]['bytes']:
            return f'{path} has {path.stat().st_size} bytes, not {files[name]["bytes"]}'
        for number, (found, expected) in enumerate(zip(file_digests(path), files[name]['blocks'], strict=True)):
            if found != expected:
                return f'{path} has another checksum in MiB {number}'
    return None
