"""A split of a task: its rows, and what is made of the model's outputs on them. One kind of task a subclass."""

import abc
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from bert_jax.data import random
from bert_jax.finetune.rows import Rows


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

    def decided(self, predictions: list[Any], metrics: dict[str, float]) -> list[Any]:
        """Predictions for a file without labels, given the metrics of the validation files: as they are, by default."""
        del metrics
        return predictions

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
    keys = random.fold_in(random.fold_in_int(0, num_examples), np.arange(num_examples))
    is_chosen = np.zeros(num_examples, bool)
    is_chosen[np.argsort(keys, kind='stable')[:max_examples]] = True
    return rows.chosen(np.flatnonzero(is_chosen[example]))


def softmax(logits: np.ndarray) -> np.ndarray:
    """[..., C] logits -> [..., C] probabilities."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return weights / weights.sum(axis=-1, keepdims=True)


def json_lines(records: Iterable[dict[str, Any]]) -> str:
    """A JSON object a line."""
    return ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records)
