"""How far the preparation of a corpus has come, on standard error."""

import sys
import time
from collections.abc import Iterable, Iterator

import tqdm

_SECONDS_BETWEEN_LINES = 10


def say(message: str, progress: bool) -> None:
    """A line on standard error."""
    if progress:
        print(message, file=sys.stderr, flush=True)


def shown(pieces: Iterable[tuple[int, int]], count: int, phase: str, progress: bool) -> Iterator[tuple[int, int]]:
    """Passes on the (documents, characters) of each of `count` pieces, and tells: a bar in a terminal, else lines."""
    num_documents = num_characters = number = 0
    start = last = time.monotonic()

    def told() -> str:
        done = f'{num_documents:,} documents, {num_characters / 1e6:,.1f} M characters'
        return f'{phase}: {number} of {count} pieces, {done}'

    with tqdm.tqdm(
        desc=phase, unit=' characters', unit_scale=True, disable=not (progress and sys.stderr.isatty())
    ) as bar:
        for number, (documents, characters) in enumerate(pieces, 1):
            num_documents, num_characters = num_documents + documents, num_characters + characters
            bar.update(characters)
            now = time.monotonic()
            if bar.disable and now - last >= _SECONDS_BETWEEN_LINES and number < count:
                last = now
                say(told(), progress)
            yield documents, characters
    say(f'{told()}, {time.monotonic() - start:.0f} s', progress)
