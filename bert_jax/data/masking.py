"""Masked language modelling: selects the tokens to predict and replaces them.

A masking unit is a token, a word or an n-gram of words, masked as a whole. All rows are masked at once.

`B` rows, `L` positions, `P` predictions and `E` sequences per row, `U` units, `V` vocabulary.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from bert_jax import config
from bert_jax.data import random
from bert_jax.text.tokenizer import Tokenizer

_LOTTERY, _REPLACEMENT, _NGRAM = 2, 3, 4  # folded into a row's key
_NGRAM_BOUNDS = np.cumsum([6 / 11, 3 / 11])  # of 1, 2 or 3 words, with probability in proportion to 1/n
_NO_UNIT = np.uint64(2**64 - 1)


@dataclasses.dataclass(frozen=True)
class Masked:
    """input_ids [B, L] int32 after masking; predictions: positions, ids [B, P] int32 and weights [B, P] float32."""

    input_ids: np.ndarray
    positions: np.ndarray
    ids: np.ndarray
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class MaskVocabulary:
    """The properties of a vocabulary that masking needs.

    Attributes:
      mask_id: the id of [MASK].
      can_predict: [V] bool, the tokens that may be predicted.
      replacements: [R] int64, the ids that random replacements are drawn from.
      continues_word: ids [B, L] -> [B, L] bool, whether each token continues the word of the token before it.
    """

    mask_id: int
    can_predict: np.ndarray
    replacements: np.ndarray
    continues_word: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, tokenizer: Tokenizer, masking: config.Masking) -> 'MaskVocabulary':
        """With `exclude_special`, special and unused tokens are not predicted or drawn, unless there are no others."""
        is_text = ~tokenizer.is_special if masking.exclude_special else np.ones(tokenizer.vocab_size, bool)
        if not is_text.any():
            is_text = np.ones(tokenizer.vocab_size, bool)
        return cls(tokenizer.mask_id, is_text, np.flatnonzero(is_text), tokenizer.continues_word)


def num_masked(lengths: np.ndarray, rate: float) -> np.ndarray:
    """Returns n, the predictions per sequence: max(1, round(rate x length)), special tokens included, int64."""
    return np.maximum(1, np.rint(rate * lengths)).astype(np.int64)


def mask_tokens(
    ids: np.ndarray,
    candidates: np.ndarray,
    lengths: np.ndarray,
    keys: np.ndarray,
    masking: config.Masking,
    vocabulary: MaskVocabulary,
    *,
    num_predictions: int,
    sequence_ids: np.ndarray | None = None,
) -> Masked:
    """Draws units from every sequence's candidates, at most n tokens, and masks them.

    Units are taken in random order; a unit that would exceed n is skipped (Devlin et al. 2019, appendix A.1;
    `create_masked_lm_predictions` of the original, whole words included). An n-gram is 1, 2 or 3 words with
    probability in proportion to 1/n (Lan et al. 2020, ALBERT, section 4.2; spans as such: Joshi et al. 2020,
    SpanBERT); each use cuts the text into different n-grams. Of the drawn tokens 80% become [MASK], 10% a random one of
    `vocabulary.replacements`, and 10% stay, independently of each other.

    Args:
      ids: [B, L] int32.  candidates: [B, L] bool, false for special tokens (position 0 too) and padding.
      lengths: [B, E] int64, tokens of each sequence with [CLS] and [SEP]; [B] with one sequence per row.
      keys: [B] uint64.
      sequence_ids: [B, L] int32, required with several sequences per row.
    """
    candidates = candidates & vocabulary.can_predict[ids]
    room = num_masked(lengths.reshape(len(ids), -1), masking.rate)  # [B, E]
    room = np.clip(num_predictions - (np.cumsum(room, axis=1) - room), 0, room)
    starts = _unit_starts(ids, candidates, keys, masking.unit, vocabulary.continues_word)
    flat_starts, counts = _shuffled_units(starts, keys, sequence_ids, room.shape[1])
    sizes = np.ones_like(flat_starts) if masking.unit == 'token' else _unit_sizes(starts, candidates)[flat_starts]
    taken = _take_in_order(sizes, counts, room.ravel())
    drawn = np.zeros(ids.size, bool)
    drawn[_expand(flat_starts[taken], sizes[taken])] = True
    return _replace(ids, np.flatnonzero(drawn), keys, masking, num_predictions, vocabulary)


def _unit_starts(
    ids: np.ndarray,
    candidates: np.ndarray,
    keys: np.ndarray,
    unit: str,
    continues_word: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Returns [B, L] bool, true where a unit starts. A word whose beginning was cut off is a unit too."""
    if unit == 'token':
        return candidates
    before = np.zeros_like(candidates)
    before[:, 1:] = candidates[:, :-1]
    words = candidates & ~(before & continues_word(ids))
    if unit == 'word':
        return words
    # Draws one n-gram length per word, then lays the n-grams end to end along each run of text.
    words_at = np.flatnonzero(words)
    chance = random.uniform(random.bits(random.fold_in(keys, _NGRAM), words.shape[1])[words])
    lengths = 1 + np.searchsorted(_NGRAM_BOUNDS, chance, side='right')
    first = np.flatnonzero(~before.ravel()[words_at])  # [runs], first word of each run of text
    run_lengths = np.diff(np.append(first, len(words_at)))
    ends = np.cumsum(lengths)
    offsets = ends - lengths - np.repeat((ends - lengths)[first], run_lengths)
    inside = offsets < np.repeat(run_lengths, run_lengths)
    ngrams = np.zeros(words.size, bool)
    ngrams[words_at[(np.repeat(first, run_lengths) + offsets)[inside]]] = True
    return ngrams.reshape(words.shape)


