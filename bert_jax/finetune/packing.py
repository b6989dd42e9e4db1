"""Lays out the examples of a batch in rows.

`B` rows of a batch, `L` positions, `E` examples of a row.
"""

import dataclasses
import heapq
import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np

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

    def num_rows(self, batch_size: int) -> int:
        """Returns B for a batch of `batch_size` examples."""
        return round_up(-(-batch_size // self.examples_per_row), self.num_rows_multiple)

    def length(self, num_tokens: int) -> int:
        """Returns L for rows of at most `num_tokens` tokens."""
        step = 2 ** (max(num_tokens, 1).bit_length() - 1) // _LENGTH_STEPS
        return round_up(max(num_tokens, 1), max(self.length_multiple, step))

    def length_of_average(self, mean_length: float) -> int:
        """Returns L of a batch with an average number of tokens; mean_length: tokens of an example."""
        return self.length(math.ceil(self.examples_per_row * mean_length))

    def rows(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Assigns examples to rows so that the fullest row holds few tokens.

        Examples are taken longest first, and each goes to the emptiest row (LPT, Graham 1969).

        Args:
          lengths: [n] of the examples.

        Returns:
          ([n] int64 rows, [n] int64 slots within them, tokens of the fullest row). Added rows stay empty.
        """
        num_rows = -(-len(lengths) // self.examples_per_row)
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
        self, examples: np.ndarray, present: np.ndarray, lengths: np.ndarray, num_rows: int, min_length: int
    ) -> Layout:
        """Returns where the examples of a batch lie in its `num_rows` rows of at least `min_length` positions.

        Args: examples, present, lengths: see `Layout`.
        """
        rows, slots, max_tokens = self.rows(lengths)
        slot_lengths = np.zeros((num_rows, self.num_slots), np.int64)
        slot_lengths[rows, slots] = lengths
        starts = (np.cumsum(slot_lengths, axis=1) - slot_lengths)[rows, slots]
        shape = num_rows, max(self.length(max_tokens), min_length)
        return Layout(examples, present, lengths, rows, slots, starts, shape, self.num_slots)


_CHOICES = tuple(Fraction(32, rows) for rows in range(32, 2, -1))  # examples per row, from 1 to about 10
_SAMPLE = 4096  # lengths that are packed to compare the choices
_EQUAL_LENGTH = 512  # of rows in which attention has as many FLOPs as the rest of a layer of 256 dimensions


def choose_examples_per_row(lengths: np.ndarray, batch_size: int, length_multiple: int = 16) -> Fraction:
    """Returns how many examples should share a row so that a step is fast, by packing random batches.

    Few rows leave little padding, but attention over long rows is slow.

    Args:
      lengths: of the examples, in tokens.
      batch_size: examples of a batch.
      length_multiple: see `Packing`.
    """
    num_batches = max(1, min(8, _SAMPLE // batch_size))
    batches = np.random.default_rng(0).choice(lengths, (num_batches, batch_size))
    mean = float(lengths.mean())

    def cost(examples_per_row: Fraction) -> float:
        packing = Packing(examples_per_row, length_multiple=length_multiple)
        shortest = packing.length_of_average(mean)
        row_lengths = [max(packing.length(packing.rows(batch)[2]), shortest) for batch in batches]
        return packing.num_rows(batch_size) * sum(length * (_EQUAL_LENGTH + length) for length in row_lengths)

    return min(_CHOICES, key=cost)


def round_up(count: int, multiple: int) -> int:
    """Rounds a count up to a multiple."""
    return -(-count // multiple) * multiple
