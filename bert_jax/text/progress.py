"""Progress of the preparation of a corpus, on standard error."""

import time
from collections.abc import Iterable, Iterator

from bert_jax import activity
from bert_jax.console import duration, quantity, say

LABEL_WIDTH = 10  # characters; lines that begin with 'reading:', 'tokenizer:' or 'encoding:' align behind it


def show_progress(
    chunks: Iterable[tuple[int, int]], num_chunks: int, phase: str, progress: bool
) -> Iterator[tuple[int, int]]:
    """Yields (documents, characters) of each finished chunk; shows a progress bar in a terminal, lines elsewhere."""
    num_done = num_documents = num_characters = 0
    start = time.monotonic()

    def counts() -> str:
        return f'{quantity(num_documents, "document")}, {_characters(num_characters)}'

    def state() -> str:
        return f'{phase}: {num_done:,} of {quantity(num_chunks, "chunk")}, {counts()}'

    with activity.progress(state, desc=phase, unit=' characters', unit_scale=True, shown=progress) as bar:
        for documents, characters in chunks:
            num_done += 1
            num_documents, num_characters = num_documents + documents, num_characters + characters
            bar.update(characters)
            yield documents, characters
    if progress:
        elapsed = duration(time.monotonic() - start)
        say(f'{phase + ":":{LABEL_WIDTH}} {quantity(num_done, "chunk")}, {counts()}, {elapsed}')


def _characters(count: int) -> str:
    return f'{count / 1e6:,.1f} M characters' if count >= 1e6 else quantity(count, 'character')
