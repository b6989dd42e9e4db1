"""Publishes files and directories atomically, maps arrays from files, and computes digests."""

import contextlib
import ctypes
import dataclasses
import errno
import fnmatch
import hashlib
import json
import os
import pathlib
import re
import shutil
import time
import tokenize
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Literal

import numpy as np
from etils import epath

_ABANDONED_S = 24 * 3600  # temporary files not written to for this long were left by a killed process
_BLOCK_BYTES = 1 << 20


# --- Publishing. ---


@contextlib.contextmanager
def new_directory(
    target: epath.PathLike,
    *,
    existing: Literal['keep', 'replace', 'refuse'] = 'keep',
    kept: Callable[[pathlib.Path], Iterable[str]] = lambda directory: (),
    temporary_in: epath.PathLike | None = None,
    abandoned_s: float = _ABANDONED_S,
) -> Iterator[Any]:
    """Yields an empty temporary directory, which becomes `target` with all its files synced when the block ends.

    If the block raises, the temporary directory is removed and `target` is unchanged. Any number of processes may
    publish the same target at once. Temporary directories left by killed processes are removed. Files and directories
    get the permissions that the umask gives to new ones, even if a library wrote them with others.

    Args:
      target: its parents are created. An empty directory of this name is always replaced.
      existing: what happens if `target` exists when the block ends. `keep`: it stays, because a faster process has
        published the same contents. `replace`: the new directory replaces it, atomically if the file system can
        exchange two names. If it cannot, a process killed between two renames leaves no `target`, and the next call
        restores it. If several processes replace it, the last one wins. `refuse`: raises FileExistsError.
      kept: with `replace`, called with the existing directory; returns the names in it that the new one takes over.
        A name that the new directory also has raises FileExistsError.
      temporary_in: where to create the temporary directory, on the same disk as `target`; by default, in its parent.
      abandoned_s: age in seconds of temporary directories to remove; 0 for any age, if the caller holds a lock.

    Yields:
      A `pathlib.Path`, or an `epath.Path` on an object store, where moving a directory is not atomic.
    """
    target = as_path(target)
    parent = as_path(temporary_in or target.parent)
    for path in (parent, target.parent):
        path.mkdir(parents=True, exist_ok=True)
    for path in {parent, target.parent} if existing == 'replace' else {parent}:
        remove_leftovers(target, path, abandoned_s)
    temporary = parent / _temporary_name(target, 'partial')
    try:
        temporary.mkdir()
    except OSError as error:
        error.filename = str(target)  # the name that the user knows
        raise
    try:
        yield temporary
        if is_local(target):
            _follow_umask(temporary)
            if existing == 'replace' and target.is_dir():
                _take_over(target, temporary, kept(target))
            for path in (*temporary.rglob('*'), temporary):
                if not path.is_symlink():
                    sync(path)
        if existing == 'replace':
            _replace(temporary, target)
        else:
            _move(temporary, target, existing)
        if is_local(target):
            sync(target.parent)
    finally:
        _remove(temporary)


def _follow_umask(directory: pathlib.Path) -> None:
    """Gives everything in a new directory the permissions of new files and directories, keeping executable bits.

    Some libraries write files that only their owner may read.
    """
    mode = directory.stat().st_mode & 0o777  # 0o777 without the umask
    for path in directory.rglob('*'):
        if path.is_symlink():
            continue
        current = path.stat().st_mode
        wanted = mode if path.is_dir() or current & 0o100 else mode & 0o666
        if current & 0o777 != wanted:
            path.chmod(current & ~0o777 & 0o7777 | wanted)


def _take_over(old: pathlib.Path, new: pathlib.Path, names: Iterable[str]) -> None:
    """Links files and directories of one directory into another, or copies them if links are not possible."""
    for name in names:
        if os.path.lexists(new / name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(old / name))
        if (old / name).is_dir() and not (old / name).is_symlink():
            shutil.copytree(old / name, new / name, symlinks=True, copy_function=_link)
        else:
            _link(old / name, new / name)


def _link(old: str | os.PathLike, new: str | os.PathLike) -> None:
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:  # the file system has no hard links
        shutil.copy2(old, new, follow_symlinks=False)


