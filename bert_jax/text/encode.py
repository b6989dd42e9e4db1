"""A chunk -> its token ids and a table of its documents on disk: the work that is divided among processes.

CHUNK/tokens.bin       uint16 or uint32, the ids of all documents
CHUNK/sentences.bin    uint32, tokens of each sentence
CHUNK/lines.bin        LINE records, one for each line of text
CHUNK/documents.bin    DOCUMENT records
CHUNK/chunk.json       counts and checksums: with it the chunk is finished
"""

import contextlib
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
from bert_jax.text.checksums import compute_checksums
from bert_jax.text.documents import Document
from bert_jax.text.sentences import split_lines_into_sentences
from bert_jax.text.stats import Stats
from bert_jax.text.tokenizer import Tokenizer
from bert_jax.text.vocabulary import flatten

# `digest` tells equal texts; `uniform` hashes the group, or without one the text. Any: ty takes them for float64.
DOCUMENT: Any = np.dtype([('digest', 'V16'), ('uniform', 'u8'), ('lines', 'u4'), ('sentences', 'u4'), ('tokens', 'u8')])
LINE: Any = np.dtype([('digest', 'u8'), ('sentences', 'u4'), ('words', 'u4')])
_CHARACTERS_AT_ONCE = 1 << 22  # encoded together, or a few more; lines and documents count as some characters more
_CHARACTERS_OF_LINE, _CHARACTERS_OF_DOCUMENT = 32, 128  # the memory of what is kept of each
_LONGEST_PIECE = 1 << 20  # characters of a document that are encoded together, or the rest of a line more
_MOST_AT_ONCE = 1 << 22  # bytes that the tokenizer gets together
_PARTS = re.compile(r'[!-/:-@\[-`{-~]|[^!-/:-@\[-`{-~]+')  # ASCII punctuation, and what is between
_STROKE = '\u0338'  # '≠' is '=' and this: the only mark that composition joins with ASCII punctuation
_MOST_WORDS = 1 << 19  # that are remembered
_LONGEST_WORD = 50  # characters, of those remembered


class Encoder:
    """Sentences -> ids; a word is encoded once.

    What a tokenizer that splits at blanks does to a word does not depend on what stands beyond the blanks around it, so
    that the ids of a text are those of its words, one after another. Looking words up is several times as fast as
    encoding text.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        self._words: dict[str, bytes] = {}  # a word's ids

    def encode(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Sentences, each with a line feed behind it -> (ids of all one after another, number of ids of each)."""
        if not self.tokenizer.splits_at_blanks:
            ids, sizes = flatten(self.tokenizer.encode_batch(text.decode().split('\n')[:-1]))
            return ids.astype(self.dtype), sizes
        distinct, number, first_words = _numbered(text)
        encoded = list(map(self._words.get, distinct))
        if unseen := [index for index, ids in enumerate(encoded) if ids is None]:
            self._encode_words([distinct[index] for index in unseen])
        for index in unseen:
            word = distinct[index]
            encoded[index] = self._words[word]
            if len(word) > _LONGEST_WORD:
                del self._words[word]
        if len(self._words) > _MOST_WORDS:
            self._words.clear()
        words = pyarrow.array(encoded, pyarrow.large_binary()).take(number)
        _, ends, ids = words.buffers()
        ends = np.frombuffer(ends, np.int64)[: len(words) + 1] // self.dtype.itemsize
        return np.frombuffer(ids, self.dtype)[: ends[-1]], np.diff(ends[np.append(first_words, len(words))])

    def _encode_words(self, words: list[str]) -> None:
        """Adds words to those known. Where punctuation stands alone, `word` and `word,` share the work."""
        if not self.tokenizer.splits_at_punctuation:
            self._words.update(self._packed(words))
            return
        parts_of = [[word] if _STROKE in word else _PARTS.findall(word) for word in words]
        unseen = list(set(itertools.chain.from_iterable(parts_of)).difference(self._words))
        parts = dict(self._packed(unseen))
        self._words.update((part, ids) for part, ids in parts.items() if len(part) <= _LONGEST_WORD)
        for word, cut in zip(words, parts_of, strict=True):
            self._words[word] = b''.join([parts[part] if part in parts else self._words[part] for part in cut])

    def _packed(self, words: list[str]) -> Iterator[tuple[str, bytes]]:
        """(word, its ids) of each."""
        for some, ids, sizes in self.tokenizer.encode_words(words):
            packed, ends = ids.astype(self.dtype).tobytes(), (np.cumsum(sizes) * self.dtype.itemsize).tolist()
            yield from zip(some, [packed[start:end] for start, end in itertools.pairwise([0, *ends])], strict=True)


