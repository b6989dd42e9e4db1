"""Checksums of each MiB of a file, so that a part can be verified without reading the whole file."""

import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from bert_jax.activity import counted
from bert_jax.files import files_below, next_digest
from bert_jax.json_files import read_json

BLOCK_BYTES = 1 << 20
_DIGEST_CHARACTERS = 16  # of the 64 of a SHA-256


def block_digest(block: bytes | memoryview) -> str:
    """Returns the first 64 bits of SHA-256, in hexadecimal."""
    return hashlib.sha256(block).hexdigest()[:_DIGEST_CHARACTERS]


def block_digests(path: pathlib.Path) -> Iterator[str]:
    """Yields the digest of each MiB of a file."""
    num_bytes = path.stat().st_size
    with path.open('rb') as file:
        for _ in range(0, num_bytes, BLOCK_BYTES):
            yield next_digest(file, BLOCK_BYTES)[:_DIGEST_CHARACTERS]


def compute_checksums(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Returns {name: {bytes, blocks}} of all files below a directory."""
    files = files_below(directory)
    return {name: {'bytes': path.stat().st_size, 'blocks': list(block_digests(path))} for name, path in files.items()}


def first_mismatch(directory: pathlib.Path, files: dict[str, dict]) -> str | None:
    """Describes the first file that differs from its checksums, {name: {bytes, blocks}}; returns None if all match."""
    for name in files:
        path = directory / name
        if not path.is_file():
            return f'{path} is missing'
        if path.stat().st_size != files[name]['bytes']:
            return f'{path} has {path.stat().st_size:,} bytes instead of {files[name]["bytes"]:,}'
        expected, blocks = files[name]['blocks'], block_digests(path)
        for block_index, found in enumerate(counted(blocks, len(expected), f'checking {name}', 'MiB')):
            if found != expected[block_index]:
                return f'{path} is damaged: MiB {block_index} has another checksum'
    return None


_CHECKSUMS_FILE = 'checksums.json'


def write_checksums(directory: pathlib.Path) -> None:
    """Writes the checksums of all files of a directory to a file in it, for `find_damage`."""
    (directory / _CHECKSUMS_FILE).write_text(json.dumps(compute_checksums(directory)) + '\n')


def find_damage(directory: pathlib.Path) -> str | None:
    """Describes the first file of a directory that differs from its checksums; returns None if all match."""
    try:
        files = read_json(directory / _CHECKSUMS_FILE)
        existing = files_below(directory).keys() - {_CHECKSUMS_FILE}
        return first_mismatch(directory, files) if existing == files.keys() else f'{_CHECKSUMS_FILE} lists other files'
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f'{_CHECKSUMS_FILE} is missing or damaged'
