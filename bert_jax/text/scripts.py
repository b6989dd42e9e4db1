"""Counts the text of a corpus by script while it is encoded: words, tokens, unknown tokens and characters.

    CHUNK/characters.npy             int64 [2, N], code points that occur, and how often

A sentence belongs to the script of most of its letters; of equally many, to the first by name.
"""

import functools
import pathlib
import unicodedata
from collections.abc import Iterable

import numpy as np

from bert_jax.json_files import read_json
from bert_jax.text.vocabulary import Tokenizer

CHARACTERS_FILE = 'characters.npy'
_NUM_CODES = 0x110000
OTHER = 'other'  # characters that are not letters, sentences without letters
_LATIN = 'Latin'
_NAMES = {'Cjk': 'Han', 'Ideographic': 'Han', 'Fullwidth': _LATIN, 'Halfwidth': 'Katakana', 'Mathematical': _LATIN}
_NO_SCRIPTS = ('Modifier', 'Feminine', 'Masculine', 'Micro', 'Combining')
_ASCII_LETTERS = np.array([*range(ord('A'), ord('Z') + 1), *range(ord('a'), ord('z') + 1)])
_IS_ASCII_LETTER = bytes(int(code in _ASCII_LETTERS) for code in range(256))
_COUNTS = ('sentences', 'words', 'tokens', 'unknown', 'letters')


@functools.cache
def script_of(character: str) -> str:
    """Returns the script of a letter, after the first word of its Unicode name; 'other' for other characters."""
    if not character.isalpha():
        return OTHER
    word = unicodedata.name(character, '').partition(' ')[0].partition('-')[0].title()
    return OTHER if not word or word in _NO_SCRIPTS else _NAMES.get(word, word)


class _Scripts:
    """Indices of scripts; those of code points are looked up in an array, which grows as they occur."""

    def __init__(self):
        self.names: list[str] = [OTHER]
        self._indices = np.full(_NUM_CODES, 255, np.uint8)

    def indices_of(self, codes: np.ndarray) -> np.ndarray:
        """Returns the index of the script of each code point, uint8."""
        indices = self._indices[codes]
        if (is_new := indices == 255).any():
            for code in np.unique(codes[is_new]).tolist():
                name = script_of(chr(code))
                if name not in self.names:
                    self.names.append(name)
                self._indices[code] = self.names.index(name)
            indices = self._indices[codes]
        return indices


