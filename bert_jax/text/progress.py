"""How far the preparation of a corpus has come, on standard error."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator

import tqdm

from bert_jax.console import say

_SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def shown_while(phase: str, progress: bool) -> Iterator[None]:
    """Says every ten seconds how long something takes that does not say how far it has come, and its time at the end.

    What it does must release the interpreter's lock.
    """
    start, is_over = time.monotonic(), threading.Event()

    def report() -> None:
        while not is_over.wait(_SECONDS_BETWEEN_LINES):
            say(f'{phase}: {time.monotonic() - start:.0f} s so far')

    reporter = threading.Thread(target=report, daemon=True)
    if progress:
        reporter.start()
    try:
        yield
    finally:
        is_over.set()
        if progress:
            reporter.join()


def shown(chunks: Iterable[tuple[int, int]], count: int, phase: str, progress: bool) -> Iterator[tuple[int, int]]:
    """Yields the (documents, characters) of each of `count` chunks; shows a bar in a terminal, else lines."""
    num_documents = num_characters = num_chunks = 0
    start = last = time.monotonic()

    def state() -> str:
        done = f'{num_documents:,} documents, {num_characters / 1e6:,.1f} M characters'
        return f'{phase}: {num_chunks} of {count} chunks, {done}'

    with tqdm.tqdm(
        desc=phase, unit=' characters', unit_scale=True, disable=not (progress and sys.stderr.isatty())
    ) as bar:
        for num_chunks, (documents, characters) in enumerate(chunks, 1):
            num_documents, num_characters = num_documents + documents, num_characters + characters
            bar.update(characters)
            now = time.monotonic()
            if progress and bar.disable and now - last >= _SECONDS_BETWEEN_LINES and num_chunks < count:
                last = now
                say(state())
            yield documents, characters
    if progress:
        say(f'{state()}, {time.monotonic() - start:.0f} s')
