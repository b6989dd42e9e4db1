"""Encodes many texts into a memory-mapped file, so that memory does not depend on their number."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bert_jax import activity
from bert_jax.console import size
from bert_jax.errors import BadInput
from bert_jax.pretrained.load import Pretrained
from bert_jax.pretrained.sentences import SentenceSettings
from bert_jax.pretrained.vectors import TextEncoder
from bert_jax.text.sources.lines import batched

_TEXTS_AT_ONCE = 4096
_SMALLEST_NORM = 1e-12


class Vectors(NamedTuple):
    """Vectors of texts.

    Attributes:
      array: [texts, D] float32, mapped from a file.
      num_truncated: number of texts that were truncated.
    """

    array: np.ndarray
    num_truncated: int


def write_vectors(
    path: Path,
    pretrained: Pretrained,
    settings: SentenceSettings,
    texts: Iterable[str],
    num_texts: int,
    what: str,
    *,
    normalize: bool,
) -> Vectors:
    """Writes the vectors of texts to a new file of the name `path`, and maps it.

    Args:
      num_texts: the number of texts, at least 1.
      what: what the texts are, for the progress bar.
      normalize: scales vectors to length 1, whatever the settings are.

    Raises:
      BadInput: if the disk is too small, or a vector is not finite.
    """
    array: np.ndarray | None = None
    done = num_truncated = 0

    def describe() -> str:
        return f'encoding {what}, {done:,} of {num_texts:,}'

    with activity.progress(describe, desc=f'encoding {what}', total=num_texts, unit=' texts', leave=False) as bar:
        for vectors, truncated in TextEncoder(pretrained, settings).encode_chunks(batched(texts, _TEXTS_AT_ONCE)):
            if not np.isfinite(vectors).all():
                raise BadInput('the model', f'computes vectors of {what} that are not finite', 'a model that works')
            if normalize:
                vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _SMALLEST_NORM)
            if array is None:
                array = _new_array(path, (num_texts, vectors.shape[1]))
            array[done : done + len(vectors)] = vectors
            done, num_truncated = done + len(vectors), num_truncated + truncated
            bar.update(len(vectors))
    if array is None or done != num_texts:
        raise BadInput(what, f'has {done:,} texts, after {num_texts:,} were counted', 'files that do not change')
    return Vectors(array, num_truncated)


def _new_array(path: Path, shape: tuple[int, int]) -> np.ndarray:
    needed, free = 4 * shape[0] * shape[1], shutil.disk_usage(path.parent).free
    if needed > free:
        found = f'has {size(free)} free, and the vectors need {size(needed)}'
        raise BadInput(str(path.parent), found, 'enough space', 'TMPDIR=DIR, a directory on a larger disk')
    return np.lib.format.open_memmap(path, 'w+', np.float32, shape)