def _unit_sizes(starts: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Returns [B x L] int64, the tokens of the unit that starts at each position; other positions are undefined."""
    bounds = np.flatnonzero(starts | ~candidates)
    sizes = np.zeros(starts.size, np.int64)
    sizes[bounds] = np.diff(bounds, append=starts.size)
    return sizes


def _shuffled_units(
    starts: np.ndarray, keys: np.ndarray, sequence_ids: np.ndarray | None, num_sequences: int
) -> tuple[np.ndarray, np.ndarray]:
    """Shuffles units within each sequence: ([U] int64 positions in B x L, [B x E] int64 units per sequence)."""
    num_rows, num_positions = starts.shape
    # Sorts each row once, by [sequence 16 bits, chance 32 bits, position 16 bits].
    lottery = random.bits(random.fold_in(keys, _LOTTERY), num_positions)
    lottery >>= np.uint64(32)
    lottery <<= np.uint64(16)
    lottery |= np.arange(num_positions, dtype=np.uint64)
    if num_sequences > 1:
        assert sequence_ids is not None  # see `mask_tokens`
        lottery |= (sequence_ids.astype(np.uint64) - np.uint64(1)) << np.uint64(48)
    lottery[~starts] = _NO_UNIT
    lottery.sort(axis=1)
    counts = np.count_nonzero(starts, axis=1)
    units = lottery[np.arange(num_positions) < counts[:, None]]
    rows = np.repeat(np.arange(num_rows), counts)
    flat_starts = rows * num_positions + (units & np.uint64(0xFFFF)).astype(np.int64)
    if num_sequences > 1:
        sequence_indices = rows * num_sequences + (units >> np.uint64(48)).astype(np.int64)
        counts = np.bincount(sequence_indices, minlength=num_rows * num_sequences)
    return flat_starts, counts


def _take_in_order(sizes: np.ndarray, counts: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Goes through the units of each sequence in order and takes each that still fits.

    Args:
      sizes: [U] int64.  counts: [S] int64, units per sequence.  room: [S] int64, tokens that each sequence may take.

    Returns:
      The indices of the taken units, int64.
    """
    sequences = np.repeat(np.arange(len(counts)), counts)
    ranks = np.arange(len(sizes)) - np.repeat(np.cumsum(counts) - counts, counts)

    def take(left: np.ndarray) -> Iterator[np.ndarray]:
        nonlocal room
        while len(left := left[sizes[left] <= room[sequences[left]]]):  # a unit that does not fit now never will
            size, sequence = sizes[left], sequences[left]
            used = np.cumsum(size)
            first = np.flatnonzero(np.diff(sequence, prepend=-1))
            used -= np.repeat(used[first] - size[first], np.diff(first, append=len(left)))
            fits = used <= room[sequence]  # all units before the first that does not fit
            room = room - np.bincount(sequence[fits], size[fits], minlength=len(room)).astype(np.int64)
            yield left[fits]
            left = left[~fits]

    may_fill = ranks < np.repeat(room, counts)  # later units are considered only if there is room left
    taken = list(take(np.flatnonzero(may_fill)))
    taken += take(np.flatnonzero(np.repeat(room > 0, counts) & ~may_fill))
    return np.concatenate([np.zeros(0, np.int64), *taken])


def _expand(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns all positions of the units with these starts and sizes."""
    return np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())


def _replace(
    ids: np.ndarray,
    drawn: np.ndarray,
    keys: np.ndarray,
    masking: config.Masking,
    num_predictions: int,
    vocabulary: MaskVocabulary,
) -> Masked:
    """Masks the drawn positions (int64 in B x L, ascending) and records the original ids."""
    num_rows, num_positions = ids.shape
    rows, columns = np.divmod(drawn, num_positions)
    counts = np.bincount(rows, minlength=num_rows)
    slots = rows * num_predictions + np.arange(len(drawn)) - np.repeat(np.cumsum(counts) - counts, counts)
    labels = ids.ravel()[drawn]
    bits = random.bits_at(random.fold_in(keys, _REPLACEMENT)[rows], columns)
    chance = (bits & np.uint64(2**32 - 1)) * 2.0**-32
    any_token = vocabulary.replacements[random.below(bits, len(vocabulary.replacements))]
    masked_below, random_below = masking.mask_fraction, masking.mask_fraction + masking.random_fraction
    replaced = np.where(chance < masked_below, vocabulary.mask_id, np.where(chance < random_below, any_token, labels))
    input_ids = ids.copy()
    input_ids.ravel()[drawn] = replaced

    def slotted(values: np.ndarray | float, dtype: type) -> np.ndarray:
        filled = np.zeros(num_rows * num_predictions, dtype)
        filled[slots] = values
        return filled.reshape(num_rows, num_predictions)

    return Masked(input_ids, slotted(columns, np.int32), slotted(labels, np.int32), slotted(1, np.float32))
