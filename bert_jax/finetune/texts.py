"""Classification and regression of single texts, [CLS] A [SEP], and pairs, [CLS] A [SEP] B [SEP]."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from bert_jax.config.finetuning import Task
from bert_jax.data.labelled import Record, RecordReader, parse_number, sort_labels, unknown_label
from bert_jax.errors import BadInput
from bert_jax.finetune import metrics
from bert_jax.finetune.rows import make_rows
from bert_jax.finetune.splits import Split, json_lines, softmax
from bert_jax.text.sources.lines import batched
from bert_jax.text.tokenizer import Tokenizer

_CHUNK_SIZE = 4096  # texts encoded together
T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class ClassificationSplit(Split):
    """Texts with classes; `gold` holds class ids, predictions are (class id, probabilities)."""

    labels: tuple[str, ...]

    def predictions(self, outputs: np.ndarray) -> list[Any]:
        return list(zip(outputs.argmax(axis=1).tolist(), softmax(outputs).round(6).tolist(), strict=True))

    def metrics(self, names: Iterable[str], predictions: list[Any]) -> dict[str, float]:
        predicted = [class_id for class_id, _ in predictions]
        return {name: metrics.classification(name, self.gold, predicted) for name in names}

    def files(self, predictions: list[Any]) -> dict[str, str]:
        records = [
            {'index': index, 'prediction': self.labels[class_id]}
            | ({'label': self.labels[self.gold[index]]} if self.gold else {})
            | {'probabilities': dict(zip(self.labels, probabilities, strict=True))}
            for index, (class_id, probabilities) in enumerate(predictions)
        ]
        return {'.jsonl': json_lines(records)}


@dataclasses.dataclass(frozen=True)
class RegressionSplit(Split):
    """Texts with numeric targets."""

    def predictions(self, outputs: np.ndarray) -> list[Any]:
        return outputs[:, 0].astype(np.float64).tolist()

    def metrics(self, names: Iterable[str], predictions: list[Any]) -> dict[str, float]:
        return {name: metrics.regression(name, self.gold, predictions) for name in names}

    def files(self, predictions: list[Any]) -> dict[str, str]:
        records = [
            {'index': index, 'prediction': round(value, 6)} | ({'label': self.gold[index]} if self.gold else {})
            for index, value in enumerate(predictions)
        ]
        return {'.jsonl': json_lines(records)}


def read_texts(
    source: str, task: Task, tokenizer: Tokenizer, labels: tuple[str, ...] | None, *, is_labelled: bool = True
) -> ClassificationSplit | RegressionSplit:
    """Reads and encodes a file of texts.

    Args:
      labels: those of the training file; None takes `task.labels`, or else the labels in this file.
      is_labelled: whether the file must have labels; if False, they are not read.

    Raises:
      BadInput: for a missing column, a label absent from training, or a label that is not a number (regression).
    """

    def label_of(record: Record) -> tuple[str, Any]:
        return record.where, record.fields[task.label]

    (ids, second_starts), raw_labels, counts = encode_file(
        source, task, tokenizer, label_of if is_labelled else None, is_labelled=is_labelled
    )
    example_indices = np.arange(len(ids))
    if task.kind == 'regression':
        gold = [parse_number(where, label) for where, label in raw_labels]
        values = np.array(gold if is_labelled else np.zeros(len(ids)), np.float32)
        return RegressionSplit(make_rows(ids, second_starts, values), example_indices, counts, gold)
    names = [(where, _as_name(label)) for where, label in raw_labels]
    labels = task.labels or labels or sort_labels((name for _, name in names), source)
    class_ids = {label: class_id for class_id, label in enumerate(labels)}
    for where, name in names:
        if name not in class_ids:
            raise unknown_label(where, name, labels)
    gold = [class_ids[name] for _, name in names]
    rows = make_rows(ids, second_starts, np.array(gold if is_labelled else np.zeros(len(ids)), np.int32))
    return ClassificationSplit(rows, example_indices, counts, gold, labels)


def encode_file(
    source: str, task: Task, tokenizer: Tokenizer, read: Callable[[Record], T] | None, *, is_labelled: bool
) -> tuple[tuple[list[list[int]], list[int]], list[T], Counter]:
    """Encodes a file of texts.

    Args:
      read: reads what else is needed of a record.

    Returns:
      ((ids, start of the second text) of `encode_texts`, what `read` returned, counts); the lists by example.

    Raises:
      BadInput: for a missing column.
    """
    columns = (task.text, *filter(None, [task.text_pair]), *([task.label] if is_labelled else []))
    reader, values = RecordReader(source, task, columns), []
    counts: Counter[str] = Counter()
    ids, second_starts = [], []
    for chunk in batched(reader, _CHUNK_SIZE):
        for row, second_start in encode_texts(chunk, task, tokenizer, counts):
            ids.append(row)
            second_starts.append(second_start)
        values += map(read, chunk) if read else []
    return (ids, second_starts), values, counts + reader.counts


def _as_name(label: Any) -> str:
    return label.strip() if isinstance(label, str) else str(label)


def encode_texts(
    records: list[Record], task: Task, tokenizer: Tokenizer, counts: Counter
) -> Iterator[tuple[list[int], int]]:
    """Yields (ids, start of the second text): [CLS] A [SEP], or with `task.text_pair`, [CLS] A [SEP] B [SEP].

    Raises:
      BadInput: for a column that holds neither text nor a number.
    """
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    texts = [read_text(record, task.text) for record in records]
    firsts = tokenizer.encode_batch(texts)
    if not task.text_pair:
        for a in firsts:
            counts['text cut'] += len(a) > task.sequence_length - 2
            row = [cls, *a[: task.sequence_length - 2], sep]
            yield row, len(row)
        return
    seconds = tokenizer.encode_batch([read_text(record, task.text_pair) for record in records])
    cut = cut_longest_first if task.kind == 'ranking' else cut_pair
    for a, b in zip(firsts, seconds, strict=True):
        length_a, length_b = cut(len(a), len(b), task.sequence_length - 3)
        counts['text cut'] += (length_a, length_b) != (len(a), len(b))
        yield [cls, *a[:length_a], sep, *b[:length_b], sep], length_a + 2


def cut_pair(length_a: int, length_b: int, room: int) -> tuple[int, int]:
    """Returns lengths that fit into `room`: the longer text is cut first, the second one on ties.

    This is `_truncate_seq_pair` of the original.
    """
    if length_a + length_b <= room:
        return length_a, length_b
    length_b = min(length_b, max(room - length_a, room // 2))
    return room - length_b, length_b


def cut_longest_first(length_a: int, length_b: int, room: int) -> tuple[int, int]:
    """Like `cut_pair`, but as the strategy `longest_first` of `tokenizers`, which `CrossEncoder` uses.

    They differ by a token if `room` is odd and both texts are longer than half of it: here the longer one keeps more,
    the second one on ties.
    """
    if length_a > length_b:
        return cut_longest_first(length_b, length_a, room)[::-1]
    if length_a + length_b <= room:
        return length_a, length_b
    length_a = min(length_a, room // 2)
    return length_a, room - length_a


def read_text(record: Record, column: str) -> str:
    """Returns the text in a column, or the number there as text.

    Raises:
      BadInput: if the column holds neither.
    """
    value = record.fields[column]
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise BadInput(record.where, f'{column!r} is of type {type(value).__name__}', 'text')
