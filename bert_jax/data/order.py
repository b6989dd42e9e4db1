"""Which row of a source stands in which row of which step: a pure function, O(1) to seek in.

`B` rows of a batch, `N` rows of the source.
"""

import functools

import numpy as np

from bert_jax.data import random

_ROWS_IN_BLOCK = 65_536
_EVALUATION_SEED = 0


class Order:
    """The order of the rows of a source, and the key of each row's random choices.

    In training the source is gone through in shuffled epochs for ever: blocks of rows in random order, then rows within
    a block. In evaluation it is gone through once as it stands, with the same keys every time; rows past the end are
    padding.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int | None, phase: int = 0):
        """Args: `seed` of the run for training, None for evaluation; number of the phase."""
        self.num_rows, self.batch_size, self._shuffled = num_rows, batch_size, seed is not None
        key = random.fold_int(_EVALUATION_SEED if seed is None else seed, int(self._shuffled))
        self._key = random.fold_int(key, phase)

    def __len__(self) -> int:
        """Steps in one pass."""
        return -(-self.num_rows // self.batch_size)

    def rows(self, step: int, part: slice = slice(None)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a step, or a part of it: ([B] int64 rows of the source, [B] bool not padding, [B] uint64 keys)."""
        numbers = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)[part]
        keys = random.fold(self._key, numbers)
        if self._shuffled:
            return self.shuffle(numbers), np.ones(len(numbers), bool), keys
        return np.minimum(numbers, self.num_rows - 1), numbers < self.num_rows, keys

    def shuffle(self, numbers: np.ndarray) -> np.ndarray:
        """The row of the source at each place, counted on from epoch to epoch; each stands once in an epoch."""
        epochs, places = np.divmod(numbers, self.num_rows)
        rows = np.empty(len(numbers), np.int64)
        for epoch in np.unique(epochs):
            block_starts, slot_starts, block_order = self._block_order(int(epoch))
            chosen = epochs == epoch
            slots = np.searchsorted(slot_starts, places[chosen], side='right') - 1
            blocks = block_order[slots]
            rows[chosen] = block_starts[blocks] + random.permute(
                places[chosen] - slot_starts[slots],
                block_starts[blocks + 1] - block_starts[blocks],
                random.fold(random.fold_int(self._key, int(epoch)), blocks + 1),
                limit=min(self.num_rows, _ROWS_IN_BLOCK),
            )
        return rows

    @functools.lru_cache(maxsize=4)  # noqa: B019  an order lives as long as its run
    def _block_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """([K+1] first row of each block, [K] first place of each slot, [K] the block in each slot)."""
        num_blocks = -(-self.num_rows // _ROWS_IN_BLOCK)
        block_starts = np.arange(num_blocks + 1) * self.num_rows // num_blocks
        key = np.full(num_blocks, random.fold_int(random.fold_int(self._key, epoch), 0), np.uint64)
        order = random.permute(np.arange(num_blocks), num_blocks, key, limit=num_blocks)
        sizes = np.diff(block_starts)[order]
        return block_starts, np.concatenate([[0], np.cumsum(sizes)[:-1]]), order
