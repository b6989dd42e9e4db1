"""Ranking: the relevance of passages to queries, from pairs [CLS] query [SEP] passage [SEP] with labels from 0 to 1."""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from bert_jax.config.finetuning import Task
from bert_jax.data.labelled import Record, parse_number
from bert_jax.errors import BadInput
from bert_jax.evaluation.retrieval.metrics import measure
from bert_jax.finetune import metrics
from bert_jax.finetune.rows import make_rows
from bert_jax.finetune.splits import sigmoid
from bert_jax.finetune.texts import RegressionSplit, encode_file, read_text
from bert_jax.text.tokenizer import Tokenizer

RELEVANT = 0.5  # the lowest label of a relevant passage


@dataclasses.dataclass(frozen=True)
class RankingSplit(RegressionSplit):
    """Pairs of query and passage; `gold` and predictions are from 0 to 1. queries: index of the query of each pair."""

    queries: list[int]

    def predictions(self, outputs: np.ndarray) -> list[Any]:
        return sigmoid(outputs[:, 0]).tolist()

    def metrics(self, names: Iterable[str], predictions: list[Any]) -> dict[str, float]:
        """Computes the metrics. The gain of nDCG is the label; of equal predictions, the lower label ranks first."""
        relevant = [label >= RELEVANT for label in self.gold]
        pairs_of: list[list[int]] = [[] for _ in range(max(self.queries) + 1)]
        for pair, query in enumerate(self.queries):
            pairs_of[query].append(pair)
        rankings = [sorted(pairs, key=lambda pair: (-predictions[pair], self.gold[pair])) for pairs in pairs_of]
        gains = [{pair: self.gold[pair] for pair in pairs} for pairs in pairs_of]
        hits = [{pair: float(relevant[pair]) for pair in pairs} for pairs in pairs_of]
        found = {
            'ndcg_at_10': measure(rankings, gains).ndcg_at_10,
            'mrr_at_10': measure(rankings, hits).mrr_at_10,
            'average_precision': metrics.average_precision(relevant, predictions),
        }
        return {name: found[name] for name in names}


class _Pair(NamedTuple):
    where: str
    query: int
    label: float


def read_ranking(
    source: str, task: Task, tokenizer: Tokenizer, labels: tuple[str, ...] | None, *, is_labelled: bool = True
) -> RankingSplit:
    """Reads and encodes a file of pairs of query and passage.

    Args:
      labels: None for the training file, whose queries need no relevant passage.
      is_labelled: whether the file must have labels; if False, they are not read.

    Raises:
      BadInput: for a missing column, a label outside 0 to 1, or a query without a relevant passage (evaluation).
    """
    index_of: dict[str, int] = {}

    def read(record: Record) -> _Pair:
        query = index_of.setdefault(read_text(record, task.text), len(index_of))
        return _Pair(record.where, query, _relevance(record, task.label) if is_labelled else 0.0)

    (ids, second_starts), pairs, counts = encode_file(source, task, tokenizer, read, is_labelled=is_labelled)
    if is_labelled and labels is not None:
        _check_queries(pairs)
    values = [pair.label for pair in pairs]
    rows = make_rows(ids, second_starts, np.array(values, np.float32))
    gold = values if is_labelled else []
    return RankingSplit(rows, np.arange(len(ids)), counts, gold, [pair.query for pair in pairs])


def _relevance(record: Record, column: str) -> float:
    label = parse_number(record.where, record.fields[column])
    if not 0 <= label <= 1:
        found, fix = f'has the label {label:g}', 'scale the labels, or train with kind regression'
        raise BadInput(record.where, found, 'a relevance from 0 to 1', fix)
    return label


def _check_queries(pairs: list[_Pair]) -> None:
    answered = {pair.query for pair in pairs if pair.label >= RELEVANT}
    for pair in pairs:
        if pair.query not in answered:
            found = 'has a query without a relevant passage in this file, which metrics of ranking cannot use'
            raise BadInput(pair.where, found, f'a pair with this query and a label of at least {RELEVANT}')
