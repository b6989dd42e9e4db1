"""Single texts and pairs with a class or a number each: [CLS] A [SEP], or [CLS] A [SEP] B [SEP]."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from bert_jax.config.finetuning import Task
from bert_jax.data.labelled import Record, RecordReader, sorted_labels, unknown_label
from bert_jax.errors import BadInput
from bert_jax.finetune import metrics
from bert_jax.finetune.rows import make_rows
from bert_jax.finetune.splits import Split, json_lines, softmax
from bert_jax.text.lines import batched
from bert_jax.text.tokenizer import Tokenizer

_AT_ONCE = 4096  # texts encoded together


@dataclasses.dataclass(frozen=True)
class ClassSplit(Split):
    """Texts with classes; `gold` and predictions are ids of classes, with their probabilities in the latter."""

    labels: tuple[str, ...]

    def predictions(self, outputs: np.ndarray) -> list[Any]:
        return list(zip(outputs.argmax(axis=1).tolist(), softmax(outputs).round(6).tolist(), strict=True))

    def metrics(self, names: Iterable[str], predictions: list[Any]) -> dict[str, float]:
        predicted = [number for number, _ in predictions]
        return {name: metrics.classification(name, self.gold, predicted) for name in names}

    def files(self, predictions: list[Any]) -> dict[str, str]:
        records = [
            {'index': index, 'prediction': self.labels[number]}
            | ({'label': self.labels[self.gold[index]]} if self.gold else {})
            | {'probabilities': dict(zip(self.labels, probabilities, strict=True))}
            for index, (number, probabilities) in enumerate(predictions)
        ]
        return {'.jsonl': json_lines(records)}


@dataclasses.dataclass(frozen=True)
class NumberSplit(Split):
    """Texts with numbers."""

    def predictions(self, outputs: np.ndarray) -> list[Any]:
        return outputs[:, 0].astype(np.float64).tolist()

    def metrics(self, names: Iterable[str], predictions: list[Any]) -> dict[str, float]:
        return {name: metrics.regression(name, self.gold, predictions) for name in names}

    def files(self, predictions: list[Any]) -> dict[str, str]:
        records = [
            {'index': index, 'prediction': round(number, 6)} | ({'label': self.gold[index]} if self.gold else {})
            for index, number in enumerate(predictions)
        ]
        return {'.jsonl': json_lines(records)}


def open_texts(
    source: str, task: Task, tokenizer: Tokenizer, labels: tuple[str, ...] | None, *, is_labelled: bool = True
) -> ClassSplit | NumberSplit:
    """Reads and encodes a file of texts.

    Args:
      labels: that training has seen; None takes them from this file (or from `task.labels`).
      is_labelled: False neither needs nor reads a label.

    Raises:
      BadInput: for a missing column, a label that training has not seen, or one that is no number (regression).
    """
    columns = (task.text, *filter(None, [task.text_pair]), *([task.label] if is_labelled else []))
    reading, given = RecordReader(source, task, columns), []
    counts: Counter[str] = Counter()
    ids, second = [], []
    for some in batched(reading, _AT_ONCE):
        for row, boundary in encode_texts(some, task, tokenizer, counts):
            ids.append(row)
            second.append(boundary)
        given += [(record.where, record.fields[task.label]) for record in some] if is_labelled else []
    counts += reading.counts
    example = np.arange(len(ids))
    if task.kind == 'regression':
        gold = [_number(where, label) for where, label in given]
        values = np.array(gold if is_labelled else np.zeros(len(ids)), np.float32)
        return NumberSplit(make_rows(ids, second, values), example, counts, gold)
    names = [(where, _name(label)) for where, label in given]
    labels = task.labels or labels or sorted_labels((name for _, name in names), source)
    numbers = {label: number for number, label in enumerate(labels)}
    for where, name in names:
        if name not in numbers:
            raise unknown_label(where, name, labels)
    gold = [numbers[name] for _, name in names]
    rows = make_rows(ids, second, np.array(gold if is_labelled else np.zeros(len(ids)), np.int32))
    return ClassSplit(rows, example, counts, gold, labels)


def _name(label: Any) -> str:
    return label.strip() if isinstance(label, str) else str(label)


def _number(where: str, label: Any) -> float:
    try:
        value = float(label)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        shown = repr(label) if len(str(label)) <= 10 else f'of {len(str(label))} characters'  # it may be text
        raise BadInput(where, f'has the label {shown}', 'a number', '--config.task.label=COLUMN')
    return value


def encode_texts(
    records: list[Record], task: Task, tokenizer: Tokenizer, counts: Counter
) -> Iterator[tuple[list[int], int]]:
    """(ids [CLS] A [SEP], or with `task.text_pair` [CLS] A [SEP] B [SEP], and where the second text begins) of records.

    Raises:
      BadInput: for a column that holds no text.
    """
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    texts = [_text(record, task.text) for record in records]
    firsts = tokenizer.encode_batch(texts)
    if not task.text_pair:
        for a in firsts:
            counts['text cut'] += len(a) > task.sequence_length - 2
            row = [cls, *a[: task.sequence_length - 2], sep]
            yield row, len(row)
        return
    seconds = tokenizer.encode_batch([_text(record, task.text_pair) for record in records])
    for a, b in zip(firsts, seconds, strict=True):
        length_a, length_b = cut_pair(len(a), len(b), task.sequence_length - 3)
        counts['text cut'] += (length_a, length_b) != (len(a), len(b))
        yield [cls, *a[:length_a], sep, *b[:length_b], sep], length_a + 2


def cut_pair(length_a: int, length_b: int, room: int) -> tuple[int, int]:
    """Lengths of a pair that fits: the longer one loses its end first, the second when they are equal
    (`_truncate_seq_pair` of the original)."""
    if length_a + length_b <= room:
        return length_a, length_b
    length_b = min(length_b, max(room - length_a, room // 2))
    return room - length_b, length_b


def _text(record: Record, column: str) -> str:
    value = record.fields[column]
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise BadInput(record.where, f'{column!r} is of type {type(value).__name__}', 'text')
