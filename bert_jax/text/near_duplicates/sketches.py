"""MinHash sketches of texts. `N` texts, `W` words, `K` = 128 values.

Words are lower-cased runs of letters and digits. In scripts without blanks between words, every character is a word.
"""

import hashlib
import importlib
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow

from bert_jax.text.near_duplicates.settings import NUM_VALUES, WORDS_PER_SHINGLE, Bands

_SEED = 1
_CHARACTERS_AT_ONCE = 1 << 20
_TEXTS_AT_ONCE = 1 << 11
_WORDS_ONLY = bytes(b if b == 0 or b >= 128 else ord(chr(b).lower() if chr(b).isalnum() else ' ') for b in range(256))
_PUNCTUATION = re.compile(
    '[\x80-\xa9\xab-\xb1\xb4\xb6-\xb8\xbb\xbf\u2000-\u206f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20]'
)
_CHARACTER_WORDS = re.compile(  # Thai, Lao, Burmese, Khmer, kana, Chinese characters
    '[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]'
)
_ODD = np.uint64(0x9E3779B97F4A7C15)
_BYTES = np.array(  # a random number for each byte
    [int.from_bytes(hashlib.blake2b(bytes([i]), digest_size=8).digest(), 'big') for i in range(256)], np.uint64
)
_FACTORS = _BYTES[:16] | np.uint64(1)  # of the words of a shingle and of the values of a band


class Sketches(NamedTuple):
    """Sketches of some of the texts of a list.

    Attributes:
      index: int64 [N], of each text in the list.
      num_words: int64 [N].
      shingles: uint32 [N, K], of the set of its runs of five words.
      words: uint32 [N, K], of the multiset of its words.
    """

    index: np.ndarray
    num_words: np.ndarray
    shingles: np.ndarray
    words: np.ndarray


def sketch(texts: Sequence[str], min_words: int) -> Sketches:
    """Returns the sketches of the texts that have at least `min_words` words.

    The share of equal values in two sketches estimates the Jaccard similarity of what they were made of, with a
    standard deviation of at most 0.044. The element-wise minimum of two sketches is the sketch of the union.
    """
    parts, start = [], 0
    for batch in _batches(texts):
        hashes, words, counts = _index_words(batch)
        index = np.flatnonzero(counts >= min_words)
        words, num_words = words[np.repeat(counts >= min_words, counts)], counts[index]
        shingles = _min_hash(*_shingles(hashes[words], num_words))
        parts.append(
            Sketches(start + index, num_words, shingles, _min_hash(_occurrences(hashes, words, num_words), num_words))
        )
        start += len(batch)
    return Sketches(*map(np.concatenate, zip(*parts, strict=True)))


def band_keys(shingles: np.ndarray, bands: Bands) -> np.ndarray:
    """Returns the hash of each band of each sketch, uint64 [bands, N]."""
    keys = np.empty((bands.num_bands, len(shingles)), np.uint64)
    offsets = np.arange(bands.num_bands, dtype=np.uint64) * _ODD
    for band in range(bands.num_bands):
        values = shingles[:, band * bands.num_rows : (band + 1) * bands.num_rows].astype(np.uint64)
        keys[band] = _mix((values * _FACTORS[: bands.num_rows]).sum(axis=1) + offsets[band])
    return keys


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Divides texts into batches of bounded size; yields at least one."""
    start = size = 0
    for stop, text in enumerate(texts):
        if stop > start and (size + len(text) > _CHARACTERS_AT_ONCE or stop - start == _TEXTS_AT_ONCE):
            yield texts[start:stop]
            start, size = stop, 0
        size += len(text)
    yield texts[start:]


def _index_words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (hashes of distinct words; index in them of each word, int32 [W]; number of words of each text, [N])."""
    encoded = [_with_blanks(text).encode() for text in texts]
    characters = np.frombuffer(b'\0'.join([*encoded, b'']).translate(_WORDS_ONLY), np.uint8)  # no text contains NUL
    in_word = characters > ord(' ')
    is_border = in_word[1:] != in_word[:-1]
    borders = np.flatnonzero(is_border) + 1
    if in_word[:1].any():
        borders = np.append(0, borders)
    starts, stops = borders[::2], borders[1::2]
    counts = np.bincount(np.searchsorted(np.flatnonzero(characters == 0), starts), minlength=len(texts))
    offsets = np.append(0, np.cumsum(stops - starts)).astype(np.int32)
    buffers = [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(characters[in_word])]
    words = pyarrow.Array.from_buffers(pyarrow.binary(), len(starts), buffers).dictionary_encode()
    return _hash_words(words.dictionary), words.indices.to_numpy(), counts


def _hash_words(words: pyarrow.BinaryArray) -> np.ndarray:
    """Returns a hash of the bytes of each word, uint64; no word is empty."""
    if not len(words):
        return np.empty(0, np.uint64)
    _, offsets, characters = words.buffers()
    offsets = np.frombuffer(offsets, np.int32)[: len(words) + 1]
    lengths = np.diff(offsets)
    powers = np.multiply.accumulate(np.full(lengths.max(), _ODD))
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    terms = _BYTES[np.frombuffer(characters, np.uint8)[: offsets[-1]]] * powers[position]
    return _mix(np.add.reduceat(terms, offsets[:-1]))


def _with_blanks(text: str) -> str:
    """Lower-cases a text outside ASCII, and puts blanks between its words."""
    return text if text.isascii() else _CHARACTER_WORDS.sub(r' \g<0> ', _PUNCTUATION.sub(' ', text.lower()))


def _shingles(words: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (hashes of the runs of five words of each text, their number); a shorter text is one run."""
    text = np.repeat(np.arange(len(counts)), counts)
    hashes = words * _FACTORS[0]
    for i in range(1, WORDS_PER_SHINGLE):
        hashes[:-i] += np.where(text[i:] == text[:-i], words[i:], np.uint64(0)) * _FACTORS[i]
    position = np.arange(len(words)) - np.repeat(np.cumsum(counts) - counts, counts)
    begins_run = position <= np.repeat(np.maximum(counts - WORDS_PER_SHINGLE, 0), counts)
    return _mix(hashes[begins_run]), np.minimum(counts, np.maximum(counts - WORDS_PER_SHINGLE + 1, 1))


def _occurrences(hashes: np.ndarray, words: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns hashes, uint64 [W], that differ between the occurrences of a word in a text, but not between texts."""
    grouped = np.sort(np.repeat(np.arange(len(counts)), counts) << 32 | words)  # text after text
    is_first = np.append(True, grouped[1:] != grouped[:-1])[: len(words)]
    starts = np.flatnonzero(is_first)
    occurrence = np.arange(len(words)) - np.repeat(starts, np.diff(np.append(starts, len(words))))
    return _mix(hashes[grouped & 0xFFFFFFFF] + occurrence.astype(np.uint64) * _ODD)


def _mix(hashes: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele et al. 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def _min_hash(elements: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the sketches, uint32 [N, K], of sets given as concatenated hashes and their number in each set."""
    rensa: Any = importlib.import_module('rensa')  # has no type hints

    ends = np.append(0, np.cumsum(counts)).astype(np.uint64)
    rows = rensa.RMinHash.digest_matrix_from_flat_token_hashes(elements, ends, NUM_VALUES, _SEED).to_rows()
    values = np.fromiter(itertools.chain.from_iterable(rows), np.uint32, len(counts) * NUM_VALUES)
    return values.reshape(-1, NUM_VALUES)
