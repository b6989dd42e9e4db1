"""Examples that train embeddings, from files: pairs, triplets, lists of hard negatives and scored pairs.

`N` examples of a source with `T` texts; `Q` examples of a batch with `n` texts and `t` tokens.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from bert_jax.config.embedding import Embedding
from bert_jax.config.finetuning import Task
from bert_jax.data import random
from bert_jax.data.labelled import Record, RecordReader, parse_number, read_records
from bert_jax.errors import BadInput
from bert_jax.files import json_digest
from bert_jax.finetune.rows import Rows, make_rows
from bert_jax.finetune.splits import sampled
from bert_jax.finetune.texts import encode_texts, read_text
from bert_jax.text.sources.lines import batched
from bert_jax.text.tokenizer import Tokenizer

_CHUNK_SIZE = 4096  # records encoded together
_PAIR = 2  # texts of an example besides its hard negatives: anchor and positive
_SCORE_FIX = '--config.embedding.score=COLUMN'


class Texts(NamedTuple):
    """The texts of a batch, each [CLS] … [SEP], with the example and the role of each."""

    ids: np.ndarray  # [t] int32
    lengths: np.ndarray  # [n] int64, tokens of each text
    groups: np.ndarray  # [n] int32, index of the example in the batch
    roles: np.ndarray  # [n] int32, as in `PairBatch`
    hashes: np.ndarray  # [n] uint64, equal for equal texts, whatever their prompts
    scores: np.ndarray  # [n] float32, of the example


class PairSource(Protocol):
    """Examples that can be drawn by index."""

    def __len__(self) -> int:
        """The number of examples, N."""
        ...

    def draw(self, examples: np.ndarray, keys: np.ndarray) -> Texts:
        """Returns the texts of examples [Q] int64; keys [Q] uint64 determine whatever is random."""
        ...

    def content_hash(self) -> str:
        """Returns a hash of what determines the texts; it does not depend on paths."""
        ...


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The examples of a file.

    Attributes:
      rows: the T texts: of each example the anchor, the positive, then the hard negatives.
      starts: [N + 1] int64, the first text of each example.
      hashes: [T] uint64, equal for equal texts.
      scores: [N] float32; 0 if the file was read without scores.
      num_negatives: largest number of hard negatives drawn for an example.
      counts: {event: count} of records skipped and texts cut.
    """

    rows: Rows
    starts: np.ndarray
    hashes: np.ndarray
    scores: np.ndarray
    num_negatives: int
    counts: Counter

    def __len__(self) -> int:
        return len(self.starts) - 1

    def draw(self, examples: np.ndarray, keys: np.ndarray) -> Texts:
        counts = np.diff(self.starts)[examples]
        groups = np.repeat(np.arange(len(examples)), counts)
        first = np.cumsum(counts) - counts
        index = np.arange(len(groups)) - first[groups]  # of a text in its example
        texts = self.starts[examples][groups] + index
        if (counts > _PAIR + self.num_negatives).any():
            draws = np.where(index < _PAIR, np.uint64(0), random.bits_at(keys[groups], index) | np.uint64(1))
            order = np.lexsort((index, draws, groups))
            rank = np.empty(len(order), np.int64)
            rank[order] = index  # groups are in order, so the k-th of a group takes the place of its k-th text
            is_kept = rank < _PAIR + self.num_negatives
            groups, texts = groups[is_kept], texts[is_kept]
            counts = np.bincount(groups, minlength=len(examples))
            index = np.arange(len(groups)) - (np.cumsum(counts) - counts)[groups]
        drawn = self.rows.select(texts)
        return Texts(
            drawn.ids,
            np.diff(drawn.starts),
            groups.astype(np.int32),
            index.astype(np.int32),
            self.hashes[texts],
            self.scores[examples][groups],
        )

    def content_hash(self) -> str:
        arrays = (self.starts, self.hashes, self.scores)
        digests = [hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for array in arrays]
        return json_digest([self.rows.content_hash(), *digests])

    def sample(self, max_examples: int) -> 'Pairs':
        """Returns `max_examples` of the examples (0: all), selected by a hash of their indices, in order."""
        if not max_examples or max_examples >= len(self):
            return self
        examples = np.flatnonzero(sampled(len(self), max_examples))
        counts = np.diff(self.starts)[examples]
        starts = np.concatenate([[0], np.cumsum(counts)])
        texts = np.repeat(self.starts[examples] - starts[:-1], counts) + np.arange(starts[-1])
        return dataclasses.replace(
            self,
            rows=self.rows.select(texts),
            starts=starts,
            hashes=self.hashes[texts],
            scores=self.scores[examples],
        )


