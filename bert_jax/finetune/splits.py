"""The base class of task splits: encoded rows, predictions and metrics. Each kind of task has its subclass."""

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
    """Examples as rows. An example may have several consecutive rows (windows).

    Attributes:
      rows: N rows.  example_indices: [N] int64, the example of each row, ascending from 0.
      counts: {event: count} of examples skipped, cut or split while reading.
      gold: the target of each example; empty if the file has no labels.
    """

    rows: Rows
    example_indices: np.ndarray
    counts: Counter
    gold: list[Any]

    @property
    def num_examples(self) -> int:
        """The number of examples that have a row."""
        return int(self.example_indices[-1]) + 1 if len(self.example_indices) else 0

    @abc.abstractmethod
    def predictions(self, outputs: np.ndarray) -> list[Any]:
        """Converts outputs of `TaskModel`, float32 [N, …], to one prediction per example."""

    @abc.abstractmethod
    def metrics(self, names: Iterable[str], predictions: list[Any]) -> dict[str, float]:
        """Computes the named metrics by comparing predictions with `gold`."""

    def apply_threshold(self, predictions: list[Any], metrics: dict[str, float]) -> list[Any]:
        """Applies a threshold tuned on the validation files to predictions for an unlabelled file; by default, none."""
        del metrics
        return predictions

    @abc.abstractmethod
    def files(self, predictions: list[Any]) -> dict[str, str]:
        """Returns {file name suffix: content} for the predictions, without text of the examples."""

    def content(self) -> list[Any]:
        """Returns what identifies the split: the hash of its rows, and its targets."""
        return [self.rows.content_hash(), self.gold]


def sample_examples(rows: Rows, example_indices: np.ndarray, max_examples: int) -> Rows:
    """Returns the rows of `max_examples` examples (0: all), selected by a hash of their indices, in order."""
    num_examples = int(example_indices[-1]) + 1
    if not max_examples or max_examples >= num_examples:
        return rows
    return rows.select(np.flatnonzero(sampled(num_examples, max_examples)[example_indices]))


def sampled(num_examples: int, max_examples: int) -> np.ndarray:
    """Returns bool [num_examples]: whether each example is among the `max_examples` selected by a hash."""
    keys = random.fold_in(random.fold_in_int(0, num_examples), np.arange(num_examples))
    is_selected = np.zeros(num_examples, bool)
    is_selected[np.argsort(keys, kind='stable')[:max_examples]] = True
    return is_selected


def softmax(logits: np.ndarray) -> np.ndarray:
    """Converts [..., C] logits to probabilities."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return weights / weights.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Converts logits to probabilities, in float64."""
    return np.exp(-np.logaddexp(0, -np.asarray(logits, np.float64)))


def json_lines(records: Iterable[dict[str, Any]]) -> str:
    """Formats one JSON object per line."""
    return ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records)
