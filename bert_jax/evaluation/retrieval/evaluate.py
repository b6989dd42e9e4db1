"""Evaluates an encoder on a retrieval set in BEIR format, next to baselines."""

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bert_jax.activity import counted
from bert_jax.console import quantity
from bert_jax.evaluation.retrieval import bm25
from bert_jax.evaluation.retrieval.dataset import RetrievalSet
from bert_jax.evaluation.retrieval.metrics import DEPTH, mean_cosine, measure
from bert_jax.evaluation.retrieval.search import QUERY_ROWS, search
from bert_jax.evaluation.retrieval.vectors import Texts, leading_dims, write_both_sides
from bert_jax.pretrained.load import Pretrained
from bert_jax.pretrained.sentences import RetrievalSettings

_COLUMNS = {
    'ndcg_at_10': 'nDCG@10',
    'mrr_at_10': 'MRR@10',
    'recall_at_10': 'recall@10',
    'recall_at_100': 'recall@100',
    'mean_cosine': 'mean cosine',
}


class Ranked(NamedTuple):
    """What a model retrieves.

    Attributes:
      system: `system` (its name), `dims`, the metrics, `mean_cosine` of the passages, `truncated` texts and `seconds`.
      rankings: [Q, `DEPTH`] int, indices of passages, best first; -1 where there is no further passage.
    """

    system: dict[str, Any]
    rankings: np.ndarray


def evaluate_model(
    name: str, pretrained: Pretrained, settings: RetrievalSettings, dataset: RetrievalSet
) -> dict[str, Any]:
    """Returns what `rank_passages` measures with whole vectors."""
    return rank_passages(name, pretrained, settings, dataset)[0].system


def rank_passages(
    name: str,
    pretrained: Pretrained,
    settings: RetrievalSettings,
    dataset: RetrievalSet,
    dims: int | None = None,
    smaller: Sequence[int] = (),
) -> list[Ranked]:
    """Searches with the vectors of a model, then with their first dims; texts are encoded once.

    The vectors are written to a temporary directory (TMPDIR), 4 bytes per number.

    Args:
      dims: size of the vectors, as of `SentenceSettings.finish`; None for all.
      smaller: further sizes to measure; those that are not smaller are left out.

    Raises:
      BadInput: if the disk is too small for the vectors, or a vector is not finite.
    """
    start, found = time.monotonic(), []
    # Before Python 3.12 there is no way to close a memory map but to drop all references to it.
    with tempfile.TemporaryDirectory(prefix='bert_jax-evaluate-') as directory:
        sides = write_both_sides(
            Path(directory),
            pretrained,
            settings,
            Texts('queries', dataset.queries, len(dataset.queries)),
            Texts('passages', dataset.passages(), dataset.num_passages),
            dims,
        )
        normalize, full = settings.similarity == 'cosine' or settings.queries.normalize, sides[0].array.shape[1]
        for size in (full, *(each for each in smaller if each < full)):
            queries, passages = (
                leading_dims(side, Path(directory) / f'{size}-{index}.npy', size, normalize=normalize)
                for index, side in enumerate(sides)
            )
            rankings, isotropy = _search(queries.array, passages.array, dataset), mean_cosine(passages.array)
            seconds, start = time.monotonic() - start, time.monotonic()
            system = {
                'system': name if size == full else f'{name}, {size} dims',
                'dims': size,
                **dataclasses.asdict(measure(rankings.tolist(), dataset.judgements)),
                'mean_cosine': isotropy,
                'truncated': queries.num_truncated + passages.num_truncated,
                'seconds': round(seconds, 3),
            }
            found.append(Ranked(system, rankings))
    return found


def _search(queries: np.ndarray, passages: np.ndarray, dataset: RetrievalSet) -> np.ndarray:
    """Returns the rankings of `Ranked`."""
    hits = search(queries, passages, DEPTH, dataset.same_id[:, None].tolist())
    num_blocks = -(-len(queries) // QUERY_ROWS)
    return np.concatenate([each.indices for each in counted(hits, num_blocks, 'searching', 'blocks')])


def rank_with_bm25(dataset: RetrievalSet) -> Ranked:
    """Returns what BM25 retrieves; it has no vectors and truncates nothing."""
    start = time.monotonic()
    rankings = bm25.rank(dataset, DEPTH)
    system = {
        'system': 'BM25',
        'dims': None,
        **dataclasses.asdict(measure(rankings.tolist(), dataset.judgements)),
        'mean_cosine': None,
        'truncated': 0,
        'seconds': round(time.monotonic() - start, 3),
    }
    return Ranked(system, rankings)


def summarize(directory: str, split: str, dataset: RetrievalSet, systems: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the content of the key `retrieval` of the result."""
    return {
        'set': directory,
        'split': split,
        'queries': len(dataset.queries),
        'passages': dataset.num_passages,
        'judgements': sum(map(len, dataset.judgements)),
        'systems': list(systems),
    }


def describe(result: dict[str, Any]) -> str:
    """Returns a table of a result of `summarize`."""
    head = (
        f'{result["set"]}, {result["split"]}: {quantity(result["queries"], "query", "queries")}, '
        f'{quantity(result["passages"], "passage")}'
    )
    width = max(len(system['system']) for system in result['systems'])
    lines = [head, '  '.join([' ' * width, *_COLUMNS.values()])]
    for system in result['systems']:
        cells = [f'{_cell(system[key]):>{len(title)}}' for key, title in _COLUMNS.items()]
        lines.append('  '.join([f'{system["system"]:{width}}', *cells]))
    if any(system['truncated'] for system in result['systems']):
        counts = ', '.join(f'{each["system"]} {each["truncated"]:,}' for each in result['systems'] if each['truncated'])
        lines.append(f'Truncated texts: {counts}')
    return '\n'.join(lines)


def _cell(value: float | None) -> str:
    return '-' if value is None else f'{value:.4f}'
