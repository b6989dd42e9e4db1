"""A split of a task: its rows, and what is made of the model's outputs on them. One kind of task a subclass."""

import abc
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from bert_jax.data import random
from bert_jax.errors import BadInput
from bert_jax.finetune.rows import Rows

_LONGEST_LABEL = 40  # characters; what is longer may be text, and is not shown
_MOST_LABELS = 1000


@dataclasses.dataclass(frozen=True)
class Split(abc.ABC):
    """Examples as rows. An example may be several rows (windows), one after another.

    Attributes:
      rows: N of them.  example: [N] int64, which example a row belongs to, from 0 on, ascending.
      counts: {what: how often} of what was skipped, cut or split on the way.
      gold: of each example, what the metrics compare with; empty where the file has no labels.
    """

    rows: Rows
    example: np.ndarray
    counts: Counter
    gold: list[Any]

    @property
    def num_examples(self) -> int:
        """Examples that have a row."""
        return int(self.example[-1]) + 1 if len(self.example) else 0

    @abc.abstractmethod
    def predictions(self, outputs: np.ndarray) -> list[Any]:
        """The model's outputs [N, …] (float32, as `BertForTask` returns them) -> a prediction for each example."""

    @abc.abstractmethod
    def metrics(self, names: Iterable[str], predictions: list[Any]) -> dict[str, float]:
        """The named figures, by comparison with `gold`."""

    @abc.abstractmethod
    def files(self, predictions: list[Any]) -> dict[str, str]:
        """{end of the file's name: its content}: the predictions to be written; without text of the examples."""

    def content(self) -> list[Any]:
        """What tells the split from another: of its rows, and of what they are compared with."""
        return [self.rows.content_hash(), self.gold]


def choose(rows: Rows, example: np.ndarray, max_examples: int) -> Rows:
    """The rows of so many examples (0: of all), chosen by a hash of their numbers, in their order."""
    num_examples = int(example[-1]) + 1
    if not max_examples or max_examples >= num_examples:
        return rows
    keys = random.fold(random.fold_int(0, num_examples), np.arange(num_examples))
    is_chosen = np.zeros(num_examples, bool)
    is_chosen[np.argsort(keys, kind='stable')[:max_examples]] = True
    return rows.chosen(np.flatnonzero(is_chosen[example]))


def sorted_labels(found: Iterable[str], where: str) -> tuple[str, ...]:
    """Labels in the order of their ids: numbers as numbers, else by their letters; `O` first.

    Raises:
      BadInput: for so many labels, or such long ones, that they look like text; they are not shown.
    """
    labels = {*found}
    longest = max(map(len, labels), default=0)
    if len(labels) > _MOST_LABELS or longest > _LONGEST_LABEL:
        raise BadInput(
            where,
            f'has {len(labels):,} different labels of up to {longest} characters',
            f'at most {_MOST_LABELS:,} of at most {_LONGEST_LABEL}',
            '--config.task.label=COLUMN, the column of the labels; config.task.labels lists what is so by intention',
        )
    by_number = all(label.lstrip('-').isdecimal() for label in labels)
    return tuple(sorted(labels, key=lambda label: (label != 'O', int(label) if by_number else 0, label)))


def unknown_label(where: str, label: str, labels: tuple[str, ...]) -> BadInput:
    """The error for a label that training has not seen."""
    shown = repr(label) if len(label) <= _LONGEST_LABEL else f'of {len(label)} characters'
    return BadInput(
        where,
        f'has the label {shown}, which the training file does not have (or config.task.labels does not list)',
        'one of ' + ', '.join(labels[:20]) + (' …' if len(labels) > 20 else ''),
        'mend the file, or --config.task.label=COLUMN if that is another',
    )


def json_lines(records: Iterable[dict[str, Any]]) -> str:
    """A JSON object a line."""
    return ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records)
