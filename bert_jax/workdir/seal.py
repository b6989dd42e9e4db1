"""Seals directories: one with a manifest is complete, and every byte in it can be verified.

    DIRECTORY/manifest.json   size and SHA-256 of every file, part by part; renamed into place last

    {"version": 2, "step": …, "part_bytes": …, "files": {NAME: {"bytes": …, "sha256": [one per part]}}, "checksum": …}

Version 1 had neither a version nor a checksum, and one digest per file.
"""

import concurrent.futures
import json
import os
from typing import Any

from etils import epath

from bert_jax.files import files_below, is_local, json_digest, next_digest, size_of, sync, write_whole
from bert_jax.json_files import read_json

MANIFEST = 'manifest.json'
_VERSION = 2
_PART_BYTES = 16 << 20  # parts are hashed independently
_WHOLE_FILE = 1 << 62  # bytes per part in version 1
_MAX_MANIFEST_BYTES = 256 << 20  # lists the parts of a 50 TB checkpoint
_NUM_HASHING_THREADS = 8


def is_sealed(directory: epath.Path) -> bool:
    """Returns whether a directory is complete; an interrupted save leaves one without a manifest."""
    return (directory / MANIFEST).exists()


def sealed_steps(directory: epath.Path) -> list[int]:
    """Returns the steps of the sealed subdirectories, ascending."""
    return [step for step in step_directories(directory) if is_sealed(directory / str(step))]


def describe_steps(steps: list[int]) -> str:
    """Describes the sealed steps of a run, as what is expected in an error."""
    return f'one of {", ".join(map(str, steps))}' if steps else 'a run that has saved at least once'


def step_directories(directory: epath.Path) -> list[int]:
    """Returns the steps that subdirectories are named after, ascending; [] if the directory does not exist."""
    if not directory.exists():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def make_manifest(directory: epath.Path, step: int) -> dict[str, Any]:
    """Syncs a directory's files to disk and returns their manifest.

    Raises:
      OSError: if a file cannot be synced or read.
    """
    files = files_of(directory)
    if is_local(directory):
        for path in {*files.values(), *(path.parent for path in files.values()), directory.parent}:
            sync(path)
    digests = _digests(files, _PART_BYTES)
    entries = {name: {'bytes': size_of(path), 'sha256': digests[name]} for name, path in files.items()}
    manifest = {'version': _VERSION, 'step': step, 'part_bytes': _PART_BYTES, 'files': entries}
    # The manifest has its own checksum so that a corrupt manifest is not reported as a corrupt file.
    return manifest | {'checksum': json_digest(manifest)}


def seal(directory: epath.Path, manifest: dict[str, Any]) -> None:
    """Renames the manifest into place and drops cached copies of the files, so that `damage` reads the disk."""
    write_whole(directory / MANIFEST, json.dumps(manifest, indent=2) + '\n')
    if is_local(directory):
        sync(directory)
        for path in files_of(directory).values():
            _forget_cached(path)


def _forget_cached(path: str | os.PathLike) -> None:
    """Asks the system to drop its cached copy of a synced local file, so that the next read comes from the disk."""
    if hasattr(os, 'posix_fadvise'):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def delete(directory: epath.Path) -> None:
    """Deletes a sealed directory, manifest first, so that it never looks sealed while files are missing."""
    (directory / MANIFEST).unlink()
    directory.rmtree()


def damage(directory: epath.Path) -> str:
    """Describes what is wrong with a directory, naming the file; '' if every byte is unchanged."""
    try:
        expected, part_bytes = _read_manifest(directory / MANIFEST)
    except FileNotFoundError:
        return f'no {MANIFEST}: the save was not finished'
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f'{MANIFEST} is damaged'
    try:
        files = files_of(directory)
        for name in sorted(expected.keys() ^ files.keys()):
            return f'{name} is {"missing" if name in expected else "not in the manifest"}'
        for name, (size, _) in expected.items():
            if (length := size_of(files[name])) != size:
                return f'{name} has {length} bytes, not {size}'
        for name, digests in _digests(files, part_bytes).items():
            if digests != expected[name][1]:
                return f'{name} has a wrong checksum'
    except FileNotFoundError as error:
        return f'{error.filename} was deleted while it was being read'
    return ''


def files_of(directory: epath.Path) -> dict[str, epath.Path]:
    """Returns {name: path} of all files below a directory except its manifest."""
    return {name: path for name, path in files_below(directory).items() if name != MANIFEST}


def _read_manifest(path: epath.Path) -> tuple[dict[str, tuple[int, list[str]]], int]:
    """Returns ({name: (bytes, digests of its parts)}, bytes per part); raises various errors for a damaged manifest."""
    content = read_json(path, max_bytes=_MAX_MANIFEST_BYTES)
    if content.keys() == {'step', 'files'}:  # version 1
        return {name: (file['bytes'], [file['sha256']]) for name, file in content['files'].items()}, _WHOLE_FILE
    if content['version'] != _VERSION or content['part_bytes'] != _PART_BYTES:
        raise ValueError
    if content.pop('checksum') != json_digest(content):
        raise ValueError
    return {name: (file['bytes'], file['sha256']) for name, file in content['files'].items()}, _PART_BYTES


def _digests(files: dict[str, epath.Path], part_bytes: int) -> dict[str, list[str]]:
    """Returns the SHA-256 of each part of each file. Hashes parts in parallel, so one large file is no bottleneck."""
    parts = [(name, start) for name, path in files.items() for start in range(0, max(size_of(path), 1), part_bytes)]
    with concurrent.futures.ThreadPoolExecutor(_NUM_HASHING_THREADS) as pool:
        digests = pool.map(lambda part: _digest(files[part[0]], part[1], part_bytes), parts)
        by_file: dict[str, list[str]] = {name: [] for name in files}
        for (name, _), digest in zip(parts, digests, strict=True):
            by_file[name].append(digest)
    return by_file


def _digest(path: epath.Path, start: int, length: int) -> str:
    with path.open('rb') as file:
        file.seek(start)
        return next_digest(file, length)
