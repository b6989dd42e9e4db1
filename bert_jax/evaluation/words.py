"""Masked words of raw text, in nats per character: a measure that runs of different tokenizers share.

A loss is of one token, and a vocabulary decides what a token is. Here the words are chosen by their text alone
(`sample.py`), all pieces of a word are masked, and what the pieces cost together is divided by the characters.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bert_jax.evaluation.sample import Window
from bert_jax.files import json_digest
from bert_jax.pretrained.load import Pretrained
from bert_jax.text.tokenizer import Tokenizer


class MaskedWindow(NamedTuple):
    """A window as the ids of a tokenizer.

    ids, is_masked: of each piece.
    characters: that the masked pieces stand for, without blanks.  unknown: those of them that became [UNK].
    """

    ids: list[int]
    is_masked: np.ndarray
    characters: int
    unknown: int


def measure(pretrained: Pretrained, windows: list[Window]) -> dict[str, float | int | str | None]:
    """How well the chosen words of the windows are guessed.

    [UNK] is charged with its loss and, for every character that it hides, the logarithm of the number of different
    characters in the sample: what spelling it costs without knowing anything.

    Returns:
      masked_word_nats_per_character (None if there are no words), and to read it by
      unigram_nats_per_character, of knowing only how frequent each character is;
      masked_words, unknown_characters (share of the characters of the words that became [UNK], None for no words),
      windows, windows_cut (in two or more rows, as they have more pieces than the model was trained on), and
      words_sample, equal where figures may be compared: a hash of the words and of the case that the tokenizer keeps.
    """
    tokenizer, totals, rows, places, num_cut = pretrained.tokenizer, Counter(), [], [], 0
    for window, masked in zip(windows, mask_words(tokenizer, windows), strict=True):
        totals.update(words=len(window.words), characters=masked.characters, unknown=masked.unknown)
        ranges = list(_cuts(masked.is_masked, pretrained.max_length - 2))
        num_cut += len(ranges) > 1
        for start, stop in ranges:
            where = 1 + np.flatnonzero(masked.is_masked[start:stop])
            if len(where):
                rows.append([tokenizer.cls_id, *masked.ids[start:stop], tokenizer.sep_id])
                places.append(where.tolist())
    alphabet = Counter(character for window in windows for character in _letters(window.text, tokenizer))
    spelled = Counter(
        character
        for window in windows
        for start, stop in window.words
        for character in _letters(window.text[start:stop], tokenizer)
    )
    nats = sum(float(losses.sum(dtype=np.float64)) for losses in pretrained.masked_losses(rows, places))
    nats += totals['unknown'] * math.log(max(len(alphabet), 1))
    unigram = sum(count * math.log(alphabet.total() / alphabet[character]) for character, count in spelled.items())
    num_characters = totals['characters']
    return {
        'masked_word_nats_per_character': nats / num_characters if num_characters else None,
        'unigram_nats_per_character': unigram / spelled.total() if num_characters else None,
        'masked_words': totals['words'],
        'unknown_characters': totals['unknown'] / num_characters if num_characters else None,
        'windows': len(windows),
        'windows_cut': num_cut,
        'words_sample': _digest(windows, tokenizer),
    }


def mask_words(tokenizer: Tokenizer, windows: list[Window]) -> Iterator[MaskedWindow]:
    """Each window with all pieces masked that hold a character of one of its words.

    A piece that reaches beyond its word (of ideographs: pieces do not end where the word does) is masked as a whole,
    and all of its characters count.
    """
    encoded = tokenizer.encode_with_offsets([window.text for window in windows])
    for window, (ids, offsets) in zip(windows, encoded, strict=True):
        is_blank = np.array([character.isspace() for character in window.text])
        is_counted = np.zeros(len(window.text), bool)
        for start, stop in window.words:
            is_counted[start:stop] = True
        before_a_word = is_blank & np.append(is_counted[1:], False)
        is_chosen = is_counted | before_a_word  # '▁' may be a piece of its own
        is_masked = np.array([is_chosen[start : max(stop, start + 1)].any() for start, stop in offsets], bool)
        is_unknown = np.zeros_like(is_counted)
        for index, (start, stop) in zip(np.array(ids)[is_masked], np.array(offsets)[is_masked], strict=True):
            is_counted[start:stop] = True
            is_unknown[start:stop] |= index == tokenizer.unk_id
        is_counted &= ~is_blank
        yield MaskedWindow(ids, is_masked, int(is_counted.sum()), int((is_counted & is_unknown).sum()))


def _cuts(is_masked: np.ndarray, room: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of at most `room` pieces, a run of masked ones in one range if it fits."""
    start = 0
    while start < len(is_masked):
        stop = min(start + room, len(is_masked))
        if stop < len(is_masked):
            whole = stop
            while whole > start and is_masked[whole - 1] and is_masked[whole]:
                whole -= 1
            stop = whole if whole > start else stop
        yield start, stop
        start = stop


def _letters(text: str, tokenizer: Tokenizer) -> Iterator[str]:
    """The characters of a text without blanks, in the case that the tokenizer keeps."""
    return (character for character in (text.lower() if tokenizer.lowercase else text) if not character.isspace())


def _digest(windows: list[Window], tokenizer: Tokenizer) -> str:
    kept = [
        bool(tokenizer.lowercase),
        bool(tokenizer.strip_accents),
        [[window.text, window.words] for window in windows],
    ]
    return json_digest(kept)
