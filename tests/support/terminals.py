"""Gives standard error a terminal, to see what is drawn there."""

import contextlib
import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Iterator

import pytest

from bert_jax import console


@contextlib.contextmanager
def terminal_as_stderr(rows: int = 20, columns: int = 70) -> Iterator[list[str]]:
    """Makes standard error a terminal; the yielded list holds everything drawn on it once the block has ended."""
    reading, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))
    shown: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'stderr', console._surviving(terminal, None))
        yield shown
    os.close(terminal)
    output = b''
    with contextlib.suppress(OSError):  # raised at the end of the output of a terminal
        while more := os.read(reading, 1000):
            output += more
    os.close(reading)
    shown.append(output.decode())
