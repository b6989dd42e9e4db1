"""How a window of sentences becomes a pair of sequences: each epoch with other partners and trims.

`N` windows or examples; see `windows.py` for what is planned once.
"""

import dataclasses

import numpy as np

from bert_jax import config
from bert_jax.data import random
from bert_jax.data.windows import Plan


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Examples as spans of the corpus's tokens, each array [N] int64; a span of length 0 is absent."""

    a_start: np.ndarray
    a_length: np.ndarray
    b_start: np.ndarray
    b_length: np.ndarray
    label: np.ndarray  # the next-sentence (or swapped-order) label


_CUT, _RANDOM, _DOCUMENT, _START, _A_TRIM, _B_TRIM = range(6)
_NUM_DRAWS = 6


def make_pairs(plan: Plan, windows: np.ndarray, keys: np.ndarray, data: config.Data) -> Pairs:
    """Cuts windows into sentence pairs, as the original's `create_instances_from_document`.

    The window is cut between two of its sentences; in half of the cases what follows the cut is replaced by text
    from another document (`nsp`, label 1) or the halves change places (`sop`, label 1). Then tokens leave the longer
    half, each from its front or its back with probability 1/2, until the planned length is met.

    With `data.match_lengths` the text from another document is as long as what it replaces, where another document
    holds so much, and the halves are trimmed alike: the lengths say nothing about the label. In the original it fills
    the row, and whoever knows both lengths guesses 64% of the labels.

    Args:
      windows: [N] int64, indices into the plan.
      keys: [N] uint64, the random key of each example.
    """
    start, length = plan.start[windows], plan.length[windows].astype(np.int64)
    target, zero = plan.target[windows].astype(np.int64), np.zeros(len(windows), np.int64)
    if data.pairing == 'none':
        return Pairs(start, np.minimum(target, length), zero, zero, zero)
    draws = random.bits(random.fold(keys, 1), _NUM_DRAWS)
    first, count = plan.first_segment[windows], plan.num_segments[windows].astype(np.int64)
    between = plan.segments[first + 1 + random.below(draws[:, _CUT], np.maximum(count - 1, 1))]
    inside = start + 1 + random.below(draws[:, _CUT], np.maximum(length - 1, 1))
    cut = np.where(count > 1, between, inside)
    a_start, a_length, b_start, b_length = start, cut - start, cut, start + length - cut
    label = (random.uniform(draws[:, _RANDOM]) < 0.5).astype(np.int64)
    if data.pairing == 'nsp':
        chosen = np.flatnonzero(label)
        most = len(plan.num_holding) - 1
        wanted = np.minimum(b_length, most) if data.match_lengths else np.maximum(target - a_length, 1)
        partners = _find_partners(plan, plan.document_of[windows[chosen]], wanted[chosen], draws[chosen])
        b_start[chosen], b_length[chosen] = partners
        if data.match_lengths:  # a longer sentence is cut at the tokens asked for
            b_length = np.minimum(b_length, wanted)
    a_kept, b_kept = _trimmed_lengths(a_length, b_length, target)
    words = -(-int(max((a_length - a_kept).max(initial=0), (b_length - b_kept).max(initial=0), 1)) // 64)
    a_start = a_start + random.coin_flips(random.bits(draws[:, _A_TRIM], words), a_length - a_kept)
    b_start = b_start + random.coin_flips(random.bits(draws[:, _B_TRIM], words), b_length - b_kept)
    if data.pairing == 'sop':
        swap = label == 1
        a_start, b_start = np.where(swap, b_start, a_start), np.where(swap, a_start, b_start)
        a_kept, b_kept = np.where(swap, b_kept, a_kept), np.where(swap, a_kept, b_kept)
    return Pairs(a_start, a_kept, b_start, b_kept, label)


def _find_partners(plan: Plan, own: np.ndarray, wanted: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A span of at least `wanted` tokens from any other document that holds so many; where none does, of fewer.

    So a sequence keeps its planned length, and its length does not tell that its second half is random.
    """
    own_length = plan.segments[plan.documents[own + 1]] - plan.segments[plan.documents[own]]
    num_holding = plan.num_holding[wanted]
    num_others = num_holding - (own_length >= wanted)
    holding = plan.by_length[random.below(draws[:, _DOCUMENT], np.maximum(num_others, 1))]
    holding = np.where(holding == own, plan.by_length[num_holding - 1], holding)  # the last one stands in for its own
    any_other = random.below(draws[:, _DOCUMENT], len(plan.documents) - 2)
    any_other = any_other + (any_other >= own)
    other = np.where(num_others > 0, holding, any_other)
    first_segment, last_segment = plan.documents[other], plan.documents[other + 1]
    end = plan.segments[last_segment]
    last_start = np.searchsorted(plan.segments, end - wanted, side='right') - 1
    last_start = np.clip(last_start, first_segment, last_segment - 1)
    segment = first_segment + random.below(draws[:, _START], last_start - first_segment + 1)
    begin = plan.segments[segment]
    stop_segment = np.searchsorted(plan.segments, begin + wanted, side='left')
    return begin, plan.segments[np.minimum(stop_segment, last_segment)] - begin


def _trimmed_lengths(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the original's `truncate_seq_pair` leaves: one token off the longer (off B when equal) until they fit."""
    a_kept = np.where(a + b > total, np.minimum(a, np.maximum(total - b, (total + 1) // 2)), a)
    return a_kept, np.minimum(b, total - a_kept)
