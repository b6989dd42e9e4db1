"""Lays out the examples of a batch in rows.

`B` rows of a batch, `L` positions, `E` examples of a row.
"""

import dataclasses
import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from bert_jax.data import random

_SLOTS_PER_EXAMPLE = 2  # slots of a row, as a multiple of the mean number of examples
_LENGTH_STEPS = 8  # row lengths between one power of two and the next


class Layout(NamedTuple):
    """Where the examples of a batch lie in its rows."""

    examples: np.ndarray  # [n] int64, index of each example in the source
    present: np.ndarray  # [n] bool; the others only fill the last batch and have weight 0
    lengths: np.ndarray  # [n] int64, tokens of each example
    rows: np.ndarray  # [n] int64
    slots: np.ndarray  # [n] int64, index among the examples of the row
    starts: np.ndarray  # [n] int64, position of the first token
    shape: tuple[int, int]  # B, L
    num_slots: int  # E

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns, for each token of the examples, (index into `examples`, position in its example); [t] int64."""
        index = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return index, np.arange(len(index)) - np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)

    def scatter_tokens(self, values: np.ndarray, filler: int = 0) -> np.ndarray:
        """Returns int32 [B, L] with one value for each of `tokens`, and the filler elsewhere."""
        example, position = self.tokens()
        array = np.full(self.shape, filler, np.int32)
        array[self.rows[example], self.starts[example] + position] = values
        return array

    def scatter_examples(self, values: np.ndarray, filler: int = 0) -> np.ndarray:
        """Returns [B, E, …] with one value for each example, [n, …], and the filler in empty slots."""
        array = np.full((self.shape[0], self.num_slots, *values.shape[1:]), filler, values.dtype)
        array[self.rows, self.slots] = values
        return array

    def unpack(self, outputs: np.ndarray, target: np.ndarray) -> None:
        """Copies the outputs of a batch to the rows `examples` of an array.

        Args:
          outputs: [B, E, C] with `target` [N, C], or [B, L, C] with `target` [N, longest, C].
        """
        if target.ndim == 2:
            target[self.examples[self.present]] = outputs[self.rows, self.slots][self.present]
            return
        index, position = self.tokens()
        index, position = index[self.present[index]], position[self.present[index]]
        target[self.examples[index], position] = outputs[self.rows[index], self.starts[index] + position]


@dataclasses.dataclass(frozen=True)
class Packing:
    """How the examples of a training batch share rows.

    A batch holds the same examples as without packing, so packing only saves padding. All batches have the same number
    of rows. Row length varies between batches in steps; each length is compiled once.

    Attributes:
      examples_per_row: mean over the rows of a batch.
      num_rows_multiple: B is a multiple of this; empty rows are added.
      length_multiple: L is a multiple of this.
    """

    examples_per_row: int | Fraction
    num_rows_multiple: int = 1
    length_multiple: int = 16

    @property
    def num_slots(self) -> int:
        """E, the slots of a row."""
        return 1 if self.examples_per_row == 1 else _SLOTS_PER_EXAMPLE * math.ceil(self.examples_per_row)

    def filled_rows(self, batch_size: int) -> int:
        """Returns the number of rows that hold the examples of a batch of at most `batch_size`."""
        return math.ceil(batch_size / self.examples_per_row)

    def num_rows(self, batch_size: int) -> int:
        """Returns B for batches of at most `batch_size` examples."""
        return round_up(self.filled_rows(batch_size), self.num_rows_multiple)

    def length(self, num_tokens: int) -> int:
        """Returns L for rows of at most `num_tokens` tokens."""
        step = 2 ** (max(num_tokens, 1).bit_length() - 1) // _LENGTH_STEPS
        return round_up(max(num_tokens, 1), max(self.length_multiple, step))

    def length_of_average(self, mean_tokens: float, batch_size: int) -> int:
        """Returns L of a batch of at most `batch_size` examples with an average number of tokens."""
        return self.length(math.ceil(mean_tokens / self.filled_rows(batch_size)))

    def rows(self, lengths: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Assigns examples to rows so that the fullest row holds few tokens.

        Examples are taken longest first, and each goes to the emptiest row (LPT, Graham 1969).

        Args:
          lengths: [n] of the examples.
          batch_size: most examples of a batch, at least n.

        Returns:
          ([n] int64 rows, [n] int64 slots within them, tokens of the fullest row). Added rows stay empty.
        """
        num_rows = self.filled_rows(batch_size)
        rows, slots = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
        emptiest = [(0, row, 0) for row in range(num_rows)]  # (tokens, row, examples) of rows with a free slot
        max_tokens = 0
        for example in np.argsort(-lengths, kind='stable').tolist():
            num_tokens, row, num_examples = heapq.heappop(emptiest)
            rows[example], slots[example] = row, num_examples
            num_tokens += int(lengths[example])
            max_tokens = max(max_tokens, num_tokens)
            if num_examples + 1 < self.num_slots:
                heapq.heappush(emptiest, (num_tokens, row, num_examples + 1))
        return rows, slots, max_tokens

    def lay_out(
        self, examples: np.ndarray, present: np.ndarray, lengths: np.ndarray, batch_size: int, min_length: int
    ) -> Layout:
        """Returns where the examples of a batch lie in its rows of at least `min_length` positions.

        Args:
          examples, present, lengths: see `Layout`.
          batch_size: most examples of a batch.
        """
        num_rows = self.num_rows(batch_size)
        rows, slots, max_tokens = self.rows(lengths, batch_size)
        slot_lengths = np.zeros((num_rows, self.num_slots), np.int64)
        slot_lengths[rows, slots] = lengths
        starts = (np.cumsum(slot_lengths, axis=1) - slot_lengths)[rows, slots]
        shape = num_rows, max(self.length(max_tokens), min_length)
        return Layout(examples, present, lengths, rows, slots, starts, shape, self.num_slots)


