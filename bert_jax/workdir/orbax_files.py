"""How Orbax is made to write where it should, and asked whether it finds again what it wrote."""

import glob
import os
import re
from collections.abc import Iterator
from typing import Self

import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from etils.epath.gpath import PosixGPath

from bert_jax.files import is_local


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


def unreadable(directory: epath.Path, step: int) -> str:
    """Why Orbax could not restore a checkpoint with whole files; '' when it can.

    Reads the step, and of every other array its shape: a few milliseconds. In this process alone, without the others.
    """
    handler = ocp.PyTreeCheckpointHandler()
    as_numpy = {'step': ocp.RestoreArgs(restore_type=np.ndarray)}
    try:
        found = handler.restore(
            directory, args=ocp.args.PyTreeRestore({'step': 0}, restore_args=as_numpy, partial_restore=True)
        )
        if int(found['step']) != step:
            return f'holds step {int(found["step"])}'
        handler.metadata(directory)
    except Exception as error:  # Orbax and TensorStore raise whatever they meet
        return f'Orbax cannot restore it ({why(error)[:200]})'
    finally:
        handler.close()
    return ''


def why(error: Exception) -> str:
    """What went wrong: the system's words for an error code of TensorStore, else the first line of the message."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return getattr(error, 'strerror', None) or (str(error).splitlines() or [type(error).__name__])[0]
