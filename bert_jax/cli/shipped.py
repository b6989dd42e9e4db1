"""Finds the config files that come with the package by name.

`bert_jax/configs` is a link to `configs/` in the repository, and a copy of it in a wheel.
"""

import difflib
import os
from pathlib import Path

from bert_jax.errors import BadInput

CONFIGS = Path(__file__).parents[1] / 'configs'


def shipped_configs() -> list[str]:
    """Returns the sorted names of the shipped config files, such as 'bert.py' and 'finetune/glue.py'."""
    return sorted(path.relative_to(CONFIGS).as_posix() for path in [*CONFIGS.glob('*.py'), *CONFIGS.glob('*/*.py')])


def find_config(argument: str) -> str:
    """Returns the argument of `--config` with the name of the file replaced by its path.

    Args:
      argument: FILE.py or FILE.py:VARIANT. A file on disk takes precedence over a shipped one of the same name.
        Shipped ones may also be named as in the repository, with 'configs/' before the name.

    Raises:
      BadInput: if there is no such file, with the shipped ones and the most similar one.
    """
    name, colon, variant = argument.partition(':')
    if os.path.isfile(name):
        return argument
    names = shipped_configs()
    shipped_name = name.removeprefix('configs/')
    if shipped_name not in names:
        expected = f'the path of a config file, or a shipped one: {", ".join(names)}'
        exists = os.path.exists(name)
        kind = 'a directory' if os.path.isdir(name) else 'not a regular file'
        found = f'{name} is {kind}' if exists else f'{name} does not exist' if name else 'is empty'
        fix = '' if exists else _nearest(shipped_name, names, colon + variant)
        raise BadInput('--config', found, expected, fix or '--config=demo.py')
    return f'{CONFIGS / shipped_name}{colon}{variant}'


def _nearest(name: str, names: list[str], variant: str) -> str:
    """Returns 'did you mean …?' with `:VARIANT` kept, or ''. Compares stems, because all names end in .py."""
    stems = {Path(path).stem: path for path in names}
    close = difflib.get_close_matches(Path(name).stem, stems, n=1)
    return f'did you mean {stems[close[0]] + variant!r}?' if close else ''
