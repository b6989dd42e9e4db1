"""Reading JSON that may be damaged, or somebody else's: whatever is wrong with it is one exception."""

import json
import os
from typing import Any

from etils import epath

from bert_jax.files import as_path, size_of

_LARGEST = 1 << 28  # bytes
_MOST_DIGITS = 100  # of a whole number


class DamagedJson(ValueError):
    """JSON that is not what was written; its text says what is wrong. `path` is its file, '' where it is not known."""

    def __init__(self, problem: str, path: str = '') -> None:
        super().__init__(problem)
        self.path = path


def read_json(path: epath.PathLike, kind: type = dict, *, largest: int = _LARGEST) -> Any:
    """The value in a JSON file.

    Args: kind, the type that the value must have; largest, bytes of the file, at most.

    Raises:
      DamagedJson: whatever is wrong with the contents.
      OSError: when the file is missing or cannot be read.
    """
    path = as_path(path)
    if (size := size_of(path)) > largest:
        raise DamagedJson(f'has {size:,} bytes, more than the {largest:,} that are read', os.fspath(path))
    try:
        return parse_json(path.read_bytes(), kind)
    except DamagedJson as error:
        raise DamagedJson(str(error), os.fspath(path)) from None


def parse_json(text: bytes | str, kind: type = dict) -> Any:
    """The value of a JSON text in UTF-8, which must be a `kind`.

    Raises:
      DamagedJson: for anything else; also for deep nesting and huge numbers.
    """
    try:
        text = text.decode('utf-8') if isinstance(text, bytes) else text
        value = json.loads(text, parse_int=_whole_number)
        if '\\u' in text:
            json.dumps(value, ensure_ascii=False).encode('utf-8')  # fails for one half of a surrogate pair
    except json.JSONDecodeError as error:
        raise DamagedJson(f'is not JSON ({error.msg}, line {error.lineno}, column {error.colno})') from None
    except UnicodeError:
        raise DamagedJson('is not JSON (not UTF-8)') from None
    except RecursionError:
        raise DamagedJson('is not JSON that can be read (nested too deeply)') from None
    if not isinstance(value, kind):
        raise DamagedJson(f'holds a {type(value).__name__}, not a JSON {"object" if kind is dict else "array"}')
    return value


def _whole_number(digits: str) -> int | float:
    """A number that 64 bits hold; larger ones as floats, as other languages read them.

    `transformers` writes 1000000000000000019884624838656 for a length without a limit.
    """
    if len(digits) > _MOST_DIGITS:
        raise DamagedJson(f'holds a number of {len(digits)} digits')
    number = int(digits)
    return number if -(2**63) <= number < 2**64 else float(number)
