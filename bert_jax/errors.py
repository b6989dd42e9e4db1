"""The one exception for input that cannot work; the command line turns it into exit status 2."""


class BadInput(Exception):
    """Bad input or an impossible request, told to a person without a traceback.

    Args:
      where: the config field, file (with line), or command-line argument at fault.
      found: what stands there.
      expected: what would work.
      mend: what to do about it; a command to paste where there is one.
    """

    def __init__(self, where: str, found: str, expected: str = '', mend: str = ''):
        super().__init__(where, found, expected, mend)
        self.where, self.found, self.expected, self.mend = where, found, expected, mend

    def __str__(self) -> str:
        lines = [f'{self.where}: {self.found}']
        if self.expected:
            lines.append(f'  expected: {self.expected}')
        if self.mend:
            lines.append(f'  mend:     {self.mend}')
        return '\n'.join(lines)


class DeviceFault(BadInput):
    """A device computes or remembers wrongly; told like bad input, and exit status 1: no other command mends it."""


def is_exhausted(error: BaseException) -> bool:
    """Whether memory ran out: this machine's, or a device's in jax's words."""
    return isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)
