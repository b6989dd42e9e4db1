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


_CUT, _RANDOM, _DOCUMENT, _START, _A_TRIM, _B_TRIM, _ROUNDING, _FIRST_RETRY = range(8)
_NUM_DRAWS = _FIRST_RETRY
_NUM_RETRIES = 24  # of the start of a partner


def make_pairs(plan: Plan, windows: np.ndarray, keys: np.ndarray, data: config.Data) -> Pairs:
    """Cuts windows into sentence pairs, as the original's `create_instances_from_document`.

    The window is cut between two of its sentences; in half of the cases what follows the cut is replaced by text
    from another document (`nsp`, label 1) or the halves change places (`sop`, label 1). Then tokens leave the longer
    half, each from its front or its back with probability 1/2, until the planned length is met.

    With `data.match_lengths` neither the lengths of the halves nor where they are cut says anything about the label.
    The text from another document is whole sentences, about as many tokens as those that it replaces, half of the time
    more and half of the time fewer. Whichever of the two is taken, it is trimmed to the length of the shorter one. In
    the original the random text fills the row, and whoever knows both lengths guesses 64% of the labels.

    Args:
      windows: [N] int64, indices into the plan.
      keys: [N] uint64, the random key of each example.
    """
    start, length = plan.start[windows], plan.length[windows].astype(np.int64)
    target, zero = plan.target[windows].astype(np.int64), np.zeros(len(windows), np.int64)
    if data.pairing == 'none':
        return Pairs(start, np.minimum(target, length), zero, zero, zero)
    keys = random.fold(keys, 1)
    draws = random.bits(keys, _NUM_DRAWS)
    first, count = plan.first_segment[windows], plan.num_segments[windows].astype(np.int64)
    between = plan.segments[first + 1 + random.below(draws[:, _CUT], np.maximum(count - 1, 1))]
    inside = start + 1 + random.below(draws[:, _CUT], np.maximum(length - 1, 1))
    cut = np.where(count > 1, between, inside)
    a_start, a_length, b_start, b_length = start, cut - start, cut, start + length - cut
    label = (random.uniform(draws[:, _RANDOM]) < 0.5).astype(np.int64)
    shorter = None  # [N], of the two texts that B may be
    if data.pairing == 'nsp':
        is_random, most = label == 1, len(plan.num_holding) - 1
        if data.match_lengths:
            kept = _trimmed_lengths(a_length, b_length, target)[1]
            is_cut, wanted = kept < b_length, np.minimum(kept, most)
            own = plan.document_of[windows]
            partner, partner_length, shorter = _find_like_partners(plan, own, wanted, is_cut, draws, keys)
            b_start, b_length = np.where(is_random, partner, b_start), np.where(is_random, partner_length, b_length)
        else:
            chosen = np.flatnonzero(is_random)
            wanted, own = np.maximum(target - a_length, 1)[chosen], plan.document_of[windows[chosen]]
            b_start[chosen], b_length[chosen] = _find_partners(plan, own, wanted, draws[chosen])
    a_kept, b_kept = _trimmed_lengths(a_length, b_length if shorter is None else shorter, target)
    words = -(-int(max((a_length - a_kept).max(initial=0), (b_length - b_kept).max(initial=0), 1)) // 64)
    a_start = a_start + random.coin_flips(random.bits(draws[:, _A_TRIM], words), a_length - a_kept)
    b_start = b_start + random.coin_flips(random.bits(draws[:, _B_TRIM], words), b_length - b_kept)
    if data.pairing == 'sop':
        swap = label == 1
        a_start, b_start = np.where(swap, b_start, a_start), np.where(swap, a_start, b_start)
        a_kept, b_kept = np.where(swap, b_kept, a_kept), np.where(swap, a_kept, b_kept)
    return Pairs(a_start, a_kept, b_start, b_kept, label)


def _find_partners(plan: Plan, own: np.ndarray, wanted: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sentences of at least `wanted` tokens from any other document that holds so many; where none does, of fewer."""
    other = _other_documents(plan, own, wanted, draws[:, _DOCUMENT])
    begin = plan.segments[_starts_in(plan, other, wanted, draws[:, _START])]
    stop_segment = np.searchsorted(plan.segments, begin + wanted, side='left')
    return begin, plan.segments[np.minimum(stop_segment, plan.documents[other + 1])] - begin


def _find_like_partners(
    plan: Plan, own: np.ndarray, wanted: np.ndarray, is_cut: np.ndarray, draws: np.ndarray, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sentences of about `wanted` tokens, those up to the boundary before or after so many with equal probability.

    Like the text that they replace they begin with a sentence that is not longer than that, where one is found.

    Args:
      wanted: [N], tokens that are kept of the text to replace.
      is_cut: [N] bool, whether it has more; then the partner has more, too.

    Returns:
      Where they begin, their tokens, and the tokens to trim both texts to: those of the shorter one, or so few that
      both are cut where the partner is a single long sentence.
    """
    other = _other_documents(plan, own, wanted, draws[:, _DOCUMENT])
    first = _starts_in(plan, other, wanted, draws[:, _START])
    for retry in range(_FIRST_RETRY, _FIRST_RETRY + _NUM_RETRIES):
        too_long = np.flatnonzero(~is_cut & (plan.segments[first + 1] - plan.segments[first] > wanted))
        bits = random.bits_at(keys[too_long], np.array([retry]))
        other[too_long] = _other_documents(plan, own[too_long], wanted[too_long], bits)
        first[too_long] = _starts_in(plan, other[too_long], wanted[too_long], random.mix(bits))
    begin = plan.segments[first]
    before = np.searchsorted(plan.segments, begin + wanted, side='right') - 1
    after = np.where(is_cut, before + 1, np.searchsorted(plan.segments, begin + wanted, side='left'))
    is_too_long = before == first  # the sentence that it begins with
    takes_more = (random.uniform(draws[:, _ROUNDING]) < 0.5) | is_too_long | is_cut
    stop_segment = np.minimum(np.where(takes_more, after, before), plan.documents[other + 1])
    length = plan.segments[stop_segment] - begin
    both_cut = 1 + random.below(draws[:, _ROUNDING] << np.uint64(1), wanted)
    return begin, length, np.where(is_too_long & ~is_cut, both_cut, np.minimum(length, wanted))


def _other_documents(plan: Plan, own: np.ndarray, wanted: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Any other document that holds `wanted` tokens; where none does, any other."""
    own_length = plan.segments[plan.documents[own + 1]] - plan.segments[plan.documents[own]]
    num_holding = plan.num_holding[wanted]
    num_others = num_holding - (own_length >= wanted)
    holding = plan.by_length[random.below(draws, np.maximum(num_others, 1))]
    holding = np.where(holding == own, plan.by_length[num_holding - 1], holding)  # the last one stands in for its own
    any_other = random.below(draws, len(plan.documents) - 2)
    any_other = any_other + (any_other >= own)
    return np.where(num_others > 0, holding, any_other)


def _starts_in(plan: Plan, documents: np.ndarray, wanted: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """A segment of each document behind whose start the document still has `wanted` tokens, or its first."""
    first_segment, last_segment = plan.documents[documents], plan.documents[documents + 1]
    last_start = np.searchsorted(plan.segments, plan.segments[last_segment] - wanted, side='right') - 1
    last_start = np.clip(last_start, first_segment, last_segment - 1)
    return first_segment + random.below(draws, last_start - first_segment + 1)


def _trimmed_lengths(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the original's `truncate_seq_pair` leaves: one token off the longer (off B when equal) until they fit."""
    a_kept = np.where(a + b > total, np.minimum(a, np.maximum(total - b, (total + 1) // 2)), a)
    return a_kept, np.minimum(b, total - a_kept)
