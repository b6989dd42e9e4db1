"""Which windows share a row: planned once, so that every epoch packs the same ones.

Best fit decreasing over the histogram of lengths (after Krell et al. 2021, "Efficient sequence packing without
cross-contamination"): rows with the same contents are made all at once, however many there are.

`N` windows, `R` rows, `L` positions, `P` predictions and `E` sequences of a row.
"""

import functools

import numpy as np

WINDOWS_IN_BLOCK = 1 << 18  # packed together: rows mix neighbours only, and memory is bounded


def pack(
    lengths: np.ndarray, num_predictions: np.ndarray, *, capacity: int, max_predictions: int, max_sequences: int
) -> tuple[np.ndarray, np.ndarray]:
    """Puts every window into one row, so that no row holds more than its limits.

    Args:
      lengths: [N] int, positions that a window needs, special tokens counted, at most `capacity`.
      num_predictions: [capacity + 1] int, predictions that a window of each length needs; must not fall.
      capacity: L.  max_predictions: P, at least every number of `num_predictions`.  max_sequences: E.

    Returns:
      ([N] int64 windows, row after row; [R + 1] int64, where each row starts), rows in the order of their first window.
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
    """How many rows `pack` makes of windows; counts: [capacity + 1] int, windows of each length."""
    contents = _contents(counts.tolist(), num_predictions.tolist(), capacity, max_predictions, max_sequences)
    return sum(number for _, number in contents)


def _contents(
    counts: list[int], num_predictions: list[int], capacity: int, max_predictions: int, max_sequences: int
) -> list[tuple[tuple[int, ...], int]]:
    """[(lengths in a row, number of such rows)]: longest first, each into the row with the least space that it fits."""
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
        num_rows, rest = divmod(counts[length], in_new_row)
        for size, number in ((in_new_row, num_rows), (rest, 1)):
            if size and number:
                put((length,) * size, max_predictions - size * needed, number)
    return full + [(lengths, number) for rows in by_space for lengths, _, number in rows]


def _fill(lengths: np.ndarray, contents: list[tuple[tuple[int, ...], int]]) -> tuple[np.ndarray, np.ndarray]:
    """Windows for the places of all rows: ([N] int64 windows, row after row; [R] sequences of each row)."""
    sizes = np.repeat([len(row) for row, _ in contents], [number for _, number in contents])
    lengths_in_rows = np.concatenate([np.tile(row, number) for row, number in contents])
    narrow = functools.partial(np.argsort, kind='stable')  # a radix sort for 16 bits
    order = np.empty(len(lengths), np.int64)
    order[narrow(lengths_in_rows.astype(np.uint16))] = narrow(lengths.astype(np.uint16))
    starts = np.cumsum(sizes) - sizes
    by_first = np.argsort(np.minimum.reduceat(order, starts), kind='stable')
    moved = np.repeat(starts[by_first] - (np.cumsum(sizes[by_first]) - sizes[by_first]), sizes[by_first])
    return order[moved + np.arange(len(order))], sizes[by_first]