def _numbered(text: bytes) -> tuple[list[str], pyarrow.Array, np.ndarray]:
    """Sentences, each with a line feed behind it -> (distinct words, the number of each word, the first of a sentence).

    A word is what stands between blanks; it may be empty.
    """
    characters = np.frombuffer(text, np.uint8).copy()  # no more than int32 can count, see `_parts`
    ends = np.flatnonzero((characters == ord(' ')) | (characters == ord('\n')))
    first_words = np.append(0, np.flatnonzero(characters[ends] == ord('\n'))[:-1] + 1)
    characters[ends] = ord(' ')
    offsets = pyarrow.py_buffer(np.append(0, ends + 1).astype(np.int32))
    words = pyarrow.StringArray.from_buffers(len(ends), offsets, pyarrow.py_buffer(characters))  # with their blanks
    numbered = words.dictionary_encode()
    return [word[:-1] for word in numbered.dictionary.to_pylist()], numbered.indices, first_words


def write_chunk(
    documents: Iterable[Document], stats: Stats, encoder: Encoder, directory: pathlib.Path, *, hash_lines: bool
) -> None:
    """Writes an encoded chunk to its directory, whole or not at all; does nothing if it is there.

    `tally` belongs to the reading of the documents; it is complete when the last of them has come. Unless `hash_lines`,
    the digests of lines are 0.

    Raises:
      BadInput: what the reading raises, see `read_chunk`.
      OSError: when it cannot be written.
    """
    if directory.is_dir():
        return
    # Not beside the chunks, of which there may be many: looking for those of killed processes reads the directory.
    with new_directory(directory, temporary_in=directory.parents[1]) as temporary:
        num_documents, open_document = 0, _OpenDocument()
        with (
            _uncollected(),
            (temporary / 'tokens.bin').open('wb') as tokens_file,
            (temporary / 'sentences.bin').open('wb') as sentences_file,
            (temporary / 'lines.bin').open('wb') as lines_file,
            (temporary / 'documents.bin').open('wb') as documents_file,
        ):
            for batch in _batches(_pieces(documents)):
                num_documents += sum(piece.is_last for piece in batch)
                ids, sentences, lines, table = _encoded(batch, open_document, encoder, stats, hash_lines)
                for file, values in (
                    (tokens_file, ids),
                    (sentences_file, sentences),
                    (lines_file, lines),
                    (documents_file, table),
                ):
                    file.write(values.tobytes())
        record = stats.as_json() | {
            'num_documents': num_documents,
            'dtype': encoder.dtype.name,
            'files': compute_checksums(temporary),
        }
        (temporary / 'chunk.json').write_text(json.dumps(record), 'utf-8')


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector: documents are many small lists and no cycles, and it would look at all of them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_chunk_record(directory: pathlib.Path) -> dict[str, Any] | None:
    """What `chunk.json` of a finished chunk holds; None where there is none, or files of another size."""
    try:
        record = read_json(directory / 'chunk.json')
        sizes = {name: (directory / name).stat().st_size for name in record['files']}
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return record if all(file['bytes'] == sizes[name] for name, file in record['files'].items()) else None


class _Piece(NamedTuple):
    """Some of the lines of a document, with line feeds between them: a long one comes in several pieces."""

    text: str
    group: str | None
    is_split: bool
    is_last: bool


