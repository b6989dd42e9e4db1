"""Proves that sentence-transformers computes the same vectors with an export as this package."""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bert_jax.pretrained.load import Pretrained
from bert_jax.pretrained.sentences import SentenceSettings, read_settings
from bert_jax.pretrained.vectors import TextEncoder

_TOLERANCE = 1e-4  # relative to the largest absolute value of the vectors
_NUM_TEXTS = 8


def prove_sentences(directory: Path, trained: Pretrained, settings: SentenceSettings) -> dict[str, object]:
    """Compares vectors of synthetic texts of several lengths; raises RuntimeError if they differ.

    sentence-transformers computes the others if it is installed. Otherwise, and in addition, the settings are compared
    with those read back.

    Args:
      directory: of the export, with the files of `write_settings`.
      settings: those that were written.
    """
    written = dataclasses.replace(settings, directory=str(directory))
    if read_settings(str(directory)) != written:
        raise RuntimeError('the export is wrong: its settings of vectors are not as written; nothing was written')
    if not all(importlib.util.find_spec(name) for name in ('torch', 'sentence_transformers')):
        return {'vectors_compared_with': 'the settings read back by bert_jax'}
    texts = _texts(trained, settings)
    theirs = _encode(directory, texts)
    ours, _ = TextEncoder(trained, settings).encode(texts)
    difference = float(np.abs(ours - theirs).max())
    if not difference <= _TOLERANCE * max(1.0, float(np.abs(ours).max())):
        raise RuntimeError(
            f'the export is wrong: the vectors of sentence-transformers differ by {difference:.2e}; nothing was written'
        )
    return {
        'vectors_compared_with': 'sentence-transformers',
        'vectors_compared': len(texts),
        'largest_difference_of_vectors': difference,
    }


def _encode(directory: Path, texts: list[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    with without_load_report():
        model = SentenceTransformer(str(directory), device='cpu').float()  # the weights may be in half precision
    return model.encode(texts, show_progress_bar=False)


@contextlib.contextmanager
def without_load_report() -> Iterator[None]:
    """Inside, `transformers` does not report the weights that a file has and a class does not, or the reverse."""
    import transformers.utils.logging

    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _texts(trained: Pretrained, settings: SentenceSettings) -> list[str]:
    """Returns texts of random ordinary tokens, from a few to more than `max_length`."""
    tokenizer, rng = trained.tokenizer, np.random.default_rng(0)
    ordinary = np.flatnonzero(~tokenizer.is_special)
    longest = settings.limit(trained.max_length, trained.config.max_positions)
    lengths = np.linspace(1, longest + 4, _NUM_TEXTS).astype(int)
    return [tokenizer.decode(rng.choice(ordinary, length)) for length in lengths]
