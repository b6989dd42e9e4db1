"""Makes Orbax write to paths with special characters, and checks that it can read back what it wrote."""

import glob
import math
import os
import re
from collections.abc import Iterator
from typing import NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from etils.epath.gpath import PosixGPath

from bert_jax.files import files_below, is_local, size_of

# The moments of a first step are zeros, and bfloat16 stored as float32 compresses well. A higher ratio means a
# decompression bomb.
_MAX_COMPRESSION = 64
_ALWAYS_ALLOWED_BYTES = 64 << 20


class LiteralPath(PosixGPath):
    """A local path whose own name is never treated as a pattern.

    Orbax uses `directory.glob` to find the files of all processes, and `epath` puts the directory's name into the
    pattern: it would find nothing in `exp[1]`, and in `a*b` also the files of `axb`.
    """

    def glob(self, pattern: str) -> Iterator[Self]:
        return (self / name for name in sorted(glob.glob(pattern, root_dir=self)))


def literal_path(path: str) -> epath.Path:
    """Returns the path to pass to Orbax."""
    return LiteralPath(path) if is_local(path) else epath.Path(path)


def restore_error(directory: epath.Path, step: int) -> str:
    """Returns why Orbax cannot restore a checkpoint whose files are intact; '' if it can.

    Reads the step and the shapes of all other arrays, in under a millisecond per array. Needs no other process.
    """
    handler = ocp.PyTreeCheckpointHandler()
    as_numpy = {'step': ocp.RestoreArgs(restore_type=np.ndarray)}
    try:
        restored = handler.restore(
            directory, args=ocp.args.PyTreeRestore({'step': 0}, restore_args=as_numpy, partial_restore=True)
        )
        if int(restored['step']) != step:
            return f'it holds step {int(restored["step"])}'
        num_bytes = sum(array.num_bytes for array in arrays_of(directory).values())
        on_disk = sum(map(size_of, files_below(directory).values()))
        if num_bytes > _MAX_COMPRESSION * on_disk + _ALWAYS_ALLOWED_BYTES:
            return f'its {on_disk:,} bytes unpack to arrays of {num_bytes:,}'
    except Exception as error:  # Orbax and TensorStore raise whatever they meet
        return f'Orbax cannot restore it ({describe_error(error)[:200]})'
    finally:
        handler.close()
    return ''


class StoredArray(NamedTuple):
    """The metadata of an array in a checkpoint."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize


def arrays_of(directory: epath.Path) -> dict[str, StoredArray]:
    """Returns {path: array} of a checkpoint without reading contents. Raises whatever Orbax does."""
    handler = ocp.PyTreeCheckpointHandler()
    try:
        leaves = jax.tree.leaves_with_path(handler.metadata(directory).tree)
    finally:
        handler.close()
    return {jax.tree_util.keystr(path): StoredArray(leaf.shape, np.dtype(leaf.dtype)) for path, leaf in leaves}


def describe_error(error: Exception) -> str:
    """Returns the system's text for an error code of TensorStore, or else the first line of the message."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return getattr(error, 'strerror', None) or (str(error).splitlines() or [type(error).__name__])[0]
