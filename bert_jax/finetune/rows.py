"""Examples of a task as flat arrays, and the batches made of them: a pure function of (examples, seed, step).

`N` examples, `T` tokens of all of them, `B` rows of a batch, `L` positions, `E` examples of a row.
"""

import dataclasses
import hashlib
import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bert_jax.data.batches import Stream
from bert_jax.data.sampler import RowSelection, Sampler
from bert_jax.model.inputs import Array, Inputs


class TaskBatch(NamedTuple):
    """One step's input, for the step of `train/step.py`."""

    input_ids: Array  # [B, L] int32
    token_type_ids: Array  # [B, L] int32, 1 for the second text
    sequence_ids: Array  # [B, L] int32, k for the k-th example of the row; 0 is padding
    position_ids: Array  # [B, L] int32, position inside its own example
    cls_positions: Array  # [B, E] int32, where each example starts; 0 for filler
    labels: Array  # [B, E] int32 class or float32 value; [B, L] int32 tags; [B, E, 2] int32 first and last token
    weights: Array  # [B, E] float32, or [B, L]: 1 where there is a label

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
      labels: [N] int32 classes or float32 values; [N, 2] int32, first and last token from the start of the row; or [T]
        int32 tags, -1 where a token has none.
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


_ROW_TOKENS = 128  # of a full row, about; attention makes longer rows slower, and shorter ones are harder to fill
_MOST_PER_ROW = 2  # slots of a row, as a multiple of the mean number of examples
_HARDLY_PADDED = 0.7  # mean length over the longest, above which long examples take less time in rows of their own
_LENGTH_STEPS = 8  # lengths of rows between a power of two and the next


