"""A checksum for each MiB of a file, so that a part of it can be checked without reading the rest."""

import hashlib
import json
import pathlib
from typing import Any

from bert_jax.files import files_below, next_digest
from bert_jax.json_files import read_json

BLOCK_BYTES = 1 << 20
_DIGEST_CHARACTERS = 16  # of the 64 of a SHA-256


def block_digest(block: bytes | memoryview) -> str:
    """The first 64 bits of SHA-256, in hexadecimal."""
    return hashlib.sha256(block).hexdigest()[:_DIGEST_CHARACTERS]


def block_digests(path: pathlib.Path) -> list[str]:
    """The digest of each MiB of a file."""
    num_bytes = path.stat().st_size
    with path.open('rb') as file:
        return [next_digest(file, BLOCK_BYTES)[:_DIGEST_CHARACTERS] for _ in range(0, num_bytes, BLOCK_BYTES)]


def compute_checksums(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
    """{name: {bytes, blocks}} of all files below a directory."""
    files = files_below(directory)
    return {name: {'bytes': path.stat().st_size, 'blocks': block_digests(path)} for name, path in files.items()}


def first_mismatch(directory: pathlib.Path, files: dict[str, dict]) -> str | None:
    """The first file that is not as `files`, {name: {bytes, blocks}}, says, and what is wrong with it; or None."""
    for name in files:
        path = directory / name
        if not path.is_file():
            return f'{path} is missing'
        if path.stat().st_size != files[name]['bytes']:
            return f'{path} has {path.stat().st_size} bytes, not {files[name]["bytes"]}'
        for number, (found, expected) in enumerate(zip(block_digests(path), files[name]['blocks'], strict=True)):
            if found != expected:
                return f'{path} has another checksum in MiB {number}'
    return None


_SEAL = 'checksums.json'


def write_checksums(directory: pathlib.Path) -> None:
    """Writes beside the files of a directory what `damage` compares them with."""
    (directory / _SEAL).write_text(json.dumps(compute_checksums(directory)) + '\n')


def find_damage(directory: pathlib.Path) -> str | None:
    """What is wrong with the files of a sealed directory, naming the first; None when all are as they were."""
    try:
        files = read_json(directory / _SEAL)
        found = files_below(directory).keys() - {_SEAL}
        return first_mismatch(directory, files) if found == files.keys() else f'{_SEAL} lists other files'
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f'{_SEAL} is missing or damaged'
