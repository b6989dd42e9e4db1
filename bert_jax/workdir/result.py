"""Writes the result of a command to the workdir, or to a file that the user names."""

import os
from pathlib import Path

from etils import epath

from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.files import is_local, write_whole


def check_output(output: str) -> None:
    """Checks before the work starts that the output file can be written; '' means no file.

    Raises:
      BadInput: if it is a directory, or if its directory is missing or not writable.
    """
    if not output or not is_local(output):
        return
    parent = Path(output).parent
    if Path(output).is_dir():
        raise BadInput(f'--output={output}', 'is a directory', 'the name of a file')
    if not parent.is_dir():
        raise BadInput(f'--output={output}', f'{parent} is not a directory', 'a file in an existing directory')
    if not os.access(parent, os.W_OK | os.X_OK):
        raise BadInput(f'--output={output}', f'{parent} is not writable', 'a file that this user can write')


def save(text: str, workdir: str, name: str, output: str = '') -> epath.Path | None:
    """Writes a result to OUTPUT, or by default to WORKDIR/NAME.

    If the workdir is not writable, that is reported and the result is not saved; callers also print it.

    Returns:
      The path of the file, or None if it was not saved.

    Raises:
      OSError: if OUTPUT cannot be written.
    """
    if output:
        write_whole(os.path.realpath(output) if is_local(output) else output, text)  # a link is kept
        return epath.Path(output)
    path = epath.Path(workdir) / name
    try:
        write_whole(path, text)
    except OSError as error:
        say(f'{path} could not be written ({error.strerror or error}); --output=FILE saves the result elsewhere.')
        return None
    return path
