"""Assigns the rows of a source to the rows of each step: a pure function with O(1) seeks.

`B` rows of a batch, `N` rows of the source.
"""

import functools
from typing import NamedTuple

import numpy as np

from bert_jax.config import BatchSizes
from bert_jax.data import random

_ROWS_IN_BLOCK = 65_536
_EVALUATION_SEED = 0


class RowSelection(NamedTuple):
    """The rows of a batch, or of a part of it."""

    rows: np.ndarray  # [B] int64, of the source
    present: np.ndarray  # [B] bool, false for padding
    keys: np.ndarray  # [B] uint64, the key of each row's random choices
    bucket: int = -1  # of the batch; -1, the last, is the bucket of the longest rows


class EpochShuffle:
    """An endless sequence of shuffled epochs of N rows: blocks are shuffled, then the rows within each block."""

    def __init__(self, num_rows: int, key: int):
        self.num_rows, self._key = num_rows, key

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Returns the row at each index into all epochs; every epoch has each row once."""
        epochs, positions = np.divmod(indices, self.num_rows)
        rows = np.empty(len(indices), np.int64)
        for epoch in np.unique(epochs):
            block_starts, slot_starts, block_order = self._block_order(int(epoch))
            in_epoch = epochs == epoch
            slots = np.searchsorted(slot_starts, positions[in_epoch], side='right') - 1
            blocks = block_order[slots]
            rows[in_epoch] = block_starts[blocks] + random.permute(
                positions[in_epoch] - slot_starts[slots],
                block_starts[blocks + 1] - block_starts[blocks],
                random.fold_in(random.fold_in_int(self._key, int(epoch)), blocks + 1),
                limit=min(self.num_rows, _ROWS_IN_BLOCK),
            )
        return rows

    @functools.lru_cache(maxsize=4)  # noqa: B019  lives as long as its run
    def _block_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns ([K+1] first row of each block, [K] first position of each slot, [K] the block in each slot)."""
        num_blocks = -(-self.num_rows // _ROWS_IN_BLOCK)
        block_starts = np.arange(num_blocks + 1) * self.num_rows // num_blocks
        key = np.full(num_blocks, random.fold_in_int(random.fold_in_int(self._key, epoch), 0), np.uint64)
        order = random.permute(np.arange(num_blocks), num_blocks, key, limit=num_blocks)
        sizes = np.diff(block_starts)[order]
        return block_starts, np.concatenate([[0], np.cumsum(sizes)[:-1]]), order


class Sampler:
    """The order of the rows of a source, and the key of each row's random choices.

    Training repeats the source in shuffled epochs without end (`EpochShuffle`). Evaluation reads it once in its own
    order, with the same keys every time; rows past the end are padding.
    """

    def __init__(self, num_rows: int, batch_size: int | BatchSizes, seed: int | None, phase: int = 0):
        """Args: `seed` of the run for training, None for evaluation; `phase`, its index."""
        self.batch_sizes = batch_size if isinstance(batch_size, BatchSizes) else BatchSizes(((0, batch_size),))
        self.num_rows, self.batch_size, self._shuffled = num_rows, self.batch_sizes.largest, seed is not None
        key = random.fold_in_int(_EVALUATION_SEED if seed is None else seed, int(self._shuffled))
        self._key = random.fold_in_int(key, phase)
        self.shuffle = EpochShuffle(num_rows, self._key)

    def __len__(self) -> int:
        """Steps of B rows in one pass."""
        return -(-self.num_rows // self.batch_size)

    def rows(self, step: int, part: slice = slice(None)) -> RowSelection:
        """Returns the rows of a step's batch, or of a part of it."""
        indices = self._indices(step)[part]
        keys = random.fold_in(self._key, indices)
        if self._shuffled:
            return RowSelection(self.shuffle(indices), np.ones(len(indices), bool), keys)
        return RowSelection(np.minimum(indices, self.num_rows - 1), indices < self.num_rows, keys)

    def _indices(self, step: int) -> np.ndarray:
        """Returns the indices of a batch's rows, counted over all steps, int64."""
        return self.batch_sizes.before(step) + np.arange(self.batch_sizes.at(step), dtype=np.int64)


class BucketedSampler(Sampler):
    """A sampler of shuffled epochs in which each batch holds rows of similar length.

    In every epoch the rows of each bucket are shuffled, the buckets are concatenated from shortest to longest and cut
    into batches, and the batches are shuffled. A batch that spans two buckets belongs to the longer one. The last batch
    before that shuffle may have fewer than B rows; padding fills it, so that an epoch is a whole number of steps. The
    smaller batches of a batch-size warm-up are parts of these.
    """

    def __init__(
        self, by_bucket: np.ndarray, sizes: np.ndarray, batch_size: int | BatchSizes, seed: int, phase: int = 0
    ):
        """Args: by_bucket, [N] int64, the rows sorted by bucket; sizes, the number of rows of each bucket."""
        super().__init__(len(by_bucket), batch_size, seed, phase)
        self._by_bucket, self._ends = by_bucket, np.cumsum(sizes)
        self._starts = self._ends - sizes
        self._shuffles = [
            EpochShuffle(int(size), random.fold_in_int(self._key, k)) for k, size in enumerate(sizes, start=1)
        ]

    def rows(self, step: int, part: slice = slice(None)) -> RowSelection:
        """Returns the rows of a step's batch, or of a part of it."""
        indices = self._indices(step)
        slots, slot_of = np.unique(indices // self.batch_size, return_inverse=True)  # of B rows, one or two
        epochs, positions = np.divmod(slots, len(self))
        slot_keys = random.fold_in(random.fold_in(self._key, epochs), 0)
        batches = random.permute(positions, len(self), slot_keys, limit=len(self))
        whole, epochs = batches[slot_of] * self.batch_size + indices % self.batch_size, epochs[slot_of]
        bucket = int(np.searchsorted(self._ends, min(whole.max(), self.num_rows - 1), side='right'))
        numbers, present = np.minimum(whole[part], self.num_rows - 1), whole[part] < self.num_rows
        bucket_of, rows = np.searchsorted(self._ends, numbers, side='right'), np.empty(len(numbers), np.int64)
        for k in np.unique(bucket_of):
            chosen, start = bucket_of == k, self._starts[k]
            size = self._ends[k] - start
            rows[chosen] = self._by_bucket[
                start + self._shuffles[k](epochs[part][chosen] * size + numbers[chosen] - start)
            ]
        return RowSelection(rows, present, random.fold_in(self._key, indices[part]), bucket)
