"""Turns windows of sentences into sentence pairs, with new partners and trims in each epoch.

`N` windows or examples. `windows.py` computes the windows once.
"""

import dataclasses

import numpy as np

from bert_jax import config
from bert_jax.data import random
from bert_jax.data.windows import WindowIndex


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Examples as spans of the corpus's tokens, each array [N] int64; a span of length 0 is absent."""

    a_start: np.ndarray
    a_length: np.ndarray
    b_start: np.ndarray
    b_length: np.ndarray
    label: np.ndarray  # the next-sentence (or swapped-order) label


_CUT, _RANDOM, _DOCUMENT, _START, _A_TRIM, _B_TRIM, _ROUNDING = range(7)
_NUM_DRAWS = 7
_MOST_RETRIES = 24  # attempts to find a partner that starts with a short sentence
_RETRY_ROUNDS = 4  # rounds that the retries are split into


def make_pairs(index: WindowIndex, windows: np.ndarray, keys: np.ndarray, data: config.Data) -> Pairs:
    """Cuts windows into sentence pairs, as in the original's `create_instances_from_document`.

    A window is cut between two of its sentences. In half of the cases the text after the cut is replaced by text from
    another document (`nsp`, label 1), or the halves are swapped (`sop`, label 1). Then tokens are removed from the
    longer half, each from its front or its back with probability 1/2, until the pair has its planned length.

    With `data.match_lengths` the lengths of the halves do not reveal the label, and the cuts reveal little of it. The
    text from another document is whole sentences with about as many tokens as the text that it replaces: half of
    the time more, half of the time fewer. The text that is used is trimmed to the length of the shorter of the two. In
    the original the random text fills the row, and both lengths together reveal 64% of the labels.

    Args:
      windows: [N] int64, indices into the index.
      keys: [N] uint64, the random key of each example.
    """
    start, length = index.start[windows], index.length[windows].astype(np.int64)
    target, zero = index.target[windows].astype(np.int64), np.zeros(len(windows), np.int64)
    if data.pairing == 'none':
        return Pairs(start, np.minimum(target, length), zero, zero, zero)
    keys = random.fold_in(keys, 1)
    draws = random.bits(keys, _NUM_DRAWS)
    first, count = index.first_segment[windows], index.num_segments[windows].astype(np.int64)
    between = index.segments[first + 1 + random.below(draws[:, _CUT], np.maximum(count - 1, 1))]
    inside = start + 1 + random.below(draws[:, _CUT], np.maximum(length - 1, 1))
    cut = np.where(count > 1, between, inside)
    a_start, a_length, b_start, b_length = start, cut - start, cut, start + length - cut
    label = (random.uniform(draws[:, _RANDOM]) < 0.5).astype(np.int64)
    if data.pairing == 'nsp' and not data.match_lengths:
        chosen = np.flatnonzero(label)
        wanted, own = np.maximum(target - a_length, 1)[chosen], index.document_of[windows[chosen]]
        b_start[chosen], b_length[chosen] = _find_partners(index, own, wanted, draws[chosen])
    most_kept = b_length  # tokens that B may keep
    if data.pairing == 'nsp' and data.match_lengths:
        wanted = _trimmed_lengths(a_length, b_length, target)[1]
        own, is_cut = index.document_of[windows], wanted < b_length
        partner, partner_length, most_kept = _find_like_partners(index, own, wanted, is_cut, draws, keys)
        b_start, b_length = np.where(label, partner, b_start), np.where(label, partner_length, b_length)
    a_kept, b_kept = _trimmed_lengths(a_length, most_kept, target)
    words = -(-int(max((a_length - a_kept).max(initial=0), (b_length - b_kept).max(initial=0), 1)) // 64)
    a_start = a_start + random.coin_flips(random.bits(draws[:, _A_TRIM], words), a_length - a_kept)
    b_start = b_start + random.coin_flips(random.bits(draws[:, _B_TRIM], words), b_length - b_kept)
    if data.pairing == 'sop':
        swap = label == 1
        a_start, b_start = np.where(swap, b_start, a_start), np.where(swap, a_start, b_start)
        a_kept, b_kept = np.where(swap, b_kept, a_kept), np.where(swap, a_kept, b_kept)
    return Pairs(a_start, a_kept, b_start, b_kept, label)


def _find_partners(
    index: WindowIndex, own: np.ndarray, wanted: np.ndarray, draws: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Picks sentences of at least `wanted` tokens from another document, or of fewer if no document has enough."""
    other = _other_documents(index, own, wanted, draws[:, _DOCUMENT])
    begin = index.segments[_starts_in(index, other, wanted, draws[:, _START])]
    stop_segment = np.searchsorted(index.segments, begin + wanted, side='left')
    return begin, index.segments[np.minimum(stop_segment, index.documents[other + 1])] - begin


def _find_like_partners(
    index: WindowIndex, own: np.ndarray, wanted: np.ndarray, is_cut: np.ndarray, draws: np.ndarray, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picks about `wanted` tokens of whole sentences, ending at the boundary before or after with equal probability.

    Like the text that they replace, they begin with a sentence of at most `wanted` tokens if one can be found.

    Args:
      wanted: [N], number of tokens to keep of the text to replace.
      is_cut: [N] bool, whether that text is longer; then the partner is longer, too.

    Returns:
      The start of each partner, its length, and the length to trim both texts to: that of the shorter one, or less
      if the partner is a single long sentence, so that both are cut.
    """
    other = _other_documents(index, own, wanted, draws[:, _DOCUMENT])
    first = _starts_in(index, other, wanted, draws[:, _START])
    left = np.flatnonzero(~is_cut)
    for attempts in np.split(_NUM_DRAWS + np.arange(_MOST_RETRIES), _RETRY_ROUNDS):
        left = left[index.segments[first[left] + 1] - index.segments[first[left]] > wanted[left]]
        limit = wanted[left, None]
        bits = random.bits_at(keys[left, None], attempts)
        documents = _other_documents(index, own[left, None], limit, bits)
        starts = _starts_in(index, documents, limit, random.mix(bits))
        fits = index.segments[starts + 1] - index.segments[starts] <= limit
        fits[:, -1] = True  # if all are too long, the next round replaces this one
        chosen = np.arange(len(left)), fits.argmax(axis=1)
        other[left], first[left] = documents[chosen], starts[chosen]
    begin = index.segments[first]
    before = np.searchsorted(index.segments, begin + wanted, side='right') - 1
    after = np.where(is_cut, before + 1, np.searchsorted(index.segments, begin + wanted, side='left'))
    is_too_long = before == first  # the sentence that it begins with
    takes_more = (random.uniform(draws[:, _ROUNDING]) < 0.5) | is_too_long | is_cut
    stop_segment = np.minimum(np.where(takes_more, after, before), index.documents[other + 1])
    length = index.segments[stop_segment] - begin
    both_cut = 1 + random.below(draws[:, _ROUNDING] << np.uint64(1), wanted)
    return begin, length, np.where(is_too_long & ~is_cut, both_cut, np.minimum(length, wanted))


def _other_documents(index: WindowIndex, own: np.ndarray, wanted: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Picks another document of at least `wanted` tokens, or any other document if there is none."""
    own_length = index.segments[index.documents[own + 1]] - index.segments[index.documents[own]]
    num_holding = index.num_holding[wanted]
    num_others = num_holding - (own_length >= wanted)
    holding = index.by_length[random.below(draws, np.maximum(num_others, 1))]
    holding = np.where(holding == own, index.by_length[num_holding - 1], holding)  # its own is swapped for the last one
    any_other = random.below(draws, len(index.documents) - 2)
    any_other = any_other + (any_other >= own)
    return np.where(num_others > 0, holding, any_other)


def _starts_in(index: WindowIndex, documents: np.ndarray, wanted: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Picks a segment of each document that `wanted` tokens follow, or its first segment."""
    first_segment, last_segment = index.documents[documents], index.documents[documents + 1]
    last_start = np.searchsorted(index.segments, index.segments[last_segment] - wanted, side='right') - 1
    last_start = np.clip(last_start, first_segment, last_segment - 1)
    return first_segment + random.below(draws, last_start - first_segment + 1)


def _trimmed_lengths(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lengths after the original's `truncate_seq_pair`: it cuts the longer (B if equal) until both fit."""
    a_kept = np.where(a + b > total, np.minimum(a, np.maximum(total - b, (total + 1) // 2)), a)
    return a_kept, np.minimum(b, total - a_kept)