def _pieces(documents: Iterable[Document]) -> Iterator[_Piece]:
    for document in documents:
        text, start = document.text, 0
        while (stop := text.find('\n', start + _LONGEST_PIECE)) != -1:
            yield _Piece(text[start:stop], document.group, document.is_split, is_last=False)
            start = stop + 1
        yield _Piece(text[start:], document.group, document.is_split, is_last=True)


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces that are encoded together."""
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text) + _CHARACTERS_OF_LINE * (piece.text.count('\n') + 1) + _CHARACTERS_OF_DOCUMENT
        if size >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _OpenDocument:
    """What is known of a document of which not all pieces have come."""

    def __init__(self):
        self._hash: Any = None
        self._counts = np.zeros(3, np.int64)

    def close_with(self, pieces: list[_Piece], texts: list[bytes], counts: np.ndarray) -> np.ndarray:
        """Adds pieces, the first of which continue the open document; the last one may leave another open.

        Args:
          texts: of each piece, its lines with line feeds between all sentences.
          counts: int64 [pieces, 3], lines, sentences and tokens that are kept of each.

        Returns:
          DOCUMENT records of the documents that are complete.
        """
        digests, groups = [], []
        for piece, text in zip(pieces, texts, strict=True):
            if self._hash is None:
                self._hash = hashlib.blake2b(text, digest_size=16)
            else:
                self._hash.update(b'\n')
                self._hash.update(text)
            if piece.is_last:
                digests.append(self._hash.digest())
                groups.append(piece.group)
                self._hash = None
        counts = np.concatenate([self._counts[None], counts])
        ends = np.flatnonzero([False, *(piece.is_last for piece in pieces)]) + 1
        totals = np.cumsum(np.concatenate([np.zeros((1, 3), np.int64), counts]), axis=0)
        sums = np.diff(totals[np.append(0, ends)], axis=0)
        self._counts = totals[-1] - totals[ends[-1] if len(ends) else 0]
        table = np.empty(len(digests), DOCUMENT)
        table['digest'] = np.frombuffer(b''.join(digests), 'V16')
        table['uniform'] = [_split_hash(group, digest) for group, digest in zip(groups, digests, strict=True)]
        table['lines'], table['sentences'], table['tokens'] = sums.T
        return table


def _encoded(
    batch: list[_Piece], open_document: _OpenDocument, encoder: Encoder, stats: Stats, hash_lines: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(ids, lengths of sentences, LINE records, DOCUMENT records) of those documents and sentences that have tokens."""
    lines_of_pieces = [piece.text.split('\n') for piece in batch]
    line_texts = list(itertools.chain.from_iterable(lines_of_pieces))
    encoded_lines = (
        [line.encode() for line in line_texts] if batch[0].is_split else split_lines_into_sentences(line_texts)
    )
    text = b'\n'.join([*encoded_lines, b''])
    ids, lengths = (np.concatenate(arrays) for arrays in zip(*map(encoder.encode, _parts(text)), strict=True))
    ends_of_lines = np.cumsum(np.fromiter(map(len, encoded_lines), np.int64, len(encoded_lines)) + 1)
    characters = np.frombuffer(text, np.uint8)
    line_of_sentence = np.searchsorted(ends_of_lines, np.flatnonzero(characters == ord('\n')))
    num_lines = np.array(list(map(len, lines_of_pieces)))
    piece_of_line = np.repeat(np.arange(len(batch)), num_lines)

    lines = np.zeros(len(encoded_lines), LINE)
    if hash_lines:
        digests = b''.join([hashlib.blake2b(line, digest_size=8).digest() for line in encoded_lines])
        lines['digest'] = np.frombuffer(digests, np.uint64)
    lines['words'] = _count_words(characters, ends_of_lines)
    has_tokens = lengths > 0
    lines['sentences'] = np.bincount(line_of_sentence, has_tokens, len(lines))
    stats.counts['empty_sentence'] += int((~has_tokens).sum())

    line_is_kept = lines['sentences'] > 0
    counts = np.empty((len(batch), 3), np.int64)
    counts[:, 0] = np.bincount(piece_of_line, line_is_kept, len(batch))
    counts[:, 1] = np.bincount(piece_of_line, lines['sentences'], len(batch))
    counts[:, 2] = np.bincount(piece_of_line[line_of_sentence], lengths, len(batch))
    ends = ends_of_lines[np.cumsum(num_lines) - 1] - 1
    starts = np.append(0, ends[:-1] + 1)
    texts = [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    table = open_document.close_with(batch, texts, counts)
    document_is_kept = table['lines'] > 0
    stats.counts['empty_document'] += int((~document_is_kept).sum())
    return ids, lengths[has_tokens].astype(np.uint32), lines[line_is_kept], table[document_is_kept]


def _parts(text: bytes) -> Iterator[bytes]:
    """Text in parts of bounded size, of whole sentences."""
    start = 0
    while start < len(text):
        stop = len(text) if len(text) - start <= _MOST_AT_ONCE else text.index(b'\n', start + _MOST_AT_ONCE) + 1
        yield text[start:stop]
        start = stop


def split_hash(document: Document) -> int:
    """What tells which split a document goes to, below 2**64: the `uniform` of its record."""
    text = '\n'.join(document.sentences)
    return _split_hash(document.group, hashlib.blake2b(text.encode(), digest_size=16).digest())


def _split_hash(group: str | None, digest: bytes) -> int:
    if group is not None:
        digest = hashlib.blake2b(group.encode('utf-8', 'surrogatepass'), digest_size=8).digest()
    return int.from_bytes(digest[:8], 'big')


def _count_words(text: np.ndarray, ends_of_lines: np.ndarray) -> np.ndarray:
    """How many runs of bytes between ASCII white space each line holds."""
    is_blank = text <= 32
    starts = np.flatnonzero(~is_blank & np.append(True, is_blank[:-1]))
    return np.diff(np.searchsorted(starts, ends_of_lines), prepend=0)
