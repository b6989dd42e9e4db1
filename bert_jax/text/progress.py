"""How far the preparation of a corpus has come, on standard error."""

import time
from collections.abc import Iterable, Iterator

from bert_jax import activity
from bert_jax.console import say


def shown(chunks: Iterable[tuple[int, int]], count: int, phase: str, progress: bool) -> Iterator[tuple[int, int]]:
    """Yields the (documents, characters) of each of `count` chunks; shows a bar in a terminal, else lines."""
    num_documents = num_characters = num_chunks = 0
    start = time.monotonic()

    def state() -> str:
        done = f'{num_documents:,} documents, {num_characters / 1e6:,.1f} M characters'
        return f'{phase}: {num_chunks} of {count} chunks, {done}'

    with activity.progress(state, desc=phase, unit=' characters', unit_scale=True, shown=progress) as bar:
        for documents, characters in chunks:
            num_chunks += 1
            num_documents, num_characters = num_documents + documents, num_characters + characters
            bar.update(characters)
            yield documents, characters
    if progress:
        say(f'{state()}, {time.monotonic() - start:.0f} s')