_CHOICES = tuple(Fraction(32, rows) for rows in range(32, 2, -1))  # examples per row, from 1 to about 10
_SAMPLE = 4096  # examples in all sampled batches
_EQUAL_LENGTH = 512  # of rows in which attention has as many FLOPs as the rest of a layer of 256 dimensions


class SampledBatches(NamedTuple):
    """Random batches of a source of examples.

    Attributes:
      weight: share of the training batches that are of this source; the sum over all sources is arbitrary.
      lengths: of the examples of each batch, in tokens, int64 [at most batch_size].
    """

    weight: float
    lengths: list[np.ndarray]

    @property
    def mean_tokens(self) -> float:
        """The mean number of tokens of a batch."""
        return sum(int(lengths.sum()) for lengths in self.lengths) / len(self.lengths)


def num_samples(batch_size: int) -> int:
    """Returns how many batches to sample."""
    return max(1, min(8, _SAMPLE // batch_size))


def sampled_batches(lengths: np.ndarray, batch_size: int) -> SampledBatches:
    """Returns random batches of examples with these lengths, the same at every call."""
    drawn = [random.below(random.bits(random.fold_in(0, index), batch_size)[0], len(lengths)) for index in range(8)]
    return SampledBatches(1.0, [lengths[examples] for examples in drawn[: num_samples(batch_size)]])


def choose_examples_per_row(
    sources: Sequence[SampledBatches], batch_size: int, num_rows_multiple: int = 1, length_multiple: int = 16
) -> Fraction:
    """Returns how many examples should share a row so that a step is fast, by packing the sampled batches.

    Few rows leave little padding, but attention over long rows is slow.

    Args:
      batch_size: most examples of a batch.
      num_rows_multiple, length_multiple: see `Packing`. They must not depend on the mesh, so that the rows are the
        same on every mesh.
    """

    def cost(examples_per_row: Fraction) -> float:
        packing = Packing(examples_per_row, num_rows_multiple, length_multiple)
        found = 0.0
        for weight, batches in sources:
            shortest = packing.length_of_average(SampledBatches(weight, batches).mean_tokens, batch_size)
            lengths = [max(packing.length(packing.rows(batch, batch_size)[2]), shortest) for batch in batches]
            found += weight * sum(length * (_EQUAL_LENGTH + length) for length in lengths) / len(lengths)
        return packing.num_rows(batch_size) * found

    return min(_CHOICES, key=cost)


def round_up(count: int, multiple: int) -> int:
    """Rounds a count up to a multiple."""
    return -(-count // multiple) * multiple
