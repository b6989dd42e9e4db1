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
from bert_jax.pretrained.sentences import RetrievalSettings, SentenceSettings
from bert_jax.pretrained.vectors import TextEncoder
from bert_jax.text.sources.lines import batched

_TEXTS_AT_ONCE = 4096
_SMALLEST_NORM = 1e-12


class Texts(NamedTuple):
    """Texts to encode.

    Attributes:
      what: what they are, for the progress bar and the name of a file.
      count: the number of texts, at least 1.
    """

    what: str
    texts: Iterable[str]
    count: int


class Vectors(NamedTuple):
    """Vectors of texts.

    Attributes:
      array: [texts, D] float32, mapped from a file.
      num_truncated: number of texts that were truncated.
    """

    array: np.ndarray
    num_truncated: int


def write_both_sides(
    directory: Path,
    pretrained: Pretrained,
    settings: RetrievalSettings,
    queries: Texts,
    passages: Texts,
    dims: int | None = None,
) -> tuple[Vectors, Vectors]:
    """Writes the vectors of queries and of passages to a directory; returns (queries, passages).

    For cosine similarity they have length 1, so that a search by inner product finds the most similar passages.

    Args:
      dims: as of `write_vectors`.

    Raises:
      BadInput: see `write_vectors`.
    """
    normalize = settings.similarity == 'cosine'
    return (
        write_vectors(directory, pretrained, settings.queries, queries, dims, normalize=normalize),
        write_vectors(directory, pretrained, settings.passages, passages, dims, normalize=normalize),
    )


def write_vectors(
    directory: Path,
    pretrained: Pretrained,
    settings: SentenceSettings,
    texts: Texts,
    dims: int | None = None,
    *,
    normalize: bool,
) -> Vectors:
    """Writes the vectors of texts to a new file in a directory, and maps it.

    Args:
      dims: number of leading dims, as of `SentenceSettings.finish`.
      normalize: scales vectors to length 1, whatever the settings are.

    Raises:
      BadInput: if the disk is too small, or a vector is not finite.
    """
    what, num_texts, path = texts.what, texts.count, directory / f'{texts.what}.npy'
    array: np.ndarray | None = None
    done = num_truncated = 0

    def describe() -> str:
        return f'encoding {what}, {done:,} of {num_texts:,}'

    with activity.progress(describe, desc=f'encoding {what}', total=num_texts, unit=' texts', leave=False) as bar:
        for vectors, truncated in TextEncoder(pretrained, settings, dims).encode_chunks(
            batched(texts.texts, _TEXTS_AT_ONCE)
        ):
            if not np.isfinite(vectors).all():
                raise BadInput('the model', f'computes vectors of {what} that are not finite', 'a model that works')
            if normalize:
                vectors = _unit(vectors)
            if array is None:
                array = _new_array(path, (num_texts, vectors.shape[1]))
            array[done : done + len(vectors)] = vectors
            done, num_truncated = done + len(vectors), num_truncated + truncated
            bar.update(len(vectors))
    if array is None or done != num_texts:
        raise BadInput(what, f'has {done:,} texts, after {num_texts:,} were counted', 'files that do not change')
    return Vectors(array, num_truncated)


def leading_dims(vectors: Vectors, path: Path, dims: int, *, normalize: bool) -> Vectors:
    """Returns the leading `dims` of vectors, in a new file unless these are all; normalize: scales them to length 1."""
    if dims == vectors.array.shape[1]:
        return vectors
    array = _new_array(path, (len(vectors.array), dims))
    for start in range(0, len(array), _TEXTS_AT_ONCE):
        leading = np.asarray(vectors.array[start : start + _TEXTS_AT_ONCE, :dims])
        array[start : start + len(leading)] = _unit(leading) if normalize else leading
    return Vectors(array, vectors.num_truncated)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _SMALLEST_NORM)


def _new_array(path: Path, shape: tuple[int, int]) -> np.ndarray:
    needed, free = 4 * shape[0] * shape[1], shutil.disk_usage(path.parent).free
    if needed > free:
        found = f'has {size(free)} free, and the vectors need {size(needed)}'
        raise BadInput(str(path.parent), found, 'enough space', 'TMPDIR=DIR, a directory on a larger disk')
    return np.lib.format.open_memmap(path, 'w+', np.float32, shape)