def _replace(temporary: Any, target: Any) -> None:
    """Renames a directory to `target`. The previous `target` is removed, or restored if this fails."""
    while True:
        if is_local(target) and target.is_dir() and _exchange(temporary, target):
            return  # the previous one now has the temporary name, under which the caller removes it
        aside = target.with_name(_temporary_name(target, 'replaced'))
        try:
            if target.exists():
                with contextlib.suppress(FileNotFoundError):  # another process has just renamed it
                    target.rename(aside)
            temporary.rename(target)
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                _remove(aside)  # another process has published meanwhile: its directory is replaced as well
                continue
            with contextlib.suppress(OSError):
                aside.rename(target)
            raise
        _remove(aside)
        return


def _exchange(first: pathlib.Path, second: pathlib.Path) -> bool:
    """Exchanges the names of two directories atomically; False if the system or the file system cannot do that."""
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE on Linux
    rename = getattr(ctypes.CDLL(None), 'renameat2', None)
    return rename is not None and rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def _move(temporary: Any, target: Any, existing: str) -> None:
    """Renames a directory to `target`; see `new_directory` for `existing`."""
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


@contextlib.contextmanager
def new_file(target: epath.PathLike, *, temporary_in: epath.PathLike | None = None) -> Iterator[Any]:
    """Yields a temporary path; the file written there is synced and renamed to `target` when the block ends.

    If the block raises, the temporary file is removed and `target` is unchanged. If several processes write the same
    target, the last one wins. Temporary files left by killed processes are removed.

    Args:
      temporary_in: where to create the temporary file, on the same disk as `target`; by default, in its parent. This
        directory is listed, which is slow if it holds very many files.
    """
    target = as_path(target)
    if is_local(target) and target.exists() and not (target.is_file() or target.is_dir()):  # a device, a pipe
        raise PermissionError(errno.EPERM, 'is not a regular file', str(target))
    parent = as_path(temporary_in or target.parent)
    remove_leftovers(target, parent)
    temporary = parent / _temporary_name(target, 'partial')
    try:
        yield temporary
        if is_local(target):  # an object store commits when the file is closed
            sync(temporary)
        temporary.replace(target)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is not None and os.fspath(error.filename) == str(temporary):
            error.filename = str(target)  # the name that the user knows
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: epath.PathLike, text: str, *, temporary_in: epath.PathLike | None = None) -> None:
    """Writes a text file in UTF-8 atomically; see `new_file` for `temporary_in`."""
    with new_file(path, temporary_in=temporary_in) as temporary:
        temporary.write_text(text, encoding='utf-8')


def discard(directory: epath.PathLike) -> None:
    """Removes a directory; its name is free at once, and `remove_leftovers` completes an interrupted removal."""
    directory = as_path(directory)
    aside = directory.with_name(_temporary_name(directory, 'discarded'))
    directory.rename(aside)
    _remove(aside)


def remove_leftovers(
    target: epath.PathLike, parent: epath.PathLike | None = None, abandoned_s: float = _ABANDONED_S
) -> None:
    """Removes temporary files of `target` left by killed processes; restores it if its replacement was interrupted.

    Args:
      parent: the directory of the temporary files; by default, the parent of `target`.
      abandoned_s: age in seconds of unfinished files and directories to remove; 0 for any age.
    """
    target = as_path(target)
    leftover = re.compile(re.escape(f'.{target.name}.') + r'[0-9a-f]{12}\.(partial|replaced|discarded)')
    try:
        paths = list(as_path(parent or target.parent).iterdir())
    except OSError:  # missing or unreadable, which writing there will report
        return
    for path in paths:
        match = leftover.fullmatch(path.name)
        kind = match[1] if match else ''
        if kind == 'replaced' and not target.exists():
            with contextlib.suppress(OSError):  # the replacement has just been completed
                path.rename(target)
        elif kind == 'partial' and abandoned_s and time.time() - _last_change(path) <= abandoned_s:
            continue  # perhaps being written
        elif kind:
            _remove(path)


