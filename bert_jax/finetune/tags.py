"""Words with a tag each: a word's first piece has its tag, its other pieces have none.

A sentence that is too long is split into windows of whole words, one after another: every word is in one of them.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from bert_jax.config.finetuning import Task
from bert_jax.data.labelled import Record, RecordReader, sorted_labels, unknown_label
from bert_jax.errors import BadInput
from bert_jax.finetune import metrics
from bert_jax.finetune.rows import make_rows
from bert_jax.finetune.splits import Split, json_lines
from bert_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TagSplit(Split):
    """Sentences; `gold` and predictions are the tags of their words.

    Attributes:
      first_pieces: [N] of each row, where its words begin.
    """

    labels: tuple[str, ...]
    first_pieces: list[np.ndarray]

    def predictions(self, outputs: np.ndarray) -> list[Any]:
        found: list[list[str]] = [[] for _ in range(self.num_examples)]
        for example, places, logits in zip(self.example, self.first_pieces, outputs, strict=True):
            found[example] += [self.labels[number] for number in logits[places].argmax(axis=-1)]
        return found

    def metrics(self, names: Iterable[str], predictions: list[Any]) -> dict[str, float]:
        return {name: metrics.tagging(name, self.gold, predictions) for name in names}

    def files(self, predictions: list[Any]) -> dict[str, str]:
        records = [
            {'index': index, 'prediction': tags} | ({'label': self.gold[index]} if self.gold else {})
            for index, tags in enumerate(predictions)
        ]
        return {'.jsonl': json_lines(records)}


def open_tags(
    source: str, task: Task, tokenizer: Tokenizer, labels: tuple[str, ...] | None, *, is_labelled: bool = True
) -> TagSplit:
    """Reads and encodes a file of tagged sentences.

    Args:
      labels: that training has seen; None takes them from this file (or from `task.labels`).
      is_labelled: False neither needs nor reads tags.

    Raises:
      BadInput: for a missing column, a sentence with other than a tag a word, or a tag that training has not seen.
    """
    reading = RecordReader(source, task, (task.text, *([task.label] if is_labelled else [])))
    counts: Counter[str] = Counter()
    sentences: list[tuple[str, list[list[int]]]] = []
    gold: list[list[str]] = []
    pieces_of: dict[str, list[int]] = {}
    for record in reading:
        words, tags = _words(record, task, is_labelled)
        if not words:
            counts['sentence without words'] += 1
            continue
        new = [word for word in dict.fromkeys(words) if word not in pieces_of]
        pieces_of |= zip(new, tokenizer.encode_batch(new), strict=True)
        sentences.append((record.where, [pieces_of[word] or [tokenizer.unk_id] for word in words]))
        gold += [tags] if is_labelled else []
    counts += reading.counts
    labels = task.labels or labels or sorted_labels((tag for tags in gold for tag in tags), source)
    numbers = {label: number for number, label in enumerate(labels)}
    for (where, _), tags in zip(sentences, gold, strict=False):
        for tag in tags:
            if tag not in numbers:
                raise unknown_label(where, tag, labels)
    ids, example, first_pieces, row_labels = [], [], [], []
    for number, (_, words) in enumerate(sentences):
        tags = iter([numbers[tag] for tag in gold[number]] if is_labelled else [-1] * len(words))
        for row, places in encode_words(words, task, tokenizer, counts):
            tagged = np.full(len(row), -1, np.int32)
            tagged[places] = [next(tags) for _ in places]
            ids.append(row)
            example.append(number)
            first_pieces.append(places)
            row_labels.append(tagged)
    rows = make_rows(ids, [len(row) for row in ids], np.concatenate(row_labels))
    return TagSplit(rows, np.array(example), counts, gold, labels, first_pieces)


def encode_words(
    words: list[list[int]], task: Task, tokenizer: Tokenizer, counts: Counter
) -> Iterator[tuple[list[int], np.ndarray]]:
    """(ids [CLS] … [SEP], where its words begin) of each window of a sentence, given as the pieces of its words."""
    windows = list(windows_of_words(words, task.sequence_length - 2, counts))
    counts['sentence split into windows'] += len(windows) > 1
    for window in windows:
        row = [tokenizer.cls_id, *(piece for word in window for piece in word), tokenizer.sep_id]
        yield row, np.cumsum([1, *map(len, window)])[: len(window)]


def windows_of_words(words: list[list[int]], room: int, counts: Counter) -> Iterator[list[list[int]]]:
    """Words (their pieces) in order, as many to a window as its room holds; a longer word loses its end."""
    window: list[list[int]] = []
    used = 0
    for word in words:
        counts['word cut'] += len(word) > room
        word = word[:room]
        if used + len(word) > room:
            yield window
            window, used = [], 0
        window.append(word)
        used += len(word)
    yield window


def words_of(record: Record, task: Task) -> list[str]:
    """The words of a sentence: a list, or text with blanks between them.

    Raises:
      BadInput: when it is something else.
    """
    words = record.fields[task.text]
    words = words.split() if isinstance(words, str) else words
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise BadInput(record.where, f'{task.text!r} is not a list of words', 'words, or text with blanks between them')
    return words


def _words(record: Record, task: Task, is_labelled: bool) -> tuple[list[str], list[str]]:
    words = words_of(record, task)
    if not is_labelled:
        return words, []
    tags = record.fields[task.label]
    tags = tags.split() if isinstance(tags, str) else tags
    if not isinstance(tags, list) or len(tags) != len(words):
        has = len(tags) if isinstance(tags, list) else 'no'
        raise BadInput(record.where, f'has {len(words)} words and {has} tags', 'a tag for every word')
    return words, [str(tag) for tag in tags]
