"""JSON lines, one per step: when a run resumes or rolls back, the lines of later steps are removed."""

import json
from typing import Any

from etils import epath

from bert_jax.console import say
from bert_jax.files import write_whole
from bert_jax.json_files import DamagedJson, parse_json


class StepLines:
    """Appends lines and flushes each; only one process may open the file.

    Attributes:
      newest: the last step in the file when it was opened, 0 if it had none.
    """

    def __init__(self, path: epath.Path, step: int):
        """Opens the file and removes lines past `step`, logged after the last save: each step appears once."""
        self.newest = 0
        if path.exists():
            lines = _whole_lines(path.read_bytes().decode(errors='replace'))
            steps = [_step_of(line) for line in lines]
            kept = [line for line, found in zip(lines, steps, strict=True) if found is not None and found <= step]
            self.newest = max((found for found in steps if found is not None), default=0)
            if None in steps:
                first = steps.index(None) + 1
                say(f'{path}: {steps.count(None)} damaged lines are left out, the first is line {first}')
            write_whole(path, ''.join(line + '\n' for line in kept))
        self._file = path.open('a')

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends a line. After an OSError (a full disk) the line stays buffered and is written with a later one."""
        self._file.write(json.dumps({'step': step} | values, ensure_ascii=False) + '\n')
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _step_of(line: str) -> int | None:
    """The step of a line, or None for a damaged line."""
    if '\r' in line:  # allowed between JSON values, but it ends the line for many readers
        return None
    try:
        step = parse_json(line)['step']
    except (DamagedJson, KeyError):
        return None
    return step if type(step) is int else None


def _whole_lines(text: str) -> list[str]:
    """The lines of a text, without a last one that a kill cut short."""
    return text[: text.rfind('\n') + 1].split('\n')[:-1]
