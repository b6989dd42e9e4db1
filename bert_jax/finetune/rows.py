"""Rows of a task as flat arrays, and the batches cut from them: static shapes, a pure function of (rows, seed, step).

`N` rows, `T` tokens of all rows, `B` rows of a batch, `L` positions.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bert_jax.data.batches import Stream
from bert_jax.data.order import Chosen, Order
from bert_jax.model.inputs import Array, Inputs


class TaskBatch(NamedTuple):
    """One step's input, for the step of `train/step.py`."""

    input_ids: Array  # [B, L] int32
    token_type_ids: Array  # [B, L] int32, 1 for the second text
    sequence_ids: Array  # [B, L] int32, 1; 0 is padding
    position_ids: Array  # [B, L] int32
    cls_positions: Array  # [B, 1] int32, 0
    labels: Array  # [B] int32 class or float32 value; [B, L] int32 tags; [B, 2] int32 first and last token
    weights: Array  # [B] float32, or [B, L]: 1 where there is a label

    @property
    def inputs(self) -> Inputs:
        """What the model reads of it."""
        return Inputs(self.input_ids, self.token_type_ids, self.sequence_ids, self.position_ids)

    @property
    def num_predictions(self) -> int:
        """No masked-LM head runs."""
        return 0


@dataclasses.dataclass(frozen=True)
class Rows:
    """Encoded rows, each [CLS] … [SEP].

    Attributes:
      ids: [T] int32.  starts: [N + 1] int64, of each row in `ids`.
      second: [N] int32, where in its row the second text begins; its length where there is none.
      labels: [N] or [N, 2] as in `TaskBatch`, or [T] int32 with -1 where a token has no tag.
    """

    ids: np.ndarray
    starts: np.ndarray
    second: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def has_tags(self) -> bool:
        """Whether every token has a label of its own; a row has two tokens at least, so that T is never N."""
        return len(self.labels) == len(self.ids)

    def content_hash(self) -> str:
        """SHA-256 over everything that batches are made of."""
        found = hashlib.sha256()
        for array in (self.ids, self.starts, self.second, self.labels):
            found.update(f'{array.shape} {array.dtype} '.encode())
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def chosen(self, numbers: np.ndarray) -> 'Rows':
        """Some of the rows, in the given order."""
        lengths = np.diff(self.starts)[numbers]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        tokens = np.repeat(self.starts[numbers] - starts[:-1], lengths) + np.arange(starts[-1])
        labels = self.labels[tokens if self.has_tags else numbers]
        return Rows(self.ids[tokens], starts, self.second[numbers], labels)


def make_rows(ids: Sequence[Sequence[int]], second: Sequence[int], labels: np.ndarray) -> Rows:
    """Rows from lists of ids."""
    lengths = np.array([len(row) for row in ids], np.int64)
    flat = np.fromiter((token for row in ids for token in row), np.int32, int(lengths.sum()))
    return Rows(flat, np.concatenate([[0], np.cumsum(lengths)]), np.asarray(second, np.int32), labels)


class TaskStream(Stream[TaskBatch]):
    """The batches of rows: shuffled epochs for ever (training), or once as they stand (evaluation, seed None)."""

    def __init__(self, rows: Rows, *, batch_size: int, seed: int | None, sequence_length: int, pad_id: int):
        super().__init__(Order(len(rows), batch_size, seed))
        self._rows, self._length, self._pad_id = rows, sequence_length, pad_id

    def _assemble(self, chosen: Chosen) -> TaskBatch:
        rows, present = chosen.rows, chosen.present  # nothing in a row is drawn
        data, place = self._rows, np.arange(self._length)
        lengths = np.diff(data.starts)[rows][:, None]
        inside = place < lengths  # BL
        tokens = np.minimum(data.starts[rows][:, None] + place, len(data.ids) - 1)
        shape = inside.shape
        if data.has_tags:
            labels = np.where(inside, data.labels[tokens], -1)
            weights = ((labels >= 0) & present[:, None]).astype(np.float32)
            labels = np.maximum(labels, 0).astype(np.int32)
        else:
            labels, weights = data.labels[rows], present.astype(np.float32)
        return TaskBatch(
            input_ids=np.where(inside, data.ids[tokens], self._pad_id).astype(np.int32),
            token_type_ids=(inside & (place >= data.second[rows][:, None])).astype(np.int32),
            sequence_ids=inside.astype(np.int32),
            position_ids=np.broadcast_to(place, shape).astype(np.int32) * inside,
            cls_positions=np.zeros((len(rows), 1), np.int32),
            labels=labels,
            weights=weights,
        )
