"""Encodes a chunk: writes its token ids and a table of its documents to disk. Worker processes do this work.

CHUNK/tokens.bin       uint16 or uint32, the ids of all documents
CHUNK/sentences.bin    uint32, number of tokens of each sentence
CHUNK/lines.bin        LINE records, one per line of text
CHUNK/documents.bin    DOCUMENT records
CHUNK/characters.npy   int64 [2, N], see `scripts.py`
CHUNK/documents.*.bin  sketches, and lines.*.bin, see `near_duplicates/files.py`
CHUNK/chunk.json       counts and checksums; its presence marks the chunk as finished
"""

import contextlib
import functools
import gc
import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow

from bert_jax.files import new_directory
from bert_jax.json_files import read_json
from bert_jax.text.blanks import BlankRule
from bert_jax.text.checksums import compute_checksums
from bert_jax.text.documents import Document
from bert_jax.text.near_duplicates.files import ChunkSketcher
from bert_jax.text.near_duplicates.settings import NearDuplicates
from bert_jax.text.scripts import TextCounts
from bert_jax.text.sentences import split_lines_into_sentences
from bert_jax.text.stats import Stats
from bert_jax.text.tokenizer import Tokenizer
from bert_jax.text.vocabulary import flatten

# `digest` identifies equal texts; `uniform` is a hash of the group, or of the text without one, that decides the split.
# Any: ty takes the types for float64.
DOCUMENT: Any = np.dtype([('digest', 'V16'), ('uniform', 'u8'), ('lines', 'u4'), ('sentences', 'u4'), ('tokens', 'u8')])
LINE: Any = np.dtype([('digest', 'u8'), ('sentences', 'u4'), ('words', 'u4')])
_CHARACTERS_AT_ONCE = 1 << 22  # of a batch, approximately
_CHARACTERS_PER_LINE = 32  # added for the memory of its record
_CHARACTERS_PER_DOCUMENT = 128  # likewise
_MAX_BLOCK = 1 << 20  # characters of a document that are encoded together, up to the end of a line
_MAX_BYTES_AT_ONCE = 1 << 22  # of text for one call of the tokenizer
_PUNCTUATION_OR_TEXT = re.compile(r'[!-/:-@\[-`{-~]|[^!-/:-@\[-`{-~]+')  # ASCII punctuation, or text between
_STROKE = '\u0338'  # '≠' is '=' and this, the only mark that NFC composes with ASCII punctuation
_MAX_CACHED_WORDS = 1 << 19
_MAX_CACHED_LENGTH = 50  # characters of a word


