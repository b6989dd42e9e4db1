"""Files and directories that appear whole or not at all, hashes of values, and arrays mapped from files."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
import time
import tokenize
import uuid
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from etils import epath

_ABANDONED_S = 24 * 3600  # a temporary directory that nothing was written to for so long belongs to a killed process


# --- Publishing. ---


@contextlib.contextmanager
def new_directory(
    target: epath.PathLike,
    *,
    existing: Literal['keep', 'replace', 'refuse'] = 'keep',
    temporary_in: epath.PathLike | None = None,
    abandoned_s: float = _ABANDONED_S,
) -> Iterator[Any]:
    """Yields an empty temporary directory that becomes `target`, with all its files synced, when the block ends.

    If the block raises, the temporary directory is removed and `target` is untouched. Any number of processes may
    publish the same target at once. Temporary directories left by killed processes are removed here.

    Args:
      target: its parents are created. An empty directory of this name is always replaced.
      existing: what happens if `target` is there when the block ends. `keep`: it stays, because a faster process has
        published the same contents. `replace`: it is removed. `refuse`: FileExistsError.
      temporary_in: where to create the temporary directory, on the disk of `target`; by default, in its parent.
      abandoned_s: age in seconds of temporary directories to remove; 0 if the caller holds a lock on `target`.

    Yields:
      A `pathlib.Path`, or an `epath.Path` on an object store, where moving a directory is not atomic.
    """
    target = _as_path(target)
    parent = _as_path(temporary_in or target.parent)
    for path in (parent, target.parent):
        path.mkdir(parents=True, exist_ok=True)
    name = re.compile(re.escape(f'.{target.name}.') + r'[0-9a-f]{12}\.partial')
    for path in parent.iterdir():
        if name.fullmatch(path.name) and (not abandoned_s or time.time() - _last_change(path) > abandoned_s):
            _remove(path)
    temporary = parent / _temporary_name(target)
    temporary.mkdir()
    try:
        yield temporary
        if _is_local(target):
            for path in (*temporary.rglob('*'), temporary):
                sync(path)
        _move(temporary, target, existing)
        if _is_local(target):
            sync(target.parent)
    finally:
        _remove(temporary)


def _move(temporary: Any, target: Any, existing: str) -> None:
    """Renames a directory; what `existing` means is described at `new_directory`."""
    if existing == 'replace' and target.exists():
        aside = target.with_name(_temporary_name(target))
        target.rename(aside)
        temporary.rename(target)
        _remove(aside)
        return
    try:
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        temporary.rename(target)
    except OSError as error:
        if not (target.is_dir() and any(target.iterdir())):
            raise
        if existing != 'keep':
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error


def _last_change(directory: Any) -> float:
    """When something in a directory was last written, in seconds since 1970; now, if it has just been removed."""
    newest = 0.0
    try:
        for path in (directory, *directory.rglob('*')):
            status = path.stat()
            newest = max(newest, status.st_mtime if isinstance(status, os.stat_result) else float(status.mtime or 0))
    except OSError:
        return time.time()
    return newest or time.time()


def _remove(directory: Any) -> None:
    if _is_local(directory):
        shutil.rmtree(directory, ignore_errors=True)
    elif directory.exists():
        directory.rmtree()


def _is_local(path: epath.PathLike) -> bool:
    return '://' not in os.fspath(path)


def _as_path(path: epath.PathLike) -> Any:
    return pathlib.Path(path) if _is_local(path) else epath.Path(path)


def _temporary_name(target: Any) -> str:
    return f'.{target.name}.{uuid.uuid4().hex[:12]}.partial'


@contextlib.contextmanager
def new_file(target: epath.PathLike) -> Iterator[Any]:
    """Yields a temporary path beside `target`; the file written there is synced and renamed to `target`.

    If the block raises, the temporary file is removed and `target` is untouched. If several processes write the same
    target, the last one's file stays.
    """
    target = _as_path(target)
    temporary = target.with_name(_temporary_name(target))
    try:
        yield temporary
        if _is_local(target):  # an object store commits when the file is closed
            sync(temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: epath.PathLike, text: str) -> None:
    """Writes a text file in UTF-8 that appears whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def sync(path: str | os.PathLike) -> None:
    """Waits until a local file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- Reading. ---


def forget_cached(path: str | os.PathLike) -> None:
    """Asks the system to drop its copy of a synced local file from memory, so that the next read is of the disk."""
    if hasattr(os, 'posix_fadvise'):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def map_array(path: str | os.PathLike) -> np.memmap:
    """The array of a `.npy` file, mapped, read-only.

    Raises:
      OSError, ValueError: when it cannot be read; ValueError also for a header that numpy gives up on otherwise.
    """
    try:
        return np.load(path, mmap_mode='r', allow_pickle=False)
    except (SyntaxError, tokenize.TokenError, EOFError, OverflowError) as error:
        raise ValueError(f'{path}: damaged header ({type(error).__name__})') from None


# --- Hashes. ---


def json_digest(value: Any) -> str:
    """The first 64 bits of SHA-256 of a dataclass or JSON value, in hexadecimal. Stored in files: it never changes."""
    value = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
