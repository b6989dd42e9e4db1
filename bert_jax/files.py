"""Files: written whole or not at all, and arrays mapped from them."""

import os
import tokenize

import numpy as np
from etils import epath


def write_whole(path: epath.PathLike, text: str) -> None:
    """Writes a text file under a temporary name, syncs it, and renames it in."""
    path = epath.Path(path)
    temporary = path.with_name(f'.{path.name}.partial')
    with temporary.open('w') as file:
        file.write(text)
        file.flush()
        if hasattr(file, 'fileno'):  # an object store has no file descriptors, and commits on close
            os.fsync(file.fileno())
    temporary.replace(path)


def sync(path: str | os.PathLike) -> None:
    """Waits until a local file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget_cached(path: str | os.PathLike) -> None:
    """Asks the system to drop its copy of a synced local file from memory, so that the next read is of the disk."""
    if hasattr(os, 'posix_fadvise'):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def map_array(path: str | os.PathLike) -> np.ndarray:
    """The array of a `.npy` file, mapped, read-only.

    Raises:
      OSError, ValueError: when it cannot be read; ValueError also for a header that numpy gives up on otherwise.
    """
    try:
        return np.load(path, mmap_mode='r', allow_pickle=False)
    except (SyntaxError, tokenize.TokenError, EOFError, OverflowError) as error:
        raise ValueError(f'{path}: damaged header ({type(error).__name__})') from None
