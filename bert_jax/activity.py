"""Reports what the program is doing: as progress bars on a terminal, elsewhere as lines, so that no command is silent.

Each command is an activity (`__main__.py`). Parts of it that may take long are activities inside it and describe their
progress. A thread prints one line for all open activities: every ten seconds at first, less often later.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from bert_jax.console import duration, progress_bar, say

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar('T')

_FIRST_GAP_S, _LONGEST_GAP_S = 10.0, 600.0
_SHARE_OF_TIME = 1 / 6  # of the time since the command began: the gap between lines, if that is longer than the first
_TICK_S = 0.5
_SECONDS_TO_A_BAR = 1.0  # of `counted`, which may be called many times per second


@dataclasses.dataclass(eq=False)
class _Activity:
    describe: Callable[[], str]
    begins_line: bool
    show: Callable[[str], None] | None
    began: float = dataclasses.field(default_factory=time.monotonic)


class _Reporter:
    """The open activities of this process, outermost first, and the thread that prints them."""

    def __init__(self) -> None:
        self._open: list[_Activity] = []
        self._lock, self._thread = threading.Lock(), None
        self._last_line = 0.0

    def enter(self, activity: _Activity) -> None:
        with self._lock:
            if not self._open:
                self._last_line = activity.began
            self._open.append(activity)
            if self._thread is None:
                self._thread = threading.Thread(target=self._report, name='activity', daemon=True)
                self._thread.start()

    def leave(self, activity: _Activity) -> None:
        with self._lock:
            self._open.remove(activity)

    def printed(self) -> None:
        self._last_line = time.monotonic()

    def _report(self) -> None:
        """Runs in the thread until the last activity ends."""
        while True:
            time.sleep(_TICK_S)
            with self._lock:
                if not self._open:
                    self._thread = None
                    return
                is_open = list(self._open)
            now = time.monotonic()
            if now - self._last_line >= _gap(now - is_open[0].began):
                _print(is_open, now)
                self.printed()


def _gap(elapsed: float) -> float:
    """Returns the seconds between two lines, given those since the outermost activity began."""
    return min(max(_FIRST_GAP_S, elapsed * _SHARE_OF_TIME), _LONGEST_GAP_S)


def _print(is_open: list[_Activity], now: float) -> None:
    first = max((i for i, each in enumerate(is_open) if each.begins_line), default=0)
    shown = [text for each in is_open[first:] if (text := each.describe())]
    show = next((each.show for each in reversed(is_open) if each.show), say)
    show(f'{": ".join(shown)} ({duration(now - is_open[-1].began)} so far)'.lstrip())


_REPORTER = _Reporter()  # one per process, like standard error


@contextlib.contextmanager
def activity(
    what: str | Callable[[], str], *, begins_line: bool = False, show: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Reports the block as something that may take long.

    Args:
      what: its description, or a function that returns it, called in another thread; '' leaves it out of the line.
      begins_line: leaves the enclosing activities out of the line.
      show: prints the line instead of `console.say`.
    """
    entered = _Activity((lambda: what) if isinstance(what, str) else what, begins_line, show)
    _REPORTER.enter(entered)
    try:
        yield
    finally:
        _REPORTER.leave(entered)


def counted(items: Iterable[T], total: int, what: str, unit: str = 'batches') -> Iterator[T]:
    """Yields the items, and shows as `progress` how many of `total` are done and how long the others will take."""
    done, began = 0, time.monotonic()

    def describe() -> str:
        left = (time.monotonic() - began) / done * (total - done) if done else 0.0
        return f'{what}, {done:,} of {total:,} {unit}' + (f', about {duration(left)} left' if left else '')

    with progress(describe, desc=what, total=total, unit=f' {unit}', leave=False, delay=_SECONDS_TO_A_BAR) as bar:
        for item in items:
            yield item
            done += 1
            bar.update()


@contextlib.contextmanager
def progress(describe: Callable[[], str], *, shown: bool = True, **options: Any) -> Iterator['tqdm']:
    """Shows a progress bar with rate and time left on a terminal, and lines elsewhere.

    Args:
      describe: returns the progress in words, for the lines; called in another thread.
      shown: False shows neither.
      options: passed to `tqdm`.
    """
    with progress_bar(shown=shown, **options) as bar:
        with activity(describe) if shown and bar.disable else contextlib.nullcontext():
            yield bar


def printed_a_line() -> None:
    """Delays the next line by a whole gap; call it after printing progress in another way."""
    _REPORTER.printed()
