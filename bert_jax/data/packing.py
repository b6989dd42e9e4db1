"""Assigns windows to shared rows. It is computed once, so every epoch packs the same windows together.

Best fit decreasing over the histogram of lengths (after Krell et al. 2021, "Efficient sequence packing without
cross-contamination"): all rows with the same contents are made at once.

`N` windows, `R` rows, `L` positions, `P` predictions and `E` sequences of a row.
"""

import functools

import numpy as np

WINDOWS_IN_BLOCK = 1 << 18  # packed together: rows mix only nearby windows, and memory is bounded


def pack(
    lengths: np.ndarray, num_predictions: np.ndarray, *, capacity: int, max_predictions: int, max_sequences: int
) -> tuple[np.ndarray, np.ndarray]:
    """Puts every window into one row without exceeding the limits of any row.

    Args:
      lengths: [N] int, positions that a window needs, special tokens included, at most `capacity`.
      num_predictions: [capacity + 1] int, predictions that a window of each length needs, non-decreasing.
      capacity: L.  max_predictions: P, at least the largest of `num_predictions`.  max_sequences: E.

    Returns:
      ([N] int64 windows, row by row; [R + 1] int64, the start of each row), rows in the order of their first window.
    """
    orders, starts, done, num_packed = [], [np.zeros(1, np.int64)], 0, 0
    while done < len(lengths):
        block = np.asarray(lengths[done : done + WINDOWS_IN_BLOCK])
        counts = np.bincount(block, minlength=capacity + 1)
        contents = _contents(counts.tolist(), num_predictions.tolist(), capacity, max_predictions, max_sequences)
        order, sizes = _fill(block, contents)
        orders.append(order + done)
        starts.append(num_packed + np.cumsum(sizes))
        done, num_packed = done + len(block), num_packed + len(order)
    return np.concatenate([np.zeros(0, np.int64), *orders]), np.concatenate(starts)


def count_rows(
    counts: np.ndarray, num_predictions: np.ndarray, *, capacity: int, max_predictions: int, max_sequences: int
) -> int:
    """Returns the number of rows that `pack` makes; counts: [capacity + 1] int, windows of each length."""
    contents = _contents(counts.tolist(), num_predictions.tolist(), capacity, max_predictions, max_sequences)
    return sum(num_rows for _, num_rows in contents)


def _contents(
    counts: list[int], num_predictions: list[int], capacity: int, max_predictions: int, max_sequences: int
) -> list[tuple[tuple[int, ...], int]]:
    """Returns [(lengths in a row, number of such rows)]: longest first, each into the fullest row that it fits."""
    by_space: list[list[tuple[tuple[int, ...], int, int]]] = [[] for _ in range(capacity + 1)]
    spaces = 0  # bit s is set where by_space[s] holds rows: (lengths, predictions left, number of rows)
    full = []

    def put(lengths: tuple[int, ...], predictions_left: int, num_rows: int) -> None:
        nonlocal spaces
        space = capacity - sum(lengths)
        if space and predictions_left and len(lengths) < max_sequences:
            by_space[space].append((lengths, predictions_left, num_rows))
            spaces |= 1 << space
        else:
            full.append((lengths, num_rows))

    for length in range(capacity, 0, -1):
        needed, space = num_predictions[length], length
        while counts[length]:
            larger = spaces >> space
            if not larger:
                break
            space += (larger & -larger).bit_length() - 1
            fitting = next((i for i, row in enumerate(by_space[space]) if row[1] >= needed), None)
            if fitting is None:
                space += 1
                continue
            lengths, predictions_left, num_rows = by_space[space].pop(fitting)
            filled = min(num_rows, counts[length])
            if filled < num_rows:
                by_space[space].append((lengths, predictions_left, num_rows - filled))
            elif not by_space[space]:
                spaces &= ~(1 << space)
            counts[length] -= filled
            put((*lengths, length), predictions_left - needed, filled)
            space = length
        in_new_row = min(capacity // length, max_predictions // needed, max_sequences)
        num_rows, remainder = divmod(counts[length], in_new_row)
        for size, count in ((in_new_row, num_rows), (remainder, 1)):
            if size and count:
                put((length,) * size, max_predictions - size * needed, count)
    return full + [(lengths, num_rows) for rows in by_space for lengths, _, num_rows in rows]


def _fill(lengths: np.ndarray, contents: list[tuple[tuple[int, ...], int]]) -> tuple[np.ndarray, np.ndarray]:
    """Assigns windows to the rows: ([N] int64 windows, row by row; [R] sequences per row)."""
    sizes = np.repeat([len(row) for row, _ in contents], [num_rows for _, num_rows in contents])
    lengths_in_rows = np.concatenate([np.tile(row, num_rows) for row, num_rows in contents])
    narrow = functools.partial(np.argsort, kind='stable')  # radix sort for 16-bit integers
    order = np.empty(len(lengths), np.int64)
    order[narrow(lengths_in_rows.astype(np.uint16))] = narrow(lengths.astype(np.uint16))
    starts = np.cumsum(sizes) - sizes
    by_first = np.argsort(np.minimum.reduceat(order, starts), kind='stable')
    moved = np.repeat(starts[by_first] - (np.cumsum(sizes[by_first]) - sizes[by_first]), sizes[by_first])
    return order[moved + np.arange(len(order))], sizes[by_first]