def read_pairs(source: str, task: Task, embedding: Embedding, tokenizer: Tokenizer, *, is_scored: bool) -> Pairs:
    """Reads and encodes a file of examples, with hard negatives if `embedding.num_negatives` is set.

    Args:
      is_scored: whether to read scores.

    Raises:
      BadInput: for a missing column, an example without text, a score that is not a number, or equal scores; names the
        file and line.
    """
    columns = (embedding.anchor, embedding.positive)
    needed = (*columns, embedding.score) if is_scored else columns
    reader = RecordReader(source, dataclasses.replace(task, text=embedding.anchor), needed, texts=columns)
    counts, scores, num_texts = Counter(), [], []
    ids: list[list[int]] = []
    hashes: list[int] = []
    for chunk in batched(reader, _CHUNK_SIZE):
        prompted = []
        for record in chunk:
            texts = [read_text(record, column) for column in columns]
            texts += list(_negatives(record, embedding)) if embedding.num_negatives else []
            num_texts.append(len(texts))
            hashes += map(_hash, texts)
            prompts = (embedding.query_prompt, *[embedding.passage_prompt] * (len(texts) - 1))
            prompted += [Record('', {task.text: prompt + text}) for prompt, text in zip(prompts, texts, strict=True)]
            if is_scored:
                score = parse_number(record.where, record.fields[embedding.score], 'score', _SCORE_FIX)
                scores.append((record.where, score))
        ids += [row for row, _ in encode_texts(prompted, dataclasses.replace(task, text_pair=''), tokenizer, counts)]
    counts += reader.counts
    if embedding.num_negatives and max(num_texts) == len(columns):
        found = f'has no text in {" or ".join(map(repr, embedding.negatives))}'
        fix = '--config.embedding.negatives=COLUMNS, or --config.embedding.num_negatives=0'
        raise BadInput(source, found, 'a hard negative in at least one record', fix)
    values = _checked(scores, embedding) if is_scored else np.zeros(len(num_texts), np.float32)
    rows = make_rows(ids, [len(row) for row in ids], np.zeros(len(ids), np.float32))
    starts = np.concatenate([[0], np.cumsum(np.array(num_texts, np.int64))])
    return Pairs(rows, starts, np.array(hashes, np.uint64), values, embedding.num_negatives, counts)


def has_scores(source: str, task: Task, embedding: Embedding) -> bool:
    """Returns whether the first record of a file has a score.

    Raises:
      BadInput: if the file cannot be read.
    """
    records = read_records(source, dataclasses.replace(task, text=embedding.anchor), ())
    first = next(iter(records), None)
    return first is not None and embedding.score in first.fields


def _negatives(record: Record, embedding: Embedding) -> Iterator[str]:
    """Yields the hard negatives of a record; blank ones count as absent.

    Raises:
      BadInput: if a column holds neither a text nor a list of texts.
    """
    for column in embedding.negatives:
        value = record.fields.get(column)
        texts = value if isinstance(value, list | tuple) else [] if value is None else [value]
        for text in texts:
            if not isinstance(text, str):
                found = f'{column!r} holds a {type(text).__name__}'
                raise BadInput(record.where, found, 'a text, or a list of texts')
            if text.strip():
                yield text


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.strip().encode(errors='surrogatepass'), digest_size=8)
    return int.from_bytes(digest.digest(), 'little')


def _checked(scores: list[tuple[str, float]], embedding: Embedding) -> np.ndarray:
    """Returns the scores, float32 [N], divided by `embedding.max_score`."""
    where, first = scores[0]
    if len({score for _, score in scores}) == 1:
        found = f'has the score {first:g}, as do all {len(scores):,} pairs of the file'
        raise BadInput(where, found, 'scores that differ', _SCORE_FIX)
    largest = embedding.max_score
    for where, score in scores if embedding.loss == 'cosine' else ():
        if abs(score) > largest:
            found, expected = f'has the score {score:g}', f'a score from {-largest:g} to {largest:g}'
            fix = f'--config.embedding.max_score={max(abs(score) for _, score in scores):g}'
            raise BadInput(where, found, expected, fix)
    return np.array([score / largest for _, score in scores], np.float32)
