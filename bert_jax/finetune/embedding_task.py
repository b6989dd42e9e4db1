"""The data of an embedding model: its training sources, and held-out pairs with their metrics.

`N` held-out pairs, `D` size of a vector.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from bert_jax.config.embedding import Embedding, check_dims
from bert_jax.config.finetuning import CORPUS, METRICS, FinetuneConfig, Task
from bert_jax.console import say
from bert_jax.data import random
from bert_jax.errors import BadInput
from bert_jax.files import json_digest
from bert_jax.finetune import metrics
from bert_jax.finetune.corpus_pairs import CorpusPairs
from bert_jax.finetune.pairs import Pairs, PairSource, has_scores, read_pairs
from bert_jax.finetune.rows import Rows
from bert_jax.finetune.splits import Split, json_lines
from bert_jax.text.tokenizer import Tokenizer

SCORED_METRICS, RANKING_METRICS = ('sts_spearman',), ('accuracy', 'mrr')
_HELD_OUT = 1024  # documents of a corpus that are evaluated
_ANCHORS_AT_ONCE = 1024  # whose similarities to all positives are in memory at once


@dataclasses.dataclass(frozen=True)
class TrainingPairs:
    """The training sources of an embedding model, by name, with their weights."""

    sources: dict[str, PairSource]
    weights: tuple[float, ...]

    def __len__(self) -> int:
        """The number of examples of all sources."""
        return sum(map(len, self.sources.values()))

    def content_hash(self) -> str:
        """Returns a hash of all examples, independent of paths."""
        hashes = [source.content_hash() for source in self.sources.values()]
        return hashes[0] if len(hashes) == 1 else json_digest([hashes, list(self.weights)])


@dataclasses.dataclass(frozen=True)
class PairSplit(Split):
    """Held-out pairs; the rows 2 n and 2 n + 1 are the anchor and the positive of pair n.

    `gold` holds the scores; it is empty for a file without. Predictions are the cosine similarity of each pair, and for
    a file without scores the rank of its positive: how many positives of the split are not less similar to the anchor,
    itself included. Other positives with the same text, or of the same anchor, are left out.

    Attributes:
      hashes: [2 N] uint64, equal for equal texts.
    """

    hashes: np.ndarray

    def predictions(self, outputs: np.ndarray) -> list[Any]:
        vectors = outputs / np.maximum(np.linalg.norm(outputs, axis=1, keepdims=True), 1e-12)
        anchors, positives = vectors[::2], vectors[1::2]
        if self.gold:
            # Rounded, so that pairs of equal texts tie.
            similarities = np.einsum('nd,nd->n', anchors, positives).astype(np.float64).round(6)
            return [(similarity, None) for similarity in similarities.tolist()]
        found: list[Any] = []
        for first in range(0, len(anchors), _ANCHORS_AT_ONCE):
            pairs = np.arange(first, min(first + _ANCHORS_AT_ONCE, len(anchors)))
            similarities = anchors[pairs] @ positives.T
            own = similarities[np.arange(len(pairs)), pairs]
            is_same = self.hashes[1::2] == self.hashes[1::2][pairs, None]
            is_same |= self.hashes[::2] == self.hashes[::2][pairs, None]
            # Not `>=`, by which a vector of NaN would rank first.
            ranks = 1 + (~(similarities < own[:, None]) & ~is_same).sum(axis=1)
            found += zip(own.tolist(), ranks.tolist(), strict=True)
        return found

    def metrics(self, names: Iterable[str], predictions: list[Any]) -> dict[str, float]:
        similarities, ranks = zip(*predictions, strict=True)
        if self.gold:
            found = {'sts_spearman': metrics.regression('spearman', self.gold, similarities)}
        else:
            found = {
                'accuracy': float(np.mean(np.array(ranks) == 1)),
                'mrr': float(np.mean(1 / np.array(ranks))),
            }
        return {name: found[name] for name in names if name in found}

    def files(self, predictions: list[Any]) -> dict[str, str]:
        records = [
            {'index': index, 'similarity': round(similarity, 6)}
            | ({'score': self.gold[index]} if self.gold else {'rank': rank})
            for index, (similarity, rank) in enumerate(predictions)
        ]
        return {'.jsonl': json_lines(records)}


def read_training(config: FinetuneConfig, tokenizer: Tokenizer) -> TrainingPairs:
    """Reads and encodes the training sources.

    Raises:
      BadInput: for a source that cannot be used, or has fewer examples than a batch; for Matryoshka dimensions larger
        than the vectors of the model.
    """
    task, embedding, size = config.task, config.embedding, config.train.global_batch_size
    check_dims(embedding.matryoshka_dims, config.model.hidden_size)
    weighted = ((task.train, 1.0),) if isinstance(task.train, str) else task.train
    sources: dict[str, PairSource] = {}
    for name, _ in weighted:
        if name in sources:
            raise BadInput('config.task.train', f'names {name} twice', 'different sources')
        sources[name] = source = _read_source(name, task, embedding, tokenizer).sample(config.train.max_examples)
        if len(source) < size:
            raise BadInput(
                f'config.task.train={name}',
                f'has {len(source):,} examples',
                f'at least a batch of them, {size:,}: no batch holds an example twice',
                f'--config.train.global_batch_size={len(source)}' if len(source) > 1 else 'more examples',
            )
        events = _describe(source.counts)
        say(f'{name}: {len(source):,} {"documents" if isinstance(source, CorpusPairs) else "examples"}{events}')
    total = sum(weight for _, weight in weighted)
    return TrainingPairs(sources, tuple(weight / total for _, weight in weighted))


def _read_source(name: str, task: Task, embedding: Embedding, tokenizer: Tokenizer) -> Pairs | CorpusPairs:
    kind, _, location = name.partition(':')
    if kind != CORPUS:
        return read_pairs(name, task, embedding, tokenizer, is_scored=embedding.is_scored)
    if embedding.is_scored or embedding.num_negatives:
        field, value = ('loss', embedding.loss) if embedding.is_scored else ('num_negatives', embedding.num_negatives)
        found = f'is {value}, but the pairs of {name} have no {"scores" if embedding.is_scored else "hard negatives"}'
        raise BadInput(f'config.embedding.{field}', found, 'loss=infonce and num_negatives=0')
    return CorpusPairs(location, 'train', task, embedding, tokenizer)


def read_held_out(source: str, config: FinetuneConfig, tokenizer: Tokenizer) -> PairSplit:
    """Reads and encodes held-out pairs: of a file, scored if it has the column `embedding.score`, or of a corpus.

    Raises:
      BadInput: see `read_pairs` and `CorpusPairs`; if `task.metrics` has none for such pairs.
    """
    # Scores as in the file: only their order counts. The same span twice would be found by any model.
    task = config.task
    unscaled = {'num_negatives': 0, 'loss': 'cosent', 'max_score': 1.0, 'corpus_pairs': 'spans'}
    embedding = dataclasses.replace(config.embedding, **unscaled)
    kind, _, location = source.partition(':')
    is_scored = kind != CORPUS and has_scores(source, task, embedding)
    names = SCORED_METRICS if is_scored else RANKING_METRICS
    if not {*(task.metrics or names)} & {*names}:
        found = f'has only metrics that do not apply to {source}, whose pairs have {"scores" if is_scored else "none"}'
        raise BadInput('config.task.metrics', found, ', '.join(names))
    if kind == CORPUS:
        return _spans_of_held_out(CorpusPairs(location, 'validation', task, embedding, tokenizer))
    pairs = read_pairs(source, task, embedding, tokenizer, is_scored=is_scored)
    if not is_scored and len(pairs) < 2:
        raise BadInput(source, 'has one pair', 'several, whose positives are compared')
    gold = [round(float(score), 6) for score in pairs.scores] if is_scored else []
    return PairSplit(pairs.rows, np.repeat(np.arange(len(pairs)), 2), pairs.counts, gold, pairs.hashes)


def _spans_of_held_out(documents: CorpusPairs) -> PairSplit:
    """Returns a fixed pair of each document, of up to `_HELD_OUT` documents."""
    documents = documents.sample(_HELD_OUT)
    examples = np.arange(len(documents))
    texts = documents.draw(examples, random.fold_in(0, examples))
    starts = np.concatenate([[0], np.cumsum(texts.lengths)])
    rows = Rows(texts.ids, starts, texts.lengths.astype(np.int32), texts.scores)
    return PairSplit(rows, np.repeat(examples, 2), documents.counts, [], texts.hashes)


def metric_names(task: Task) -> tuple[str, ...]:
    """Returns the metrics to compute; each split reports those that apply to it."""
    return task.metrics or METRICS[task.kind]


def _describe(counts: Counter) -> str:
    events = [f'{count:,} x {what}' for what, count in sorted(counts.items()) if count]
    return f'; {"; ".join(events)}' if events else ''