@dataclasses.dataclass(frozen=True)
class Packing:
    """How the examples of a training batch share rows.

    A batch holds the same examples as without packing, so that only padding is saved. All batches have the same number
    of rows; their length varies from batch to batch, in steps, and every length is a compiled program.

    Attributes:
      examples_per_row: the mean over the rows of a batch.
      num_rows_multiple: of the number of rows; empty rows are added.
      length_multiple: of L.
    """

    examples_per_row: int
    num_rows_multiple: int = 1
    length_multiple: int = 16

    @property
    def num_slots(self) -> int:
        """E."""
        return 1 if self.examples_per_row == 1 else _MOST_PER_ROW * self.examples_per_row

    def num_rows(self, batch_size: int) -> int:
        """B for a batch of `batch_size` examples."""
        return round_up(-(-batch_size // self.examples_per_row), self.num_rows_multiple)

    def length(self, num_tokens: int) -> int:
        """L for rows of at most `num_tokens` tokens."""
        step = 2 ** (max(num_tokens, 1).bit_length() - 1) // _LENGTH_STEPS
        return round_up(max(num_tokens, 1), max(self.length_multiple, step))

    def rows(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Spreads a batch's examples over its rows so that the fullest row holds few tokens: the longest example comes
        first, each goes where there is most room (LPT, Graham 1969).

        Args:
          lengths: [n] of the examples.

        Returns:
          ([n] int64 rows, [n] int64 slots in them, tokens of the fullest row). Added rows stay empty.
        """
        num_rows = -(-len(lengths) // self.examples_per_row)
        rows, slots = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
        emptiest = [(0, row, 0) for row in range(num_rows)]  # (tokens, row, examples) of those with a free slot
        most = 0
        for example in np.argsort(-lengths, kind='stable').tolist():
            num_tokens, row, num_examples = heapq.heappop(emptiest)
            rows[example], slots[example] = row, num_examples
            num_tokens += int(lengths[example])
            most = max(most, num_tokens)
            if num_examples + 1 < self.num_slots:
                heapq.heappush(emptiest, (num_tokens, row, num_examples + 1))
        return rows, slots, most


def choose_examples_per_row(rows: Rows) -> int:
    """2, 4 or 8, so that a row holds about `_ROW_TOKENS` tokens: a power of two, by which batches mostly divide.

    1 for long examples that are nearly as long as the longest: there is little padding to save, and attention over
    longer rows takes more time.
    """
    mean, longest = len(rows.ids) / len(rows), int(np.diff(rows.starts).max())
    fitting = int(_ROW_TOKENS / mean)
    if fitting < 2:
        return 1 if mean > _HARDLY_PADDED * longest else 2
    return min(2 ** (fitting.bit_length() - 1), 8)


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is not below a number."""
    return -(-number // multiple) * multiple


class TaskStream(Stream[TaskBatch]):
    """The batches of examples: shuffled epochs for ever (training), or once in their order (evaluation, seed None)."""

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
        batch_size: examples of a batch.
        sequence_length: L without packing.
        packing: None for an example a row.
        """
        super().__init__(Sampler(len(rows), batch_size, seed))
        self._rows, self._length, self._pad_id, self._packing = rows, sequence_length, pad_id, packing
        if packing:
            # Batches of fewer tokens than average have the length of an average one: few programs are compiled.
            self._least_length = packing.length(-(-len(rows.ids) * packing.examples_per_row // len(rows)))

    @property
    def batch_size(self) -> int:
        """B, over all hosts."""
        examples = self._sampler.batch_size
        return self._packing.num_rows(examples) if self._packing else examples

    def batch(self, step: int, rows: slice = slice(None)) -> TaskBatch:
        """The batch of a step, or the given rows of it; the same whoever asks, in whatever order."""
        if not self._packing:
            return super().batch(step, rows)
        packed = self._assemble(self._sampler.rows(step))  # which examples share a row depends on the whole batch
        return TaskBatch(*(array[rows] for array in packed))

    def _assemble(self, selection: RowSelection) -> TaskBatch:
        examples, present = selection.rows, selection.present  # nothing in an example is random
        data, lengths = self._rows, np.diff(self._rows.starts)[selection.rows]
        if self._packing:
            rows, slots, most = self._packing.rows(lengths)
            shape = self.batch_size, max(self._packing.length(most), self._least_length)
            num_slots = self._packing.num_slots
        else:
            rows, slots = np.arange(len(examples)), np.zeros(len(examples), np.int64)
            shape, num_slots = (len(examples), self._length), 1

        # Where each example starts in its row, and where each of their tokens is in the data and in the batch.
        table = np.zeros((shape[0], num_slots), np.int64)
        table[rows, slots] = lengths
        starts = (np.cumsum(table, axis=1) - table)[rows, slots]
        example = np.repeat(np.arange(len(examples)), lengths)
        position = np.arange(len(example)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        source = data.starts[examples][example] + position
        target = rows[example], starts[example] + position

        def spread(values: np.ndarray, filler: int = 0) -> np.ndarray:  # of tokens -> BL
            whole = np.full(shape, filler, np.int32)
            whole[target] = values
            return whole

        def in_slots(values: np.ndarray) -> np.ndarray:  # of examples -> BE…
            whole = np.zeros((shape[0], num_slots, *values.shape[1:]), values.dtype)
            whole[rows, slots] = values
            return whole

        if data.has_tags:
            tags = np.where(present[example], data.labels[source], -1)
            labels, weights = spread(np.maximum(tags, 0)), spread(tags >= 0).astype(np.float32)
        else:
            labels, weights = data.labels[examples], in_slots(present.astype(np.float32))
            labels = in_slots(labels + starts[:, None].astype(np.int32) if labels.ndim == 2 else labels)
        return TaskBatch(
            input_ids=spread(data.ids[source], self._pad_id),
            token_type_ids=spread(position >= data.second[examples][example]),
            sequence_ids=spread(slots[example] + 1),
            position_ids=spread(position),
            cls_positions=in_slots(starts.astype(np.int32)),
            labels=labels,
            weights=weights,
        )