class TextCounts:
    """The counts of one chunk.

    Attributes:
      by_script: {script: {sentences, words, tokens, unknown, letters}}; letters are counted for their own script, the
        others for that of the sentence.
    """

    def __init__(self):
        self.by_script: dict[str, dict[str, int]] = {}
        self._characters = np.zeros(_NUM_CODES, np.int64)
        self._scripts = _Scripts()

    def add(self, text: bytes, ends: np.ndarray, words: np.ndarray, tokens: np.ndarray, unknown: np.ndarray) -> None:
        """Adds sentences, each ending in a line feed.

        Args:
          ends: positions after these line feeds.
          words, tokens, unknown: of each sentence.
        """
        counts = np.stack([np.ones(len(ends), np.int64), words, tokens, unknown])
        data, starts = np.frombuffer(text, np.uint8), np.append(0, ends[:-1])
        self._add_ascii_characters(text)
        is_ascii = np.maximum.reduceat(data, starts) < 128
        has_letters = np.logical_or.reduceat(np.frombuffer(text.translate(_IS_ASCII_LETTER), bool), starts)
        self._add_counts(_LATIN, counts[:, is_ascii & has_letters])
        self._add_counts(OTHER, counts[:, is_ascii & ~has_letters])
        if not is_ascii.all():
            borders = zip(starts[~is_ascii].tolist(), ends[~is_ascii].tolist(), strict=True)
            others = b''.join([text[start:end] for start, end in borders])
            self._add_code_points(np.frombuffer(others.decode().encode('utf-32-le'), np.uint32), counts[:, ~is_ascii])

    def _add_ascii_characters(self, text: bytes) -> None:
        pairs = np.frombuffer(text, np.uint16, len(text) // 2)  # twice as fast as counting bytes
        occurring = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
        occurring = (occurring.sum(axis=0) + occurring.sum(axis=1))[:128]
        if len(text) % 2 and text[-1] < 128:
            occurring[text[-1]] += 1
        occurring[ord('\n')] = 0
        self._characters[:128] += occurring
        self._of(_LATIN)['letters'] += int(occurring[_ASCII_LETTERS].sum())

    def _add_code_points(self, codes: np.ndarray, counts: np.ndarray) -> None:
        """Adds sentences with other characters than ASCII, given as code points; their ASCII is counted already."""
        occurring = np.bincount(codes)
        occurring[:128] = 0
        self._characters[: len(occurring)] += occurring
        starts = np.append(0, np.flatnonzero(codes == ord('\n'))[:-1] + 1)
        indices = self._scripts.indices_of(codes)
        names = sorted({self._scripts.names[index] for index in np.flatnonzero(np.bincount(indices))} - {OTHER})
        letters = np.zeros((len(names) + 1, len(starts)), np.int64)  # the last row is of sentences without letters
        for row, name in enumerate(names):
            letters[row] = np.add.reduceat(indices == self._scripts.names.index(name), starts, dtype=np.int64)
        main = np.where(letters.any(axis=0), np.argmax(letters, axis=0), len(names))
        for row, name in enumerate([*names, OTHER]):
            self._add_counts(name, counts[:, main == row])
        for code in np.flatnonzero(occurring).tolist():
            if (name := script_of(chr(code))) != OTHER:
                self._of(name)['letters'] += int(occurring[code])

    def _add_counts(self, script: str, counts: np.ndarray) -> None:
        of_script = self._of(script)
        for kind, count in zip(_COUNTS, counts.sum(axis=1).tolist(), strict=False):
            of_script[kind] += count

    def _of(self, script: str) -> dict[str, int]:
        return self.by_script.setdefault(script, dict.fromkeys(_COUNTS, 0))

    def save(self, directory: pathlib.Path) -> None:
        """Writes how often each character occurs."""
        occurring = np.flatnonzero(self._characters)
        np.save(directory / CHARACTERS_FILE, np.stack([occurring, self._characters[occurring]]))


def total_counts(chunks: Iterable[pathlib.Path], tokenizer: Tokenizer) -> dict[str, dict[str, int]]:
    """Returns the counts of all chunks by script, most letters first, and what the tokenizer does not know.

    Returns:
      {script: {sentences, words, tokens, unknown, letters, characters, unknown_characters, unknown_occurrences}}:
      different characters, those of them that are unknown to the tokenizer, and how often these occur.
    """
    totals: dict[str, dict[str, int]] = {}
    occurrences = np.zeros(_NUM_CODES, np.int64)
    for chunk in chunks:
        for name, counts in read_json(chunk / 'chunk.json')['scripts'].items():
            known = totals.setdefault(name, dict.fromkeys(_COUNTS, 0))
            for kind, count in counts.items():
                known[kind] += count
        codes, counts = np.load(chunk / CHARACTERS_FILE)
        occurrences[codes] += counts
    characters = [chr(code) for code in np.flatnonzero(occurrences) if not chr(code).isspace()]
    for name in {*map(script_of, characters)} - totals.keys():
        totals[name] = dict.fromkeys(_COUNTS, 0)
    for counts in totals.values():
        counts |= dict.fromkeys(('characters', 'unknown_characters', 'unknown_occurrences'), 0)
    for character, ids in zip(characters, tokenizer.encode_batch(characters), strict=True):
        counts = totals[script_of(character)]
        counts['characters'] += 1
        if tokenizer.unk_id in ids:
            counts['unknown_characters'] += 1
            counts['unknown_occurrences'] += int(occurrences[ord(character)])
    used = {name: counts for name, counts in totals.items() if any(counts.values())}
    return dict(sorted(used.items(), key=lambda item: (-item[1]['letters'], item[0])))
