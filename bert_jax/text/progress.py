"""How far the preparation of a corpus has come, on standard error."""

import time
from collections.abc import Iterable, Iterator

from bert_jax.console import progress_bar, say

_SECONDS_BETWEEN_LINES = 10


def shown(chunks: Iterable[tuple[int, int]], count: int, phase: str, progress: bool) -> Iterator[tuple[int, int]]:
    """Yields the (documents, characters) of each of `count` chunks; shows a bar in a terminal, else lines."""
    num_documents = num_characters = num_chunks = 0
    start = last = time.monotonic()

    def state() -> str:
        done = f'{num_documents:,} documents, {num_characters / 1e6:,.1f} M characters'
        return f'{phase}: {num_chunks} of {count} chunks, {done}'

    with progress_bar(desc=phase, unit=' characters', unit_scale=True, shown=progress) as bar:
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
