"""Mines hard negatives: passages close to an anchor that are not its positives (Xiong et al. 2021, "ANCE").

`n` pairs of a block, `k` ranks, `D` numbers per vector.
"""

import dataclasses
import time
from collections.abc import Iterator

import numpy as np

from bert_jax.activity import progress
from bert_jax.console import json_text
from bert_jax.data.labelled import Record
from bert_jax.errors import BadInput
from bert_jax.evaluation.retrieval.pairs import Pairs
from bert_jax.evaluation.retrieval.search import PASSAGE_ROWS, QUERY_ROWS, Hits, search_block
from bert_jax.evaluation.retrieval.vectors import Texts, write_both_sides
from bert_jax.files import new_file
from bert_jax.pretrained.load import Pretrained
from bert_jax.pretrained.sentences import RetrievalSettings

NEGATIVE = 'negative'  # column of the negatives


@dataclasses.dataclass(frozen=True)
class Mining:
    """Which passages are negatives of a pair.

    Ranks count from 1, without the positives of the anchor and passages equal to the anchor.

    Attributes:
      negatives: most negatives per pair, at least 1; the best-ranked ones are taken.
      skip_ranks: number of best-ranked passages to leave out, because they may be positives that nobody labelled.
      max_rank: the last rank that is considered, above `skip_ranks`.
      margin: a negative's score is at most the positive's minus this; None for no limit.
      relative_margin: a negative's score is at most the positive's minus this times its absolute value, that is, times
        1 minus this for a score above 0 (Moreira et al. 2024, https://arxiv.org/abs/2407.15831); None for no limit.
    """

    negatives: int = 1
    skip_ranks: int = 0
    max_rank: int = 100
    margin: float | None = None
    relative_margin: float | None = None


@dataclasses.dataclass(frozen=True)
class Mined:
    """Describes the file that was written.

    Attributes:
      pairs: number of pairs read.
      written: number of pairs with at least one negative, which were written.
      short: number of these with fewer negatives than requested.
      negatives: number of negatives written.
      passages: number of distinct passages that were searched.
      mean_positive_score, mean_negative_score: over the pairs that were written; None without any.
    """

    output: str
    pairs: int
    written: int
    short: int
    negatives: int
    passages: int
    truncated: int
    mean_positive_score: float | None
    mean_negative_score: float | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """The negatives of a pair.

    Attributes:
      indices: of passages, best first.
      scores: of these.
      positive: the score of the positive.
    """

    indices: list[int]
    scores: list[float]
    positive: float


def check_mining(mining: Mining) -> None:
    """Raises BadInput if no rank is left."""
    if mining.max_rank - mining.skip_ranks < mining.negatives:
        found = f'leaves {max(mining.max_rank - mining.skip_ranks, 0)} ranks after --skip_ranks={mining.skip_ranks}'
        fix = f'--max_rank={mining.skip_ranks + max(100, mining.negatives)}'
        raise BadInput(f'--max_rank={mining.max_rank}', found, f'at least --negatives={mining.negatives}', fix)


def mine(pairs: Pairs, pretrained: Pretrained, settings: RetrievalSettings, mining: Mining, output: str) -> Mined:
    """Writes each pair that has a negative as a JSON line, in the order of the input.

    A line has the columns of the input and `negative`: a text, or a list of texts if several were requested. The output
    is written to a temporary file and renamed when it is complete.

    Raises:
      BadInput: if the disk is too small for the vectors, or a vector is not finite.
    """
    start = time.monotonic()
    anchors, passages = write_both_sides(
        pairs.directory,
        pretrained,
        settings,
        Texts('anchors', pairs.anchors, len(pairs.anchors)),
        Texts('passages', pairs.passages, len(pairs.passages)),
    )
    chosen = _choose(pairs, anchors.array, passages.array, mining)
    written = short = negatives = 0
    positive_total = negative_total = 0.0
    with new_file(output) as temporary, temporary.open('w', encoding='utf-8') as file:
        for record, each in zip(pairs.records(), chosen, strict=True):
            if each.indices:
                texts = [pairs.passages[index] for index in each.indices]
                negative = texts[0] if mining.negatives == 1 else texts
                file.write(_as_json(record, negative) + '\n')
                written, negatives = written + 1, negatives + len(texts)
                short += len(texts) < mining.negatives
                positive_total, negative_total = positive_total + each.positive, negative_total + sum(each.scores)
    return Mined(
        output=output,
        pairs=len(pairs.anchor_of),
        written=written,
        short=short,
        negatives=negatives,
        passages=len(pairs.passages),
        truncated=anchors.num_truncated + passages.num_truncated,
        mean_positive_score=positive_total / written if written else None,
        mean_negative_score=negative_total / negatives if written else None,
        seconds=round(time.monotonic() - start, 3),
    )


def _as_json(record: Record, negative: str | list[str]) -> str:
    try:
        return json_text(record.fields | {NEGATIVE: negative})
    except TypeError as error:  # bytes or a date in a parquet file
        raise BadInput(record.where, f'has a value that JSON cannot hold ({error})', 'texts and numbers') from None


def _choose(pairs: Pairs, anchors: np.ndarray, passages: np.ndarray, mining: Mining) -> Iterator[_Chosen]:
    """Yields the negatives of each pair, in order; memory is that of a block of pairs."""
    num_pairs = len(pairs.anchor_of)
    equal_to = np.array([pairs.passages.find(text) for text in pairs.anchors])
    rows, done = min(QUERY_ROWS, num_pairs), 0
    with progress(lambda: f'searching, {done:,} of {num_pairs:,} pairs', total=num_pairs, unit=' pairs') as bar:
        for start in range(0, num_pairs, rows):
            block = pairs.anchor_of[start : start + rows]
            queries = np.asarray(anchors[block])
            positive_scores = np.einsum('nd,nd->n', queries, passages[pairs.positive_of[start : start + rows]])
            excluded = [[*pairs.positives(anchor), equal_to[anchor]] for anchor in block]
            hits = search_block(
                queries, passages, mining.max_rank, excluded, query_rows=rows, passage_rows=PASSAGE_ROWS
            )
            yield from _filter(hits, positive_scores, mining)
            done += len(block)
            bar.update(len(block))


def _filter(hits: Hits, positive_scores: np.ndarray, mining: Mining) -> Iterator[_Chosen]:
    """Yields the negatives of each pair among its hits, [n, k], given the scores of the positives, [n]."""
    for scores, indices, positive in zip(hits.scores, hits.indices, positive_scores, strict=True):
        is_negative = (indices >= 0) & (np.arange(len(indices)) >= mining.skip_ranks)
        if mining.margin is not None:
            is_negative &= scores <= positive - mining.margin
        if mining.relative_margin is not None:
            is_negative &= scores <= positive - abs(positive) * mining.relative_margin
        best = np.flatnonzero(is_negative)[: mining.negatives]
        yield _Chosen(indices[best].tolist(), scores[best].tolist(), float(positive))