def _last_change(path: Any) -> float:
    """Returns when a file, or anything in a directory, was last written, in seconds since 1970; now if just removed."""
    newest = 0.0
    try:
        for inside in (path, *(path.rglob('*') if path.is_dir() else ())):
            newest = max(newest, modified_at(inside))
    except OSError:
        return time.time()
    return newest or time.time()


def _remove(path: Any) -> None:
    """Removes a directory or a file; ignores a local one that is missing or in use."""
    if not is_local(path):
        if path.exists():
            path.rmtree() if path.is_dir() else path.unlink()
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _temporary_name(target: Any, kind: Literal['partial', 'replaced', 'discarded']) -> str:
    return f'.{target.name}.{uuid.uuid4().hex[:12]}.{kind}'


def is_local(path: epath.PathLike) -> bool:
    """Returns whether a path or glob is on a file system, not on an object store."""
    return '://' not in os.fspath(path)


_STORES = ('gs', 's3', 'az', 'hf')  # schemes that `epath` opens


def unusable_path(path: str) -> str:
    """Returns why libraries would misread a path; '' if they read it correctly."""
    scheme, is_url, _ = path.partition('://')
    if is_url and scheme not in _STORES:
        return f'starts with {scheme}://, which is none of {", ".join(f"{store}://" for store in _STORES)}'
    if '\\' in path:  # TensorStore reads it as '/'
        return 'contains a backslash, which some libraries read as a slash'
    if any('\ud800' <= character <= '\udfff' for character in path):
        return 'is not valid UTF-8'
    return ''


def size_of(path: epath.PathLike) -> int:
    """Returns the bytes of a file, local or on an object store. `epath` cannot stat files whose owner has no name."""
    stat = as_path(path).stat()
    return stat.st_size if isinstance(stat, os.stat_result) else stat.length


def modified_at(path: epath.PathLike) -> float:
    """Returns when a file was last written, in seconds since 1970 by the clock of its file system."""
    stat = as_path(path).stat()
    return stat.st_mtime if isinstance(stat, os.stat_result) else float(stat.mtime or 0)


def as_path(path: epath.PathLike) -> Any:
    """Returns a local path as a `pathlib.Path`, any other as an `epath.Path`."""
    return pathlib.Path(path) if is_local(path) else epath.Path(path)


def sync(path: str | os.PathLike) -> None:
    """Waits until a local file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- Reading. ---


def map_array(path: str | os.PathLike) -> np.memmap:
    """Maps the array of a `.npy` file, read-only.

    Raises:
      OSError: if the file cannot be read.
      ValueError: for any damage of its header.
    """
    try:
        return np.load(path, mmap_mode='r', allow_pickle=False)
    except (SyntaxError, tokenize.TokenError, EOFError, OverflowError, TypeError, RecursionError) as error:
        raise ValueError(f'{path}: damaged header ({type(error).__name__})') from None


def matching(directory: Any, pattern: str) -> list[Any]:
    """Returns the paths in a directory whose names match a pattern, in any order; [] if the directory does not exist.

    Unlike in `epath.Path.glob`, the name of the directory is not part of the pattern.
    """
    if not directory.is_dir():
        return []
    return [path for path in directory.iterdir() if fnmatch.fnmatchcase(path.name, pattern)]


def files_below(directory: Any) -> dict[str, Any]:
    """Returns {name: path} of all files below a directory, sorted by name; names are relative, with '/'."""
    paths, directories = {}, [directory]
    while directories:
        for path in directories.pop().iterdir():
            if path.is_dir():
                directories.append(path)
            else:
                paths[path.relative_to(directory).as_posix()] = path
    return dict(sorted(paths.items()))


# --- Digests. ---


def next_digest(file: IO[Any], num_bytes: int) -> str:
    """Returns the SHA-256, in hexadecimal, of the next `num_bytes` of an open file, or of fewer at its end."""
    digest = hashlib.sha256()
    while num_bytes and (block := file.read(min(_BLOCK_BYTES, num_bytes))):
        digest.update(block)
        num_bytes -= len(block)
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    """Returns 64 bits of the SHA-256 of a dataclass or JSON value, in hexadecimal. Files store it: never change it."""
    value = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
