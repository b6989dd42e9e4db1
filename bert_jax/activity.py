"""What the program is doing, printed whenever nothing has been printed for a while: no command is silent for long.

Each command is an activity (`__main__.py`). Parts of it that may take long are activities inside it, and say how far
they are. A thread prints one line for all that are open: at first every ten seconds, and less often the longer the
command takes.
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
_SHARE_OF_TIME = 1 / 6  # the gap between two lines is at most this share of the time that has passed, if that is longer
_TICK_S = 0.5


@dataclasses.dataclass(eq=False)
class _Activity:
    describe: Callable[[], str]
    begins_line: bool
    show: Callable[[str], None] | None
    began: float = dataclasses.field(default_factory=time.monotonic)


class _Reporter:
    """The open activities of this process, the outermost first, and the thread that prints them."""

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
        """The thread: ends with the last activity."""
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
    """Seconds between two lines, so long after the outermost activity began."""
    return min(max(_FIRST_GAP_S, elapsed * _SHARE_OF_TIME), _LONGEST_GAP_S)


def _print(is_open: list[_Activity], now: float) -> None:
    first = max((i for i, each in enumerate(is_open) if each.begins_line), default=0)
    shown = [text for each in is_open[first:] if (text := each.describe())]
    show = next((each.show for each in reversed(is_open) if each.show), say)
    show(f'{": ".join(shown)} ({duration(now - is_open[-1].began)} so far)'.lstrip())


_REPORTER = _Reporter()  # one for the process, as standard error is


@contextlib.contextmanager
def activity(
    what: str | Callable[[], str], *, begins_line: bool = False, show: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Something that may take long.

    Args:
      what: in words, or what returns them; called in another thread. '' leaves it out.
      begins_line: leaves the activities around it out of the line.
      show: prints the line, instead of `console.say`.
    """
    entered = _Activity((lambda: what) if isinstance(what, str) else what, begins_line, show)
    _REPORTER.enter(entered)
    try:
        yield
    finally:
        _REPORTER.leave(entered)


def counted(items: Iterable[T], total: int, what: str, unit: str = 'batches') -> Iterator[T]:
    """The same items, as an activity that says how many of `total` are done and how long the others will take."""
    done, began = 0, time.monotonic()

    def describe() -> str:
        left = (time.monotonic() - began) / done * (total - done) if done else 0.0
        return f'{what}, {done:,} of {total:,} {unit}' + (f', about {duration(left)} left' if left else '')

    with activity(describe):
        for item in items:
            yield item
            done += 1


@contextlib.contextmanager
def progress(describe: Callable[[], str], *, shown: bool = True, **options: Any) -> Iterator['tqdm']:
    """A progress bar in a terminal; elsewhere it is disabled, and lines say how far an activity is.

    Args:
      describe: how far it is, in words; called in another thread.
      shown: False shows neither.
      options: of `tqdm`.
    """
    with progress_bar(shown=shown, **options) as bar:
        with activity(describe) if shown and bar.disable else contextlib.nullcontext():
            yield bar


def printed_a_line() -> None:
    """To be called where progress is printed otherwise; the next line of activities comes a whole gap later."""
    _REPORTER.printed()
