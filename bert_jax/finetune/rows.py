"""Stores examples of a task as flat arrays and assembles batches, a pure function of (examples, seed, step).

`N` rows of examples, `T` tokens in all of them, `B` rows of a batch, `L` positions, `E` examples of a row.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bert_jax.data.batches import Stream
from bert_jax.data.sampler import RowSelection, Sampler
from bert_jax.finetune.packing import Layout, Packing
from bert_jax.model.inputs import Array, Inputs


class TaskBatch(NamedTuple):
    """The input of one training or evaluation step."""

    input_ids: Array  # [B, L] int32
    token_type_ids: Array  # [B, L] int32, 1 for the second text
    sequence_ids: Array  # [B, L] int32, k for the k-th example of the row; 0 for padding
    position_ids: Array  # [B, L] int32, position within the example
    cls_positions: Array  # [B, E] int32, where each example starts; 0 for empty slots
    labels: Array  # [B, E] int32 classes or float32 values; [B, L] int32 tags; [B, E, 2] int32 first and last token
    weights: Array  # [B, E] float32, or [B, L]: 1 where there is a label

    @property
    def inputs(self) -> Inputs:
        """The inputs of the encoder."""
        return Inputs(self.input_ids, self.token_type_ids, self.sequence_ids, self.position_ids)

    @property
    def num_predictions(self) -> int:
        """0, because no masked-LM head runs."""
        return 0


@dataclasses.dataclass(frozen=True)
class Rows:
    """Encoded rows, each [CLS] … [SEP].

    Attributes:
      ids: [T] int32.  starts: [N + 1] int64, start of each row in `ids`.
      second_starts: [N] int32, where the second text begins within its row; the row's length if there is none.
      labels: [N] int32 classes or float32 values; [N, 2] int32, first and last token relative to the row; or [T] int32
        tags, -1 for tokens without a tag.
    """

    ids: np.ndarray
    starts: np.ndarray
    second_starts: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def has_tags(self) -> bool:
        """Whether labels are per token. A row has at least two tokens, so T never equals N."""
        return len(self.labels) == len(self.ids)

    @property
    def has_token_outputs(self) -> bool:
        """Whether a model has an output for every token (tags, spans) or one per row."""
        return self.has_tags or self.labels.ndim == 2

    def content_hash(self) -> str:
        """Returns the SHA-256 of all arrays."""
        digest = hashlib.sha256()
        for array in (self.ids, self.starts, self.second_starts, self.labels):
            digest.update(f'{array.shape} {array.dtype} '.encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def select(self, indices: np.ndarray) -> 'Rows':
        """Returns the rows with these indices, in the given order."""
        lengths = np.diff(self.starts)[indices]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        tokens = np.repeat(self.starts[indices] - starts[:-1], lengths) + np.arange(starts[-1])
        labels = self.labels[tokens if self.has_tags else indices]
        return Rows(self.ids[tokens], starts, self.second_starts[indices], labels)


def make_rows(ids: Sequence[Sequence[int]], second_starts: Sequence[int], labels: np.ndarray) -> Rows:
    """Builds `Rows` from lists of ids."""
    lengths = np.array([len(row) for row in ids], np.int64)
    flat = np.fromiter((token for row in ids for token in row), np.int32, int(lengths.sum()))
    return Rows(flat, np.concatenate([[0], np.cumsum(lengths)]), np.asarray(second_starts, np.int32), labels)


def even_order(lengths: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns the indices of examples in an order that gives all full batches about as many tokens.

    Then most batches have one shape. The shortest examples come last, in the batch that is not full.
    """
    longest_first = np.argsort(-lengths, kind='stable')
    num_batches = len(lengths) // batch_size
    dealt = longest_first[: num_batches * batch_size].reshape(batch_size, num_batches).T
    return np.concatenate([dealt.ravel(), longest_first[num_batches * batch_size :]])


class TaskStream(Stream[TaskBatch]):
    """A stream of batches: endless shuffled epochs for training, or one pass for evaluation (seed None).

    The pass is in order without packing, and in `even_order` with it.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int,
        seed: int | None,
        sequence_length: int,
        pad_id: int,
        packing: Packing | None = None,
    ):
        """Args:
        batch_size: examples per batch.
        sequence_length: L without packing.
        packing: None for one example per row.
        """
        super().__init__(Sampler(len(rows), batch_size, seed))
        self._rows, self._length, self._pad_id, self._packing = rows, sequence_length, pad_id, packing
        is_reordered = seed is None and packing
        self._order = even_order(np.diff(rows.starts), batch_size) if is_reordered else np.arange(len(rows))
        if packing:
            # Batches with fewer tokens than average get the length of an average batch, to limit compilation.
            self._min_length = packing.length_of_average(batch_size * len(rows.ids) / len(rows), batch_size)

    @property
    def batch_size(self) -> int:
        """B, over all processes."""
        examples = self._sampler.batch_size
        return self._packing.num_rows(examples) if self._packing else examples

    def batch(self, step: int, rows: slice = slice(None)) -> TaskBatch:
        """Returns the batch of a step, or some of its rows; independent of the order of calls."""
        if not self._packing:
            return super().batch(step, rows)
        packed = self._assemble(self._sampler.rows(step))  # which examples share a row depends on the whole batch
        return TaskBatch(*(array[rows] for array in packed))

    def layout(self, step: int) -> Layout:
        """Returns where the examples of the batch of a step lie."""
        return self._layout(self._sampler.rows(step))

    def _layout(self, selection: RowSelection) -> Layout:
        examples, present = self._order[selection.rows], selection.present
        lengths = np.diff(self._rows.starts)[examples]
        if self._packing:
            return self._packing.lay_out(examples, present, lengths, self._sampler.batch_size, self._min_length)
        rows, nothing = np.arange(len(lengths)), np.zeros(len(lengths), np.int64)
        return Layout(examples, present, lengths, rows, nothing, nothing, (len(lengths), self._length), 1)

    def _assemble(self, selection: RowSelection) -> TaskBatch:
        layout, data = self._layout(selection), self._rows  # examples have no random content
        examples, starts = layout.examples, layout.starts
        example, position = layout.tokens()
        source = data.starts[examples][example] + position
        if data.has_tags:
            tags = np.where(layout.present[example], data.labels[source], -1)
            labels = layout.scatter_tokens(np.maximum(tags, 0))
            weights = layout.scatter_tokens(tags >= 0).astype(np.float32)
        else:
            labels, weights = data.labels[examples], layout.scatter_examples(layout.present.astype(np.float32))
            labels = labels + starts[:, None].astype(np.int32) if labels.ndim == 2 else labels
            labels = layout.scatter_examples(labels)
        return TaskBatch(
            input_ids=layout.scatter_tokens(data.ids[source], self._pad_id),
            token_type_ids=layout.scatter_tokens(position >= data.second_starts[examples][example]),
            sequence_ids=layout.scatter_tokens(layout.slots[example] + 1),
            position_ids=layout.scatter_tokens(position),
            cls_positions=layout.scatter_examples(starts.astype(np.int32)),
            labels=labels,
            weights=weights,
        )
