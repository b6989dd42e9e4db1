"""The one exception for input that cannot work; the command line turns it into exit status 2."""


class BadInput(Exception):
    """Bad input or an impossible request, reported without a traceback.

    Args:
      where: the config field, file (with line), or command-line argument at fault.
      found: its value or state.
      expected: what would work.
      fix: how to fix it; a command to paste where one does.
    """

    def __init__(self, where: str, found: str, expected: str = '', fix: str = ''):
        super().__init__(where, found, expected, fix)
        self.where, self.found, self.expected, self.fix = where, found, expected, fix

    def __str__(self) -> str:
        lines = [f'{self.where}: {self.found}']
        if self.expected:
            lines.append(f'  expected: {self.expected}')
        if self.fix:
            lines.append(f'  fix:      {self.fix}')
        return '\n'.join(lines)

    def as_json(self) -> dict[str, str]:
        """What `--json` prints under `error`."""
        return {'where': self.where, 'found': self.found, 'expected': self.expected, 'mend': self.fix}


class DeviceFault(BadInput):
    """A device computes or remembers wrongly; reported like bad input, with exit status 1: no other command helps."""


def is_exhausted(error: BaseException) -> bool:
    """Whether memory ran out: this machine's, or a device's in jax's words."""
    return isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)
