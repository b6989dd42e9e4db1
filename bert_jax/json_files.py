"""Reads JSON that may be damaged or written by others; any defect raises `DamagedJson`."""

import json
import os
from typing import Any

from etils import epath

from bert_jax.errors import BadInput
from bert_jax.files import as_path, size_of

_MAX_BYTES = 1 << 28
_MAX_DIGITS = 100  # of an integer


class DamagedJson(ValueError):
    """Damaged or unexpected JSON.

    Attributes:
      path: its file; '' if unknown.
    """

    def __init__(self, problem: str, path: str = '') -> None:
        super().__init__(problem)
        self.path = path


def read_json(path: epath.PathLike, kind: type = dict, *, max_bytes: int = _MAX_BYTES) -> Any:
    """Returns the value in a JSON file.

    Args:
      kind: type that the value must have.
      max_bytes: maximum size of the file.

    Raises:
      DamagedJson: for any defect of the contents.
      OSError: if the file is missing or cannot be read.
    """
    path = as_path(path)
    if (num_bytes := size_of(path)) > max_bytes:
        raise DamagedJson(f'has {num_bytes:,} bytes, more than the limit of {max_bytes:,}', os.fspath(path))
    try:
        return parse_json(path.read_bytes(), kind)
    except DamagedJson as error:
        raise DamagedJson(str(error), os.fspath(path)) from None


def read_given_json(path: epath.PathLike, expected: str, kind: type = dict) -> Any:
    """Returns the value in a JSON file that the user or another program wrote.

    Args:
      expected: what the file should be, for the message.
      kind: type that the value must have.

    Raises:
      BadInput: if the file does not exist, or for any defect of its contents.
    """
    if not as_path(path).is_file():
        raise BadInput(os.fspath(path), 'does not exist', expected, 'correct the path')
    try:
        return read_json(path, kind)
    except DamagedJson as error:
        raise BadInput(os.fspath(path), str(error), expected, 'restore the file, or name another one') from error


def parse_json(text: bytes | str, kind: type = dict) -> Any:
    """Returns the value of a JSON text in UTF-8, which must be a `kind`.

    Raises:
      DamagedJson: for anything else, including deep nesting and huge numbers.
    """
    try:
        text = text.decode('utf-8') if isinstance(text, bytes) else text
        value = json.loads(text, parse_int=_parse_integer)
        if '\\u' in text:
            json.dumps(value, ensure_ascii=False).encode('utf-8')
    except UnicodeEncodeError:
        raise DamagedJson('contains a lone surrogate, which is not a character') from None
    except json.JSONDecodeError as error:
        raise DamagedJson(f'is not JSON ({error.msg}, line {error.lineno}, column {error.colno})') from None
    except UnicodeDecodeError:
        raise DamagedJson('is not JSON (not UTF-8)') from None
    except RecursionError:
        raise DamagedJson('is not JSON that can be read (nested too deeply)') from None
    if not isinstance(value, kind):
        raise DamagedJson(f'is a {type(value).__name__}, not a JSON {"object" if kind is dict else "array"}')
    return value


def _parse_integer(digits: str) -> int | float:
    """Returns an integer, or a float if it needs more than 64 bits, as most JSON parsers do.

    `transformers` writes 1000000000000000019884624838656 for an unlimited length.
    """
    if len(digits) > _MAX_DIGITS:
        raise DamagedJson(f'contains a number of {len(digits)} digits')
    value = int(digits)
    return value if -(2**63) <= value < 2**64 else float(value)
