"""JSON lines, one per step; when a run resumes or rolls back, the lines of later steps are removed."""

import json
from typing import Any

from etils import epath

from bert_jax.console import say
from bert_jax.files import write_whole
from bert_jax.json_files import DamagedJson, parse_json


class StepLines:
    """A file of lines, each flushed as it is appended; only one process may open it.

    Attributes:
      newest: the last step in the file when it was opened, 0 if it was empty.
    """

    def __init__(self, path: epath.Path, step: int):
        """Opens the file and removes lines after `step`, logged after the last save: each step appears once."""
        self.newest = 0
        if path.exists():
            lines = _whole_lines(path.read_bytes().decode(errors='replace'))
            steps = [_step_of(line) for line in lines]
            retained = [line for line, at in zip(lines, steps, strict=True) if at is not None and at <= step]
            self.newest = max((at for at in steps if at is not None), default=0)
            if num_damaged := steps.count(None):
                count = '1 damaged line' if num_damaged == 1 else f'{num_damaged} damaged lines'
                say(f'{path}: removed {count}, starting at line {steps.index(None) + 1}')
            write_whole(path, ''.join(line + '\n' for line in retained))
        self._file = path.open('a')

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends a line. After an OSError (a full disk) the line stays buffered and is written with a later one."""
        self._file.write(json.dumps({'step': step} | values, ensure_ascii=False) + '\n')
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _step_of(line: str) -> int | None:
    """Returns the step of a line, or None for a damaged line."""
    if '\r' in line:  # valid between JSON values, but many readers take it as the end of the line
        return None
    try:
        step = parse_json(line)['step']
    except (DamagedJson, KeyError):
        return None
    return step if type(step) is int else None


def _whole_lines(text: str) -> list[str]:
    """Returns the lines of a text, without a last line that a kill cut short."""
    return text[: text.rfind('\n') + 1].split('\n')[:-1]
