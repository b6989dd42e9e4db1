"""How far the reading of a source has come, on standard error."""

import sys
import time
from collections.abc import Iterable, Iterator

import tqdm

from bert_jax.text.documents import Document

_SECONDS_BETWEEN_LINES = 10


def say(message: str, progress: bool) -> None:
    """A line on standard error."""
    if progress:
        print(message, file=sys.stderr, flush=True)


def shown(documents: Iterable[Document], phase: str, progress: bool) -> Iterator[Document]:
    """Passes documents on and tells how many there were: a bar in a terminal, else a line now and then."""
    num_documents = num_characters = 0
    start = last = time.monotonic()
    with tqdm.tqdm(
        desc=phase, unit=' characters', unit_scale=True, disable=not (progress and sys.stderr.isatty())
    ) as bar:
        try:
            for document in documents:
                size = sum(map(len, document.sentences))
                num_documents, num_characters = num_documents + 1, num_characters + size
                bar.update(size)
                now = time.monotonic()
                if bar.disable and now - last >= _SECONDS_BETWEEN_LINES:
                    last = now
                    say(f'{phase}: {num_documents} documents, {num_characters / 1e6:.1f} M characters', progress)
                yield document
        finally:
            spent = time.monotonic() - start
            say(f'{phase}: {num_documents} documents, {num_characters / 1e6:.1f} M characters, {spent:.0f} s', progress)
