"""Config files that come with the package, found by name.

`bert_jax/configs` is a link to `configs/` in the repository, and a copy of it in a wheel.
"""

import difflib
import os
from pathlib import Path

from bert_jax.errors import BadInput

_CONFIGS = Path(__file__).parents[1] / 'configs'


def shipped_configs() -> list[str]:
    """Names of the shipped config files, such as 'bert.py' and 'finetune/glue.py', sorted."""
    return sorted(path.relative_to(_CONFIGS).as_posix() for path in [*_CONFIGS.glob('*.py'), *_CONFIGS.glob('*/*.py')])


def find_config(argument: str) -> str:
    """The argument of `--config` with the path of a file in it.

    Args:
      argument: FILE.py or FILE.py:VARIANT. A file on disk wins over a shipped one of the same name; a shipped one may
        also be named as in the repository, with 'configs/' before its name.

    Raises:
      BadInput: when there is no such file, naming the shipped ones and the nearest.
    """
    name, colon, variant = argument.partition(':')
    if os.path.isfile(name):
        return argument
    names = shipped_configs()
    shipped_name = name.removeprefix('configs/')
    if shipped_name not in names:
        expected = f'the path of a file, or a shipped config: {", ".join(names)}'
        is_there = os.path.exists(name)
        kind = 'a directory' if os.path.isdir(name) else 'not a regular file'
        found = f'{name} is {kind}' if is_there else f'there is no file {name}' if name else 'is empty'
        raise BadInput('--config', found, expected, '' if is_there else _nearest(shipped_name, names, colon + variant))
    return f'{_CONFIGS / shipped_name}{colon}{variant}'


def _nearest(name: str, names: list[str], variant: str) -> str:
    """Returns 'did you mean …?', or ''. Compares file names alone, as every path ends in .py; keeps `:VARIANT`."""
    stems = {Path(path).stem: path for path in names}
    close = difflib.get_close_matches(Path(name).stem, stems, n=1)
    return f'did you mean {stems[close[0]] + variant!r}?' if close else ''
