"""Measures how full the rows of a corpus are, chooses the sequences per row, and suggests settings for fuller rows.

All results follow from the lengths of the corpus's windows (`windows.sample_lengths`), so all processes agree.
"""

import dataclasses

import numpy as np

from bert_jax import config
from bert_jax.data.packing import count_rows
from bert_jax.data.windows import predictions_of_lengths, sample_lengths
from bert_jax.text.splits import Split, SplitRange

_CLOSE = 0.01  # share of the positions that more sequences or predictions per row may still gain
_FEWEST_SEQUENCES = 4
_WORTH = 1.1  # factor by which a suggested setting fills rows better
_LOW = 0.8  # share of positions from which on nothing is suggested
_SHARE_THAT_FITS = 0.95  # share of the windows that fit into a suggested shorter row


@dataclasses.dataclass(frozen=True)
class Fill:
    """The share of a split's positions that hold tokens, with suggestions.

    Attributes:
      sequence_length: L.
      share: of the positions that hold tokens, special tokens included.
      max_sequences: per row; 1 without packing.
      better: {flags: share with these flags}, best first; empty if rows are full or nothing fills them much better.
    """

    sequence_length: int
    share: float
    max_sequences: int
    better: dict[str, float]

    def __str__(self) -> str:
        packed = f', up to {self.max_sequences} sequences in each' if self.max_sequences > 1 else ''
        would = ', '.join(f'{share:.0%} with {flags}' for flags, share in self.better.items())
        filled = f'rows of {self.sequence_length} positions{packed}: {self.share:.0%} of the positions hold tokens'
        return filled + (f' ({would})' if would else '')


def resolve_max_sequences(run: config.Config, train: Split) -> config.Config:
    """Replaces a `data.max_sequences` of 0 by a number chosen from the training split, the same for all phases.

    Without packing the field has no effect and is left alone.
    """
    if not config.chooses_max_sequences(run.data):
        return run
    chosen = max(num_sequences(sample_lengths(train, phase.data), phase.data) for phase in run.in_phases)
    return dataclasses.replace(run, data=dataclasses.replace(run.data, max_sequences=chosen))


def num_sequences(counts: np.ndarray, data: config.Data) -> int:
    """Returns the smallest power of two >= 4 of sequences per row that fills rows nearly as well as any number.

    Args:
      counts: [L + 1] int64, number of windows of each length.
    """
    best, room = _packed(counts, data, data.sequence_length), _FEWEST_SEQUENCES
    while room < data.sequence_length and _packed(counts, data, room) < best - _CLOSE:
        room *= 2
    return room


def fill_of_phases(run: config.Config, split: Split | SplitRange) -> list[Fill]:
    """Returns `fill_of` for each phase of a run, with flags for that phase; [] if there are no rows."""
    sections = [f'phases[{index}]' for index in range(len(run.phases))] or ['data']
    fills = (fill_of(split, phase.data, section) for phase, section in zip(run.in_phases, sections, strict=True))
    return [fill for fill in fills if fill is not None]


def fill_of(split: Split | SplitRange, data: config.Data, length_section: str = 'data') -> Fill | None:
    """Measures how full the rows of a split are and suggests better settings; None if there are no rows.

    Args:
      length_section: the part of the config that sets `sequence_length`.
    """
    counts = sample_lengths(split, data)
    if not counts.any():
        return None
    resolved = data
    if config.chooses_max_sequences(data):
        resolved = dataclasses.replace(data, max_sequences=num_sequences(counts, data))
    share = _share(counts, resolved)
    options = {}
    if share < _LOW:
        options = _packing_options(counts, data) if data.packing else _options(split, counts, data, length_section)
    worth = {flags: better for flags, better in options.items() if better > share * _WORTH}
    return Fill(
        data.sequence_length,
        share,
        config.max_sequences(resolved),
        dict(sorted(worth.items(), key=lambda option: -option[1])),
    )


def _options(split: Split | SplitRange, counts: np.ndarray, data: config.Data, length_section: str) -> dict[str, float]:
    """Returns {flags: share of positions that would hold tokens} for rows of one window."""
    length, cleared = data.sequence_length, ' --config.data.bucket_lengths="()"' if data.bucket_lengths else ''
    found = {f'--config.data.packing=True{cleared}': _packed(counts, data, num_sequences(counts, data))}
    if lengths := tuple(length >> shift for shift in (3, 2, 1) if length >> shift >= 8):
        bucketed = dataclasses.replace(data, bucket_lengths=lengths)
        found[f'--config.data.bucket_lengths="{lengths}"'] = _share(counts, bucketed)
    fits = int(np.searchsorted(np.cumsum(counts), _SHARE_THAT_FITS * counts.sum()))
    shorter = max(8, 1 << (fits - 1).bit_length())
    if shorter < length:
        short = dataclasses.replace(data, bucket_lengths=(), sequence_length=shorter)
        found[f'--config.{length_section}.sequence_length={shorter}{cleared}'] = _share(
            sample_lengths(split, short), short
        )
    return found


def _packing_options(counts: np.ndarray, data: config.Data) -> dict[str, float]:
    found = {'--config.data.max_sequences=0': _packed(counts, data, num_sequences(counts, data))}
    unbounded = dataclasses.replace(data, max_predictions=data.sequence_length)
    best = _packed(counts, unbounded, num_sequences(counts, unbounded))
    room, share = config.num_predictions(data), 0.0
    while room < data.sequence_length and share < best - _CLOSE:
        room = min(2 * room, data.sequence_length)
        roomier = dataclasses.replace(data, max_predictions=room)
        share = _packed(counts, roomier, num_sequences(counts, roomier))
    chosen = '' if config.chooses_max_sequences(data) else ' --config.data.max_sequences=0'
    return found | {f'--config.data.max_predictions={room}{chosen}': share}


def _share(counts: np.ndarray, data: config.Data) -> float:
    """Returns the share of positions that hold tokens; data.max_sequences must not be 0."""
    if data.packing:
        return _packed(counts, data, config.max_sequences(data))
    lengths = np.arange(len(counts))
    rows = np.array(config.row_lengths(data))
    return float((counts * lengths).sum() / (counts * rows[np.searchsorted(rows, lengths)]).sum())


def _packed(counts: np.ndarray, data: config.Data, max_sequences: int) -> float:
    """Returns the share of positions that hold tokens in packed rows of up to `max_sequences` sequences."""
    num_rows = count_rows(
        counts,
        predictions_of_lengths(data),
        capacity=data.sequence_length,
        max_predictions=config.num_predictions(data),
        max_sequences=max_sequences,
    )
    return float((counts * np.arange(len(counts))).sum() / (num_rows * data.sequence_length))
