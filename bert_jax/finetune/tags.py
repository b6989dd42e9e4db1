"""Tagging of words: the first token of a word carries its tag, the others have none.

Long sentences are split into consecutive windows of whole words, so every word is in exactly one window.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from bert_jax.config.finetuning import Task
from bert_jax.data.labelled import Record, RecordReader, sort_labels, unknown_label
from bert_jax.errors import BadInput
from bert_jax.finetune import metrics
from bert_jax.finetune.rows import make_rows
from bert_jax.finetune.splits import Split, json_lines
from bert_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TaggingSplit(Split):
    """Sentences; `gold` and predictions are the tags of their words.

    Attributes:
      word_starts: for each of N rows, the index of each word's first token.
    """

    labels: tuple[str, ...]
    word_starts: list[np.ndarray]

    def predictions(self, outputs: np.ndarray) -> list[Any]:
        tags: list[list[str]] = [[] for _ in range(self.num_examples)]
        for example, word_starts, logits in zip(self.example_indices, self.word_starts, outputs, strict=True):
            tags[example] += [self.labels[class_id] for class_id in logits[word_starts].argmax(axis=-1)]
        return tags

    def metrics(self, names: Iterable[str], predictions: list[Any]) -> dict[str, float]:
        return {name: metrics.tagging(name, self.gold, predictions) for name in names}

    def files(self, predictions: list[Any]) -> dict[str, str]:
        records = [
            {'index': index, 'prediction': tags} | ({'label': self.gold[index]} if self.gold else {})
            for index, tags in enumerate(predictions)
        ]
        return {'.jsonl': json_lines(records)}


def read_tags(
    source: str, task: Task, tokenizer: Tokenizer, labels: tuple[str, ...] | None, *, is_labelled: bool = True
) -> TaggingSplit:
    """Reads and encodes a file of tagged sentences.

    Args:
      labels: those of the training file; None takes `task.labels`, or else the labels in this file.
      is_labelled: whether the file must have tags; if False, they are not read.

    Raises:
      BadInput: for a missing column, different numbers of words and tags, or a tag absent from training.
    """
    reader = RecordReader(source, task, (task.text, *([task.label] if is_labelled else [])))
    counts: Counter[str] = Counter()
    sentences: list[tuple[str, list[list[int]]]] = []
    gold: list[list[str]] = []
    ids_of_word: dict[str, list[int]] = {}
    for record in reader:
        words, tags = _read_words_and_tags(record, task, is_labelled)
        if not words:
            counts['sentence without words'] += 1
            continue
        words = within_sentence(words, tokenizer)
        new = [word for word in dict.fromkeys(words) if word not in ids_of_word]
        ids_of_word |= zip(new, tokenizer.encode_batch(new), strict=True)
        sentences.append((record.where, [ids_of_word[word] or [tokenizer.unk_id] for word in words]))
        gold += [tags] if is_labelled else []
    counts += reader.counts
    labels = task.labels or labels or sort_labels((tag for tags in gold for tag in tags), source)
    class_ids = {label: class_id for class_id, label in enumerate(labels)}
    for (where, _), tags in zip(sentences, gold, strict=False):
        for tag in tags:
            if tag not in class_ids:
                raise unknown_label(where, tag, labels)
    ids, example_indices, word_starts, row_labels = [], [], [], []
    for index, (_, words) in enumerate(sentences):
        tag_ids = iter([class_ids[tag] for tag in gold[index]] if is_labelled else [-1] * len(words))
        for row, starts in encode_words(words, task, tokenizer, counts):
            token_labels = np.full(len(row), -1, np.int32)
            token_labels[starts] = [next(tag_ids) for _ in starts]
            ids.append(row)
            example_indices.append(index)
            word_starts.append(starts)
            row_labels.append(token_labels)
    rows = make_rows(ids, [len(row) for row in ids], np.concatenate(row_labels))
    return TaggingSplit(rows, np.array(example_indices), counts, gold, labels, word_starts)


def within_sentence(words: list[str], tokenizer: Tokenizer) -> list[str]:
    """Returns the words as they are written within a sentence: all but the first after a blank, if that matters."""
    return words[:1] + [tokenizer.word_prefix + word for word in words[1:]]


def encode_words(
    words: list[list[int]], task: Task, tokenizer: Tokenizer, counts: Counter
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yields (ids [CLS] … [SEP], index of each word's first token) for each window of a sentence.

    Args:
      words: the ids of each word.
    """
    windows = list(split_into_windows(words, task.sequence_length - 2, counts))
    counts['sentence split into windows'] += len(windows) > 1
    for window in windows:
        row = [tokenizer.cls_id, *(token for word in window for token in word), tokenizer.sep_id]
        yield row, np.cumsum([1, *map(len, window)])[: len(window)]


def split_into_windows(words: list[list[int]], room: int, counts: Counter) -> Iterator[list[list[int]]]:
    """Yields windows with as many consecutive words as fit into `room` tokens; cuts words longer than that."""
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


def read_words(record: Record, task: Task) -> list[str]:
    """Returns the words of a sentence: a list, or text split at whitespace.

    Raises:
      BadInput: if it is neither.
    """
    words = record.fields[task.text]
    words = words.split() if isinstance(words, str) else words
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise BadInput(
            record.where, f'{task.text!r} is not a list of words', 'a list of words, or text with spaces between words'
        )
    return words


def _read_words_and_tags(record: Record, task: Task, is_labelled: bool) -> tuple[list[str], list[str]]:
    words = read_words(record, task)
    if not is_labelled:
        return words, []
    tags = record.fields[task.label]
    tags = tags.split() if isinstance(tags, str) else tags
    if not isinstance(tags, list) or len(tags) != len(words):
        num_tags = len(tags) if isinstance(tags, list) else 0
        found = f'has {_counted(len(words), "word")} and {_counted(num_tags, "tag")}'
        raise BadInput(record.where, found, 'one tag per word')
    return words, [str(tag) for tag in tags]


def _counted(count: int, noun: str) -> str:
    return f'{count or "no"} {noun}' + ('' if count == 1 else 's')
