"""What the program prints for people: lines on standard error, and sizes and durations in words.

Nothing here imports another package or starts a backend: text is prepared where there is no jax, a missing package is
reported, and a process that is being stopped prints too.
"""

import contextlib
import sys
from typing import Any


def say(text: str) -> None:
    """Prints a line on standard error, above a progress bar; on process 0 only."""
    if process_index() == 0:
        say_anywhere(text)


def say_anywhere(text: str) -> None:
    """Prints a line on standard error, above a progress bar, on whatever process this is."""
    # The reader may have exited, as a killed launcher has; the run must still save.
    with contextlib.suppress(BrokenPipeError):
        if 'tqdm' in sys.modules:  # else there is no progress bar
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr)
        sys.stderr.flush()


def process_index() -> int:
    """Rank of this process among those of its run, 0 if it is alone; `jax.process_index()` would start a backend."""
    state = distributed_state()
    return state.process_id if state else 0


def distributed_state() -> Any | None:
    """What `jax.distributed.initialize` stored: `process_id`, and the coordinator's `client`; None without jax.

    jax has no public name for it: this is the only place that looks.
    """
    module = sys.modules.get('jax._src.distributed')
    return module.global_state if module else None


def size(num_bytes: float) -> str:
    """Bytes in MiB or GiB: '512.00 MiB'."""
    return f'{num_bytes / 2**30:,.2f} GiB' if abs(num_bytes) >= 2**30 / 10 else f'{num_bytes / 2**20:,.2f} MiB'


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best: '3.5 ms', '12.00 s', '5.0 minutes', '7.5 hours', '3.0 days'."""
    if seconds < 1:
        return f'{seconds * 1e3:.1f} ms'
    if seconds < 120:
        return f'{seconds:.2f} s'
    if seconds < 3600:
        return f'{seconds / 60:.1f} minutes'
    return f'{seconds / 3600:.1f} hours' if seconds < 2 * 86400 else f'{seconds / 86400:.1f} days'
