"""How Orbax is made to write where it should, and asked whether it finds again what it wrote."""

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

# Moments of a first step are zeros, and bfloat16 stored as float32 packs well; beyond that a checkpoint is a trap.
_MAX_COMPRESSION = 64
_SMALL = 64 << 20  # bytes, whatever the files


class LiteralPath(PosixGPath):
    """A local path whose own name is never part of a pattern.

    Orbax merges what the processes have written, which it finds with `directory.glob`. `epath` puts the directory's
    name into the pattern: in `exp[1]` nothing would be found, in `a*b` also what is in `axb`.
    """

    def glob(self, pattern: str) -> Iterator[Self]:
        return (self / name for name in sorted(glob.glob(pattern, root_dir=self)))


def literal_path(path: str) -> epath.Path:
    """The path to give to Orbax."""
    return LiteralPath(path) if is_local(path) else epath.Path(path)


def restore_error(directory: epath.Path, step: int) -> str:
    """Why Orbax could not restore a checkpoint with whole files; '' when it can.

    Reads the step, and of every other array its shape: under a millisecond for each. In this process alone, without
    the others.
    """
    handler = ocp.PyTreeCheckpointHandler()
    as_numpy = {'step': ocp.RestoreArgs(restore_type=np.ndarray)}
    try:
        found = handler.restore(
            directory, args=ocp.args.PyTreeRestore({'step': 0}, restore_args=as_numpy, partial_restore=True)
        )
        if int(found['step']) != step:
            return f'holds step {int(found["step"])}'
        num_bytes = sum(array.num_bytes for array in arrays_of(directory).values())
        on_disk = sum(map(size_of, files_below(directory).values()))
        if num_bytes > _MAX_COMPRESSION * on_disk + _SMALL:
            return f'its {on_disk:,} bytes unpack to arrays of {num_bytes:,}'
    except Exception as error:  # Orbax and TensorStore raise whatever they meet
        return f'Orbax cannot restore it ({describe_error(error)[:200]})'
    finally:
        handler.close()
    return ''


class StoredArray(NamedTuple):
    """What a checkpoint says about one of its arrays."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize


def arrays_of(directory: epath.Path) -> dict[str, StoredArray]:
    """The arrays of a checkpoint by their paths; their contents are not read. Raises whatever Orbax does."""
    handler = ocp.PyTreeCheckpointHandler()
    try:
        leaves = jax.tree.leaves_with_path(handler.metadata(directory).tree)
    finally:
        handler.close()
    return {jax.tree_util.keystr(path): StoredArray(leaf.shape, np.dtype(leaf.dtype)) for path, leaf in leaves}


def describe_error(error: Exception) -> str:
    """What went wrong: the system's words for an error code of TensorStore, else the first line of the message."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return getattr(error, 'strerror', None) or (str(error).splitlines() or [type(error).__name__])[0]
