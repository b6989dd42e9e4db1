"""Evaluates an encoder on scored pairs of texts (semantic textual similarity)."""

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config.finetuning import Task
from bert_jax.console import quantity
from bert_jax.data.labelled import parse_number, read_records, table_source
from bert_jax.errors import BadInput
from bert_jax.evaluation.retrieval.vectors import Texts, leading_dims, write_vectors
from bert_jax.pretrained.load import Pretrained
from bert_jax.pretrained.sentences import SentenceSettings

_SCORED = 'a text, another text, and a number'


@dataclasses.dataclass(frozen=True)
class ScoredPairs:
    """Pairs of texts with the scores that people gave them."""

    first: list[str]
    second: list[str]
    scores: list[float]


def read_scored_pairs(name: str, columns: tuple[str, str, str]) -> ScoredPairs:
    """Reads pairs of texts.

    Args:
      name: a file, or FORMAT:FILE.
      columns: names of the columns of the two texts and of the score.

    Raises:
      BadInput: names the file and line of a missing text or score, or the file if its scores do not vary.
    """
    pairs, fix = ScoredPairs([], [], []), '--sts_columns=FIRST,SECOND,SCORE names the columns'
    try:
        for where, fields in read_records(table_source(name), Task(), columns):
            first, second, score = (fields.get(column) for column in columns)
            if not all(isinstance(text, str) and text.strip() for text in (first, second)):
                raise BadInput(where, 'has an empty text', _SCORED)
            pairs.first.append(str(first))
            pairs.second.append(str(second))
            pairs.scores.append(parse_number(where, score, 'score', fix))
    except BadInput as error:  # its fix names the fields of a fine-tune
        raise BadInput(*error.args[:3], fix) from None
    if len({*pairs.scores}) < 2:
        raise BadInput(name, 'has no two different scores', 'scores that vary, to correlate with')
    return pairs


def evaluate_similarity(
    name: str,
    pretrained: Pretrained,
    settings: SentenceSettings,
    pairs: ScoredPairs,
    dims: int | None = None,
    smaller: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Returns `system` (its name), `dims`, `spearman` and `truncated` of whole vectors and of their first dims.

    `spearman` is Spearman's rank correlation of cosine similarities and scores, as in STS-B; None if all cosines are
    equal.

    Args:
      dims, smaller: as of `rank_passages`.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix='bert_jax-evaluate-') as directory:
        sides = [
            write_vectors(Path(directory), pretrained, settings, Texts(what, texts, len(texts)), dims, normalize=True)
            for what, texts in (('first texts', pairs.first), ('second texts', pairs.second))
        ]
        full = sides[0].array.shape[1]
        for size in (full, *(each for each in smaller if each < full)):
            leading = [
                leading_dims(side, Path(directory) / f'{size}-{index}.npy', size, normalize=True).array
                for index, side in enumerate(sides)
            ]
            cosines = np.einsum('nd,nd->n', *leading)
            system = {
                'system': name if size == full else f'{name}, {size} dims',
                'dims': size,
                'spearman': spearman(cosines, np.array(pairs.scores)),
                'truncated': sum(side.num_truncated for side in sides),
            }
            found.append(system)
    return found


def spearman(found: np.ndarray, expected: np.ndarray) -> float | None:
    """Returns Spearman's rank correlation, with mean ranks for ties; None if one of the arrays is constant."""
    ranks = _ranks(found), _ranks(expected)
    deviations = [each - each.mean() for each in ranks]
    norm = math.prod(float(np.linalg.norm(each)) for each in deviations)
    return float(deviations[0] @ deviations[1]) / norm if norm else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Returns the rank of each value, from 1; equal values get the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def describe(result: dict[str, Any]) -> str:
    """Returns a table of {file, pairs, systems}."""
    width = max(len(system['system']) for system in result['systems'])
    lines = [f'{result["file"]}: {quantity(result["pairs"], "scored pair")}', f'{" " * width}  Spearman']
    for system in result['systems']:
        value = system['spearman']
        lines.append(f'{system["system"]:{width}}  {"-" if value is None else f"{value:.4f}":>8}')
    return '\n'.join(lines)
