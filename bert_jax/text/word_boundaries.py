"""Where words begin, found from token ids alone: `B` rows, `L` positions, `V` vocabulary, `C` classes of text.

Whole-word masking sees rows of ids. Whether a pre-tokenizer splits between two tokens depends on the text around that
point, so the pre-tokenizer itself is asked, once: first, which tokens it treats alike by their last and first
characters (their classes), then whether it splits between a pair of classes. Tokens that are parts of one character
count as one.

The last and first three characters of a token decide. The result is that of the pre-tokenizer (`word_ids` of the
library) except where a split depends on more text:

- a contraction ('s) that the vocabulary has no token for;
- a run of white space in several tokens before a word;
- digits in groups of three, if the vocabulary lacks tokens of three digits;
- a mark that belongs to the letters after it unless a blank precedes it (Llama 3), if the vocabulary lacks a token of
  that blank and mark;
- two lines that meet in a row without a blank, which count as one text.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

_NUM_CHARACTERS = 3  # of a token that decide at each end
_CONTEXTS = ('a', 'A', 's', '1', '22', ' b', '  ', '\t', '.', "'", "'s", '!?', '\u4e16', '\n', '▁c', 'é', '☃')
PreTokenize = Callable[[str], list[tuple[str, tuple[int, int]]]]  # text -> (piece, its characters [start, end))


class WordBoundaries(Protocol):
    """The word boundaries of a tokenizer."""

    def continues(self, ids: np.ndarray) -> np.ndarray:
        """Returns bool [B, L], whether each token continues the word of the one before it.  Args: ids [B, L]."""


class MarkedBoundaries:
    """Boundaries of a vocabulary whose tokens show where words begin and end."""

    def __init__(self, begins: np.ndarray, ends: np.ndarray):
        """Args: begins and ends, bool [V], whether a token begins a word, or ends one."""
        self._begins, self._ends = begins, ends

    def continues(self, ids: np.ndarray) -> np.ndarray:
        found = np.zeros(ids.shape, bool)
        found[:, 1:] = ~self._ends[ids[:, :-1]] & ~self._begins[ids[:, 1:]]
        return found


class PreTokenizerBoundaries:
    """The boundaries that a pre-tokenizer sets between tokens."""

    def __init__(self, contents: list[bytes], is_tail: np.ndarray, is_alone: np.ndarray, pre_tokenize: PreTokenize):
        """Asks the pre-tokenizer.

        Args:
          contents: the text of each of V tokens as the pre-tokenizer gets it, in UTF-8; may end within a character.
          is_tail: bool [V], tokens that begin with bytes of a character that the token before them began.
          is_alone: bool [V], tokens that are never part of a word, such as special ones.
        """
        self._contents, self._is_tail, self._pre_tokenize = contents, is_tail, pre_tokenize
        self._ends, self._beginnings = _Classes(self._shape_of_end), _Classes(self._shape_of_beginning)
        classes = [self._classes(content) for content in contents]
        self._last = np.array([end for end, _ in classes], np.int32)
        self._first = np.array([beginning for _, beginning in classes], np.int32)
        self._last[is_alone], self._first[is_alone] = _ALONE, _ALONE
        self._joins = np.zeros((0, 0), bool)
        self._of_characters: dict[bytes, tuple[int, int]] = {}  # classes of tokens that form a character together

    def continues(self, ids: np.ndarray) -> np.ndarray:
        last, first, is_tail = self._last[ids], self._first[ids], self._is_tail[ids]
        if is_tail.any():
            self._join_characters(ids, last, first)
        joins = self._joins_of_classes()
        found = is_tail
        found[:, 1:] |= joins[last[:, :-1], first[:, 1:]]
        found[:, 0] = False
        return found

    def _join_characters(self, ids: np.ndarray, last: np.ndarray, first: np.ndarray) -> None:
        """Gives tokens that form a character together the classes of their whole text."""
        is_tail = self._is_tail[ids]
        is_tail[:, 0] = False
        starts = np.flatnonzero(~is_tail.ravel())
        stops = np.append(starts[1:], ids.size)
        flat_ids, flat_last, flat_first = ids.ravel(), last.ravel(), first.ravel()  # the last two are views
        for start, stop in zip(*(bounds[stops - starts > 1].tolist() for bounds in (starts, stops)), strict=True):
            if flat_first[start] == _ALONE:
                continue
            content = b''.join([self._contents[index] for index in flat_ids[start:stop]])
            if (classes := self._of_characters.get(content)) is None:
                classes = self._of_characters[content] = self._classes(content)
            flat_last[stop - 1], flat_first[start] = classes

    def _classes(self, content: bytes) -> tuple[int, int]:
        """Returns the classes of the end and of the beginning of a text."""
        text = content.decode(errors='replace')
        return self._ends.find(text[-_NUM_CHARACTERS:]), self._beginnings.find(text[:_NUM_CHARACTERS])

    def _joins_of_classes(self) -> np.ndarray:
        """Returns bool [C, C], whether an end and a beginning belong to one word."""
        ends, beginnings = self._ends.examples, self._beginnings.examples
        if self._joins.shape != (len(ends), len(beginnings)):
            rows = [[bool(a and b) and len(a) not in self._cuts(a + b) for b in beginnings] for a in ends]
            self._joins = np.array(rows)
        return self._joins

    def _shape_of_end(self, end: str) -> tuple[int, ...]:
        return self._cuts('\n'.join(end + context for context in _CONTEXTS))

    def _shape_of_beginning(self, beginning: str) -> tuple[int, ...]:
        return self._cuts('\n'.join(context + beginning for context in _CONTEXTS))

    def _cuts(self, text: str) -> tuple[int, ...]:
        return tuple(start for _, (start, _) in self._pre_tokenize(text))


_ALONE = 0  # the class of tokens that are no part of a word; its example is ''


class _Classes:
    """Groups texts of equal length and shape; class 0 is that of ''."""

    def __init__(self, shape_of: Callable[[str], tuple[int, ...]]):
        self._shape_of = shape_of
        self._by_shape: dict[tuple[int, ...], int] = {}
        self._by_text = {'': _ALONE}
        self.examples = ['']

    def find(self, text: str) -> int:
        """Returns the class of a text; a text of a new shape is its first example."""
        if (index := self._by_text.get(text)) is None:
            index = self._by_shape.setdefault((len(text), *self._shape_of(text)), len(self.examples))
            self._by_text[text] = index
            if index == len(self.examples):
                self.examples.append(text)
        return index


def bytes_of_token(token: str) -> bytes:
    """Returns the bytes of a token of the byte-level alphabet, in which every byte is one printable character."""
    return bytes([_BYTE_OF.get(character, ord('?')) for character in token])


def is_inside_character(content: bytes) -> bool:
    """Whether text in UTF-8 begins with a byte that continues a character."""
    return bool(content) and 0x80 <= content[0] < 0xC0


def _byte_level_alphabet() -> dict[str, int]:
    """Returns the byte of each character of the byte-level alphabet of GPT-2.

    Printable bytes of Latin-1 are themselves; the others follow from U+0100 up.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()
