"""Where a command puts what it found out about a run: into the workdir, or into a file that the user names."""

import os
from pathlib import Path

from etils import epath

from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.files import is_local, write_whole


def check_output(output: str) -> None:
    """Checks, before the work is done, that a file can be written; '' is none.

    Raises:
      BadInput: when it is a directory, or its directory is missing or may not be written to.
    """
    if not output or not is_local(output):
        return
    parent = Path(output).parent
    if Path(output).is_dir():
        raise BadInput(f'--output={output}', 'is a directory', 'the name of a file')
    if not parent.is_dir():
        raise BadInput(f'--output={output}', f'{parent} is not a directory', 'a file in an existing directory')
    if not os.access(parent, os.W_OK | os.X_OK):
        raise BadInput(f'--output={output}', f'{parent} may not be written to', 'a file that this user may write')


def save(text: str, workdir: str, name: str, output: str = '') -> epath.Path | None:
    """Writes a result to OUTPUT, or without it to WORKDIR/NAME.

    A workdir that cannot be written to is reported, and the result is not saved: whoever calls prints it anyway.

    Returns:
      The path of the file, or None.

    Raises:
      OSError: when OUTPUT cannot be written.
    """
    if output:
        write_whole(os.path.realpath(output) if is_local(output) else output, text)  # a link stays one
        return epath.Path(output)
    path = epath.Path(workdir) / name
    try:
        write_whole(path, text)
    except OSError as error:
        say(f'{path} could not be written ({error.strerror or error}); --output=FILE saves the result elsewhere.')
        return None
    return path
