"""Runs config files. They are programs of the user, so any error in one is reported with its file and line."""

import contextlib
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

from bert_jax.cli.shipped import CONFIGS, find_config
from bert_jax.errors import BadInput

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_EXPECTED = 'a Python file whose get_config() returns a ConfigDict'
_OTHER_FORMATS = ('.json', '.toml', '.yaml', '.yml')
_EXAMPLE = CONFIGS / 'demo.py'
_MODULE = 'config_file'


def load_config_file(argument: str) -> 'ConfigDict':
    """Returns what get_config() of a config file returns.

    Args:
      argument: FILE.py or FILE.py:VARIANT, a path or the name of a shipped file. get_config gets the variant.

    Raises:
      BadInput: if the file does not exist or is not a config file, and for any error in it, with file and line.
    """
    from ml_collections import ConfigDict

    path, colon, variant = find_config(argument).partition(':')
    if (suffix := Path(path).suffix) in _OTHER_FORMATS:
        raise BadInput(path, f'is a {suffix} file', _EXPECTED, f'write the settings in Python, as in {_EXAMPLE}')
    module = types.ModuleType(_MODULE)
    module.__file__ = path
    sys.modules[_MODULE] = module  # its dataclasses look up their types here
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the command's result
            exec(compile(Path(path).read_bytes(), path, 'exec'), module.__dict__)
            get_config = getattr(module, 'get_config', None)
            config = get_config(*([variant] if colon else [])) if callable(get_config) else None
    except BadInput:
        raise
    except (Exception, SystemExit) as error:
        found = f'raises {type(error).__name__}: {error}'
        raise BadInput(_location_of(error, path), found, _EXPECTED, f'compare with {_EXAMPLE}') from error
    if not isinstance(config, ConfigDict):
        found = f'returns {_described(config)}' if callable(get_config) else 'does not exist'
        raise BadInput(f'{path}: get_config()', found, _EXPECTED, f'compare with {_EXAMPLE}')
    return config


def _location_of(error: BaseException, path: str) -> str:
    """Returns FILE:LINE, the innermost line of the file in the traceback of an error; FILE if it has none."""
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == path else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return path if line is None else f'{path}:{line}'


def _described(config: object) -> str:
    kind = type(config).__name__
    return 'nothing (is its return statement missing?)' if config is None else f'a value of type {kind}'
