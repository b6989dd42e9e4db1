"""Evaluates an encoder on scored pairs of texts (semantic textual similarity)."""

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config.finetuning import Task
from bert_jax.console import quantity
from bert_jax.data.labelled import read_records
from bert_jax.errors import BadInput
from bert_jax.evaluation.retrieval.vectors import write_vectors
from bert_jax.pretrained.load import Pretrained
from bert_jax.pretrained.sentences import SentenceSettings
from bert_jax.text.sources.compression import without_compression

FORMATS = ('jsonl', 'csv', 'tsv', 'parquet')
_SCORED = 'a text, another text, and a number'


@dataclasses.dataclass(frozen=True)
class ScoredPairs:
    """Pairs of texts with the scores that people gave them."""

    first: list[str]
    second: list[str]
    scores: list[float]


def source_of(name: str) -> str:
    """Returns FORMAT:FILE for the name of a file, whose suffix gives the format unless the name begins with one.

    Raises:
      BadInput: if the format is unknown.
    """
    if name.partition(':')[0] in FORMATS:
        return name
    suffix = Path(without_compression(name)).suffix.removeprefix('.')
    if suffix not in FORMATS:
        expected = f'a file that ends in {", ".join(f".{each}" for each in FORMATS)}, or FORMAT:FILE'
        raise BadInput(name, 'has no known format', expected)
    return f'{suffix}:{name}'


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
        for where, fields in read_records(source_of(name), Task(), columns):
            first, second, score = (fields.get(column) for column in columns)
            if not all(isinstance(text, str) and text.strip() for text in (first, second)):
                raise BadInput(where, 'has an empty text', _SCORED)
            pairs.first.append(str(first))
            pairs.second.append(str(second))
            pairs.scores.append(_as_score(score, where))
    except BadInput as error:  # its fix names the fields of a fine-tune
        raise BadInput(*error.args[:3], fix) from None
    if len({*pairs.scores}) < 2:
        raise BadInput(name, 'has no two different scores', 'scores that vary, to correlate with')
    return pairs


def _as_score(value: Any, where: str) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise BadInput(where, 'has no score', _SCORED)
    return score


def evaluate_similarity(
    name: str, pretrained: Pretrained, settings: SentenceSettings, pairs: ScoredPairs
) -> dict[str, Any]:
    """Returns `system` (its name), `spearman` and `truncated`.

    `spearman` is Spearman's rank correlation of cosine similarities and scores, as in STS-B; None if all cosines are
    equal.
    """
    vectors = []
    truncated = 0
    with tempfile.TemporaryDirectory(prefix='bert_jax-evaluate-') as directory:
        for which, texts in (('first', pairs.first), ('second', pairs.second)):
            path = Path(directory) / f'{which}.npy'
            written = write_vectors(path, pretrained, settings, texts, len(texts), f'{which} texts', normalize=True)
            vectors.append(written.array)
            truncated += written.num_truncated
        cosines = np.einsum('nd,nd->n', *vectors)
    return {'system': name, 'spearman': spearman(cosines, np.array(pairs.scores)), 'truncated': truncated}


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
