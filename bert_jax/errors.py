"""Input that cannot work, and the commands that messages suggest. `__main__` turns `BadInput` into exit status 2."""

import os
import re
import sys

_COMMAND = re.compile(r'(?<![\w./-])bert-jax(?= [\w-])')  # not at the end of a path


class BadInput(Exception):
    """Bad input or an impossible request, reported without a traceback.

    Args:
      where: the config field, file (with line), or command-line argument at fault.
      found: its value or state.
      expected: what would work.
      fix: how to fix it, with a command to paste if there is one; write commands as `bert-jax …` (`as_started`).
    """

    def __init__(self, where: str, found: str, expected: str = '', fix: str = '') -> None:
        super().__init__(where, found, expected, fix)
        self.where, self.found, self.expected, self.fix = where, found, expected, as_started(fix)

    def __str__(self) -> str:
        lines = [f'{self.where}: {self.found}']
        if self.expected:
            lines.append(f'  expected: {self.expected}')
        if self.fix:
            lines.append(f'  fix:      {self.fix}')
        return '\n'.join(lines)

    def as_json(self) -> dict[str, str]:
        """Returns what `--json` prints under `error`; the key of the fix is `mend`."""
        return {'where': self.where, 'found': self.found, 'expected': self.expected, 'mend': self.fix}


class DeviceFault(BadInput):
    """Silent data corruption on a device; reported like bad input, with exit status 1, because no rerun helps."""


def is_exhausted(error: BaseException) -> bool:
    """Returns whether memory ran out, on this machine or on a device."""
    return isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)


def program() -> str:
    """Returns how this program was started: `bert-jax`, or `python -m bert_jax`."""
    return 'bert-jax' if os.path.basename(''.join(sys.argv[:1])) == 'bert-jax' else 'python -m bert_jax'


def as_started(text: str) -> str:
    """Returns text whose commands, written as `bert-jax …`, begin as the user started this program."""
    return _COMMAND.sub(program(), text)
