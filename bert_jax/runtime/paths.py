"""Checks the paths that a user names, before anything is read or written there."""

import importlib.util

from bert_jax.errors import BadInput
from bert_jax.files import is_local, unusable_path


def check_path(flag: str, path: str) -> None:
    """Raises BadInput if a flag's path would be misread by a library, or if no installed package can open it."""
    if problem := unusable_path(path):
        raise BadInput(f'--{flag}={path}', problem, 'a path without it', f'use another --{flag}')
    if not is_local(path) and importlib.util.find_spec('tensorflow') is None:  # TensorFlow opens them by itself
        import fsspec

        try:
            fsspec.get_filesystem_class(path.partition('://')[0])
        except ImportError as error:
            raise BadInput(f'--{flag}={path}', f'cannot be opened ({error})', 'the package for this store') from error