class Encoder:
    """A memoizing encoder: looks up the ids of each word, and calls the tokenizer for unseen words only.

    Most tokenizers encode each word independently of its neighbours (`Tokenizer.blank_rule`), so the ids of a text are
    the concatenated ids of its words. Looking words up is several times as fast as encoding text.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        self._words: dict[str, bytes] = {}  # ids of each cached word

    def encode(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Encodes sentences, each ending in a line feed; returns (concatenated ids, number of ids of each sentence)."""
        whole_texts = self.tokenizer.whole_texts
        if self.tokenizer.blank_rule is not None and whole_texts is None:
            return self._encode_by_words(text)
        sentences = text.decode().split('\n')[:-1]
        if whole_texts is None:
            return self._encode_whole(sentences)
        is_whole = np.array([whole_texts.search(sentence) is not None for sentence in sentences])
        sizes, parts = np.empty(len(sentences), np.int64), []
        for selected, encode in ((is_whole, self._encode_whole), (~is_whole, self._encode_by_words)):
            if selected.any():
                part, sizes[selected] = encode(list(itertools.compress(sentences, selected)))
                parts.append((selected, part))
        ids = np.empty(sizes.sum(), self.dtype)
        for selected, part in parts:
            ids[np.repeat(selected, sizes)] = part
        return ids, sizes

    def _encode_whole(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, sizes = flatten(self.tokenizer.encode_batch(sentences))
        return ids.astype(self.dtype), sizes

    def _encode_by_words(self, text: bytes | list[str]) -> tuple[np.ndarray, np.ndarray]:
        text = text if isinstance(text, bytes) else '\n'.join([*text, '']).encode()
        distinct, word_indices, first_words = _index_words(
            text, drops_blanks=self.tokenizer.blank_rule is BlankRule.DROPS
        )
        encoded = list(map(self._words.get, distinct))
        if unseen := [index for index, ids in enumerate(encoded) if ids is None]:
            self._encode_words([distinct[index] for index in unseen])
        for index in unseen:
            encoded[index] = self._words[distinct[index]]
        for index in unseen:
            if len(word := distinct[index]) > _MAX_CACHED_LENGTH:
                self._words.pop(word, None)  # a word may be there twice: at the end of a sentence, and elsewhere
        if len(self._words) > _MAX_CACHED_WORDS:
            self._words.clear()
        words = pyarrow.array(encoded, pyarrow.large_binary()).take(word_indices)
        _, ends, ids = words.buffers()
        ends = np.frombuffer(ends, np.int64)[: len(words) + 1] // self.dtype.itemsize
        return np.frombuffer(ids, self.dtype)[: ends[-1]], np.diff(ends[np.append(first_words, len(words))])

    def _encode_words(self, words: list[str]) -> None:
        """Adds words to the cache. If the tokenizer splits at punctuation, `word` and `word,` share an entry."""
        if not self.tokenizer.splits_at_punctuation:
            self._words.update(self._encode_to_bytes(words))
            return
        splits = [[word] if _STROKE in word else _PUNCTUATION_OR_TEXT.findall(word) for word in words]
        unseen = list(set(itertools.chain.from_iterable(splits)).difference(self._words))
        new = dict(self._encode_to_bytes(unseen))
        self._words.update((part, ids) for part, ids in new.items() if len(part) <= _MAX_CACHED_LENGTH)
        for word, parts in zip(words, splits, strict=True):
            self._words[word] = b''.join([new[part] if part in new else self._words[part] for part in parts])

    def _encode_to_bytes(self, words: list[str]) -> Iterator[tuple[str, bytes]]:
        """Yields (word, the bytes of its ids)."""
        for group, ids, sizes in self.tokenizer.encode_words(words):
            packed, ends = ids.astype(self.dtype).tobytes(), (np.cumsum(sizes) * self.dtype.itemsize).tolist()
            yield from zip(group, [packed[start:end] for start, end in itertools.pairwise([0, *ends])], strict=True)


def _index_words(text: bytes, *, drops_blanks: bool) -> tuple[list[str], pyarrow.Array, np.ndarray]:
    """Splits sentences, each ending in a line feed, into words, which may be empty.

    Returns:
      (distinct words, index in them of each word of the text, index of the first word of each sentence).
    """
    characters = np.frombuffer(text, np.uint8).copy()  # few enough for int32 offsets, see `_bounded_texts`
    ends_sentence = characters == ord('\n')
    if drops_blanks:
        last = np.flatnonzero((characters == ord(' ')) | ends_sentence)  # of each word, the blank after it
        characters[last] = ord(' ')
    else:
        blanks = np.flatnonzero(characters == ord(' '))
        last = np.sort(np.append(blanks[~_follows_white_space(characters, blanks)] - 1, np.flatnonzero(ends_sentence)))
    first_words = np.append(0, np.flatnonzero(ends_sentence[last])[:-1] + 1)
    offsets = pyarrow.py_buffer(np.append(0, last + 1).astype(np.int32))
    words = pyarrow.StringArray.from_buffers(len(last), offsets, pyarrow.py_buffer(characters))
    encoded_words = words.dictionary_encode()
    distinct = encoded_words.dictionary.to_pylist()
    if drops_blanks:
        distinct = [word[:-1] for word in distinct]
    else:
        distinct = [word.removesuffix('\n') for word in distinct]
    return distinct, encoded_words.indices, first_words


def _follows_white_space(text: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Whether the character before each position is white space, or may be: its last two bytes are those of some."""
    before = text[positions - 1]  # of position 0 it is the line feed at the end
    return (before <= ord(' ')) | _ends_of_white_space()[text[positions - 2].astype(np.int64) << 8 | before]


@functools.cache
def _ends_of_white_space() -> np.ndarray:
    """Returns bool [2**16], true for the last two bytes of white space outside ASCII, in UTF-8."""
    ends = [chr(code).encode()[-2:] for code in range(0x80, 0x10000) if chr(code).isspace()]
    found = np.zeros(1 << 16, bool)
    found[[int.from_bytes(end, 'big') for end in (*ends, '\u180e'.encode()[-2:])]] = True
    return found


def write_chunk(
    documents: Iterable[Document],
    stats: Stats,
    encoder: Encoder,
    directory: pathlib.Path,
    *,
    hash_lines: bool,
    near_duplicates: NearDuplicates | None = None,
) -> None:
    """Writes an encoded chunk to its directory, atomically; does nothing if the directory exists.

    Args:
      stats: filled while `documents` are read, complete after the last one.
      hash_lines: False leaves the digests of lines at 0.
      near_duplicates: the search for near copies that the sketches are for; None writes no sketches.

    Raises:
      BadInput: see `read_chunk`.
      OSError: if the chunk cannot be written.
    """
    if directory.is_dir():
        return
    # Not in the directory of the chunks, which may be many: the search for leftovers lists the whole directory.
    with new_directory(directory, temporary_in=directory.parents[1]) as temporary:
        num_documents, open_document, counts = 0, _OpenDocument(), TextCounts()
        sketcher = None if near_duplicates is None else ChunkSketcher(temporary, near_duplicates)
        with (
            _garbage_collection_paused(),
            (temporary / 'tokens.bin').open('wb') as tokens_file,
            (temporary / 'sentences.bin').open('wb') as sentences_file,
            (temporary / 'lines.bin').open('wb') as lines_file,
            (temporary / 'documents.bin').open('wb') as documents_file,
        ):
            for batch in _batches(_blocks(documents)):
                num_documents += sum(block.is_last for block in batch)
                ids, sentences, lines, table = _encode_batch(
                    batch, open_document, encoder, stats, counts, hash_lines, sketcher
                )
                for file, values in (
                    (tokens_file, ids),
                    (sentences_file, sentences),
                    (lines_file, lines),
                    (documents_file, table),
                ):
                    file.write(values.tobytes())
        counts.save(temporary)
        if sketcher is not None:
            sketcher.close()
        record = stats.as_json() | {
            'scripts': counts.by_script,
            'num_documents': num_documents,
            'dtype': encoder.dtype.name,
            'files': compute_checksums(temporary),
        }
        (temporary / 'chunk.json').write_text(json.dumps(record), 'utf-8')


@contextlib.contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Pauses the garbage collector, which would traverse the many small lists of documents; they form no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_chunk_record(directory: pathlib.Path) -> dict[str, Any] | None:
    """Returns the contents of `chunk.json` of a finished chunk; None if it is missing or a file has another size."""
    try:
        record = read_json(directory / 'chunk.json')
        sizes = {name: (directory / name).stat().st_size for name in record['files']}
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return record if all(file['bytes'] == sizes[name] for name, file in record['files'].items()) else None


class _Block(NamedTuple):
    """Consecutive lines of a document, separated by line feeds; a long document is divided into several blocks."""

    text: str
    group: str | None
    is_split: bool
    is_last: bool


def _blocks(documents: Iterable[Document]) -> Iterator[_Block]:
    for document in documents:
        text, start = document.text, 0
        while (stop := text.find('\n', start + _MAX_BLOCK)) != -1:
            yield _Block(text[start:stop], document.group, document.is_split, is_last=False)
            start = stop + 1
        yield _Block(text[start:], document.group, document.is_split, is_last=True)


def _batches(blocks: Iterable[_Block]) -> Iterator[list[_Block]]:
    """Groups blocks that are encoded together."""
    batch, size = [], 0
    for block in blocks:
        batch.append(block)
        size += len(block.text) + _CHARACTERS_PER_LINE * (block.text.count('\n') + 1) + _CHARACTERS_PER_DOCUMENT
        if size >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _OpenDocument:
    """The hash and counts of a document whose last block has not been encoded yet."""

    def __init__(self):
        self._hash: Any = None
        self._counts = np.zeros(3, np.int64)

    def close_with(self, blocks: list[_Block], texts: list[bytes], counts: np.ndarray) -> np.ndarray:
        """Adds blocks; the first ones continue the open document, and the last one may leave another document open.

        Args:
          texts: the text of each block, with line feeds between all sentences.
          counts: int64 [blocks, 3], lines, sentences and tokens of each block.

        Returns:
          DOCUMENT records of the completed documents.
        """
        digests, groups = [], []
        for block, text in zip(blocks, texts, strict=True):
            if self._hash is None:
                self._hash = hashlib.blake2b(text, digest_size=16)
            else:
                self._hash.update(b'\n')
                self._hash.update(text)
            if block.is_last:
                digests.append(self._hash.digest())
                groups.append(block.group)
                self._hash = None
        counts = np.concatenate([self._counts[None], counts])
        ends = np.flatnonzero([False, *(block.is_last for block in blocks)]) + 1
        totals = np.cumsum(np.concatenate([np.zeros((1, 3), np.int64), counts]), axis=0)
        sums = np.diff(totals[np.append(0, ends)], axis=0)
        self._counts = totals[-1] - totals[ends[-1] if len(ends) else 0]
        table = np.empty(len(digests), DOCUMENT)
        table['digest'] = np.frombuffer(b''.join(digests), 'V16')
        table['uniform'] = [_hash_of_group(group, digest) for group, digest in zip(groups, digests, strict=True)]
        table['lines'], table['sentences'], table['tokens'] = sums.T
        return table


def _encode_batch(
    batch: list[_Block],
    open_document: _OpenDocument,
    encoder: Encoder,
    stats: Stats,
    text_counts: TextCounts,
    hash_lines: bool,
    sketcher: ChunkSketcher | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns (ids, sentence lengths, LINE records, DOCUMENT records) of the documents and sentences with tokens."""
    lines_of_blocks = [block.text.split('\n') for block in batch]
    line_texts = list(itertools.chain.from_iterable(lines_of_blocks))
    encoded_lines = (
        [line.encode() for line in line_texts] if batch[0].is_split else split_lines_into_sentences(line_texts)
    )
    text = b'\n'.join([*encoded_lines, b''])
    with_blanks = text
    if encoder.tokenizer.word_prefix and not batch[0].is_split:
        with_blanks = b'\n'.join([*map(_with_blanks_before_sentences, line_texts, encoded_lines), b''])
    encoded = zip(*map(encoder.encode, _bounded_texts(with_blanks)), strict=True)
    ids, lengths = (np.concatenate(arrays) for arrays in encoded)
    ends_of_lines = np.cumsum(np.fromiter(map(len, encoded_lines), np.int64, len(encoded_lines)) + 1)
    characters = np.frombuffer(text, np.uint8)
    ends_of_sentences = np.flatnonzero(characters == ord('\n')) + 1
    line_of_sentence = np.searchsorted(ends_of_lines, ends_of_sentences - 1)
    words = _count_words(characters, ends_of_sentences)
    is_unknown = np.flatnonzero(ids == encoder.tokenizer.unk_id)
    unknown = np.bincount(np.searchsorted(np.cumsum(lengths), is_unknown, 'right'), minlength=len(lengths))
    text_counts.add(text, ends_of_sentences, words, lengths, unknown)
    num_lines = np.array(list(map(len, lines_of_blocks)))
    block_of_line = np.repeat(np.arange(len(batch)), num_lines)

    lines = np.zeros(len(encoded_lines), LINE)
    if hash_lines:
        digests = b''.join([hashlib.blake2b(line, digest_size=8).digest() for line in encoded_lines])
        lines['digest'] = np.frombuffer(digests, np.uint64)
    lines['words'] = np.bincount(line_of_sentence, words, len(lines))
    has_tokens = lengths > 0
    lines['sentences'] = np.bincount(line_of_sentence, has_tokens, len(lines))
    stats.counts['empty_sentence'] += int((~has_tokens).sum())

    line_is_kept = lines['sentences'] > 0
    counts = np.empty((len(batch), 3), np.int64)
    counts[:, 0] = np.bincount(block_of_line, line_is_kept, len(batch))
    counts[:, 1] = np.bincount(block_of_line, lines['sentences'], len(batch))
    counts[:, 2] = np.bincount(block_of_line[line_of_sentence], lengths, len(batch))
    ends = ends_of_lines[np.cumsum(num_lines) - 1] - 1
    starts = np.append(0, ends[:-1] + 1)
    texts = [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    table = open_document.close_with(batch, texts, counts)
    document_is_kept = table['lines'] > 0
    stats.counts['empty_document'] += int((~document_is_kept).sum())
    if sketcher is not None:
        is_last = [block.is_last for block in batch]
        sketcher.add([block.text for block in batch], is_last, document_is_kept, line_texts, line_is_kept)
    return ids, lengths[has_tokens].astype(np.uint32), lines[line_is_kept], table[document_is_kept]


def _with_blanks_before_sentences(line: str, split: bytes) -> bytes:
    """Puts back the blank between two sentences of a line, at the start of the second.

    A tokenizer that keeps blanks then gives the ids of the line as a whole.
    """
    if b'\n' not in split or split.isascii():
        return split.replace(b'\n', b'\n ')
    sentences, stop = [], 0
    for sentence in split.decode().split('\n'):
        start = line.index(sentence, stop)
        sentences.append(' ' + sentence if start > stop > 0 else sentence)
        stop = start + len(sentence)
    return '\n'.join(sentences).encode()


def _bounded_texts(text: bytes) -> Iterator[bytes]:
    """Divides text into texts of bounded size that end with a sentence."""
    start = 0
    while start < len(text):
        stop = (
            len(text) if len(text) - start <= _MAX_BYTES_AT_ONCE else text.index(b'\n', start + _MAX_BYTES_AT_ONCE) + 1
        )
        yield text[start:stop]
        start = stop


def split_hash(document: Document) -> int:
    """Returns the hash, below 2**64, that decides the split of a document: `uniform` of its record."""
    text = '\n'.join(document.sentences)
    return _hash_of_group(document.group, hashlib.blake2b(text.encode(), digest_size=16).digest())


def _hash_of_group(group: str | None, digest: bytes) -> int:
    if group is not None:
        digest = hashlib.blake2b(group.encode('utf-8', 'surrogatepass'), digest_size=8).digest()
    return int.from_bytes(digest[:8], 'big')


def _count_words(text: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Counts the words of each sentence, separated by ASCII white space."""
    is_blank = text <= 32
    starts = np.flatnonzero(~is_blank & np.append(True, is_blank[:-1]))
    return np.diff(np.searchsorted(starts, ends), prepend=0)
