"""Masked words of raw text, in nats per character: a metric that is comparable across tokenizers.

MLM loss is per token, and the vocabulary determines what a token is. Here words are selected by their text alone
(`sample.py`), all tokens of a word are masked at once, and their summed loss is divided by the number of characters.
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
    """A window encoded by a tokenizer.

    Attributes:
      ids, is_masked: one value per token.
      num_characters: characters in the masked tokens, without white space.
      num_unknown: those among them that became [UNK].
    """

    ids: list[int]
    is_masked: np.ndarray
    num_characters: int
    num_unknown: int


def measure(pretrained: Pretrained, windows: list[Window]) -> dict[str, float | int | str | None]:
    """Measures how well the selected words of the windows are predicted.

    A word that became [UNK] is charged the loss of [UNK] plus, for each of its characters, the logarithm of the number
    of distinct characters in the sample, as if it were spelled uniformly at random.

    Returns:
      masked_word_nats_per_character: None without words.
      unigram_nats_per_character: its baseline, which knows only the frequency of each character.
      masked_words: number of words.
      unknown_characters: fraction of the characters of the words that became [UNK]; None without words.
      windows: number of windows.
      windows_cut: how many of them were split into two or more rows, as they have more tokens than the model was
        trained on.
      words_sample: a hash of the words, and of whether the tokenizer keeps case and accents. Results are comparable if
        it is equal.
    """
    tokenizer, rows, positions = pretrained.tokenizer, [], []
    masked_windows = list(mask_words(tokenizer, windows))
    num_split = 0
    for masked in masked_windows:
        ranges = list(_split_ranges(masked.is_masked, pretrained.max_length - 2))
        num_split += len(ranges) > 1
        for start, stop in ranges:
            masked_positions = 1 + np.flatnonzero(masked.is_masked[start:stop])  # [CLS] comes first
            if len(masked_positions):
                rows.append([tokenizer.cls_id, *masked.ids[start:stop], tokenizer.sep_id])
                positions.append(masked_positions.tolist())
    num_characters = sum(masked.num_characters for masked in masked_windows)
    num_unknown = sum(masked.num_unknown for masked in masked_windows)
    in_text = Counter(character for window in windows for character in characters(window.text, tokenizer))
    in_words = Counter(
        character
        for window in windows
        for start, stop in window.words
        for character in characters(window.text[start:stop], tokenizer)
    )
    nats = sum(float(losses.sum(dtype=np.float64)) for losses in pretrained.masked_losses(rows, positions))
    nats += num_unknown * math.log(max(len(in_text), 1))
    unigram_nats = sum(count * math.log(in_text.total() / in_text[character]) for character, count in in_words.items())
    return {
        'masked_word_nats_per_character': nats / num_characters if num_characters else None,
        'unigram_nats_per_character': unigram_nats / in_words.total() if num_characters else None,
        'masked_words': sum(len(window.words) for window in windows),
        'unknown_characters': num_unknown / num_characters if num_characters else None,
        'windows': len(windows),
        'windows_cut': num_split,
        'words_sample': _hash_sample(windows, tokenizer),
    }


def mask_words(tokenizer: Tokenizer, windows: list[Window]) -> Iterator[MaskedWindow]:
    """Encodes each window and masks every token that contains a character of one of its words.

    A token that extends beyond its word, as tokens of ideographs may, is masked as a whole, and all of its characters
    count.
    """
    encoded = tokenizer.encode_with_offsets([window.text for window in windows])
    for window, (ids, offsets) in zip(windows, encoded, strict=True):
        is_space = np.array([character.isspace() for character in window.text])
        is_counted = np.zeros(len(window.text), bool)
        for start, stop in window.words:
            is_counted[start:stop] = True
        precedes_word = is_space & np.append(is_counted[1:], False)
        is_selected = is_counted | precedes_word  # '▁' may be a separate token
        is_masked = np.array([is_selected[start : max(stop, start + 1)].any() for start, stop in offsets], bool)
        is_unknown = np.zeros_like(is_counted)
        for token_id, (start, stop) in zip(np.array(ids)[is_masked], np.array(offsets)[is_masked], strict=True):
            is_counted[start:stop] = True
            is_unknown[start:stop] |= token_id == tokenizer.unk_id
        is_counted &= ~is_space
        yield MaskedWindow(ids, is_masked, int(is_counted.sum()), int((is_counted & is_unknown).sum()))


def _split_ranges(is_masked: np.ndarray, max_tokens: int) -> Iterator[tuple[int, int]]:
    """Yields consecutive ranges of at most `max_tokens` tokens; consecutive masked tokens share a range if they fit."""
    start = 0
    while start < len(is_masked):
        stop = min(start + max_tokens, len(is_masked))
        if stop < len(is_masked):
            first_masked = stop
            while first_masked > start and is_masked[first_masked - 1] and is_masked[first_masked]:
                first_masked -= 1
            stop = first_masked if first_masked > start else stop
        yield start, stop
        start = stop


def characters(text: str, tokenizer: Tokenizer) -> Iterator[str]:
    """Returns the characters of a text without white space, in lower case if the tokenizer lower-cases."""
    return (character for character in (text.lower() if tokenizer.lowercase else text) if not character.isspace())


def _hash_sample(windows: list[Window], tokenizer: Tokenizer) -> str:
    content = [
        bool(tokenizer.lowercase),
        bool(tokenizer.strip_accents),
        [[window.text, window.words] for window in windows],
    ]
    return json_digest(content)
