"""Starts Python so that it is stopped (SIGTERM) when the process that started it ends, SIGKILL included. Linux only.

    python -m bert_jax.runtime.end_with_parent PARENT ARGUMENTS…

PARENT is the process id of the starting process. `preexec_fn` would do the same between fork and exec, which is not
safe once there are threads. Imports nothing large, because it starts Python again with the arguments.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_EXIT_RUN_AGAIN = 75


def command(arguments: Sequence[str]) -> list[str]:
    """Returns the command that starts Python with these arguments.

    Start it from the main thread: Linux sends the signal when the starting thread ends.
    """
    return [sys.executable, '-m', 'bert_jax.runtime.end_with_parent', str(os.getpid()), *arguments]


if __name__ == '__main__':
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):  # the parent ended before the call above
        sys.exit(_EXIT_RUN_AGAIN)
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
