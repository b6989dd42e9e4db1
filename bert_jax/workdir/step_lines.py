"""A file of JSON objects, a line each, each about a step: what a run that goes back has written of later steps goes."""

import json
from typing import Any

from etils import epath

from bert_jax.console import say
from bert_jax.files import write_whole


class StepLines:
    """Appends lines, flushed one by one; for one process to hold.

    Attributes:
      newest: the last step that the file told of when it was opened; 0 where it told of none.
    """

    def __init__(self, path: epath.Path, step: int):
        """Lines past `step`, of a run killed after its last save, go: a step appears once."""
        self.newest = 0
        if path.exists():
            lines = _whole_lines(path.read_bytes().decode(errors='replace'))
            steps = [_step_of(line) for line in lines]
            kept = [line for line, number in zip(lines, steps, strict=True) if number is not None and number <= step]
            self.newest = max((number for number in steps if number is not None), default=0)
            if None in steps:
                first = steps.index(None) + 1
                say(f'{path}: {steps.count(None)} damaged lines are left out, the first is line {first}')
            write_whole(path, ''.join(line + '\n' for line in kept))
        self._file = path.open('a')

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends a line. What an OSError keeps back comes with a later line, when there is room."""
        self._file.write(json.dumps({'step': step} | values, ensure_ascii=False) + '\n')
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _step_of(line: str) -> int | None:
    """The step that a line is about, or None for a line that is damaged."""
    if '\r' in line:  # JSON may hold it between values; to those who read lines it is the end of one
        return None
    try:
        step = json.loads(line)['step']
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int else None


def _whole_lines(text: str) -> list[str]:
    """Without a last line that a kill cut short."""
    return text[: text.rfind('\n') + 1].split('\n')[:-1]
