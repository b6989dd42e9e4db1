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
from typing import Any

import numpy as np
import pyarrow

from bert_jax.files import new_directory, read_json
from bert_jax.text.checksums import checksums_of
from bert_jax.text.documents import Document, Tally
from bert_jax.text.sentences import split_lines
from bert_jax.text.tokenizer import Tokenizer
from bert_jax.text.vocabulary import flattened

# `digest` tells equal texts; `uniform` hashes the group, or without one the text. Any: ty takes them for float64.
DOCUMENT: Any = np.dtype([('digest', 'V16'), ('uniform', 'u8'), ('lines', 'u4'), ('sentences', 'u4'), ('tokens', 'u8')])
LINE: Any = np.dtype([('digest', 'u8'), ('sentences', 'u4'), ('words', 'u4')])
_CHARACTERS_AT_ONCE = 1 << 22  # given to the tokenizer together, or a few more
_MOST_AT_ONCE = 1 << 23  # bytes
_PARTS = re.compile(r'[!-/:-@\[-`{-~]|[^!-/:-@\[-`{-~]+')  # ASCII punctuation, and what is between
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
            ids, sizes = flattened(self.tokenizer.encode_batch(text.decode().split('\n')[:-1]))
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
        parts_of = [_PARTS.findall(word) for word in words]
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
    documents: Iterable[Document], tally: Tally, encoder: Encoder, directory: pathlib.Path, *, hash_lines: bool
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
        num_documents = num_characters = 0
        with (
            _uncollected(),
            (temporary / 'tokens.bin').open('wb') as tokens_file,
            (temporary / 'sentences.bin').open('wb') as sentences_file,
            (temporary / 'lines.bin').open('wb') as lines_file,
            (temporary / 'documents.bin').open('wb') as documents_file,
        ):
            for batch, size in _batches(documents):
                num_documents += len(batch)
                num_characters += size
                ids, sentences, lines, table = _encoded(batch, encoder, tally, hash_lines)
                for file, values in (
                    (tokens_file, ids),
                    (sentences_file, sentences),
                    (lines_file, lines),
                    (documents_file, table),
                ):
                    file.write(values.tobytes())
        record = {
            'dropped': dict(tally.counts),
            'records': tally.records,
            'bad': tally.bad,
            'num_documents': num_documents,
            'characters': num_characters,
            'dtype': encoder.dtype.name,
            'files': checksums_of(temporary),
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


def read_record(directory: pathlib.Path) -> dict[str, Any] | None:
    """What `chunk.json` of a finished chunk holds; None where there is none, or files of another size."""
    try:
        record = read_json(directory / 'chunk.json')
        sizes = {name: (directory / name).stat().st_size for name in record['files']}
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return record if all(file['bytes'] == sizes[name] for name, file in record['files'].items()) else None


def _batches(documents: Iterable[Document]) -> Iterator[tuple[list[Document], int]]:
    """(documents together, their characters); a large one is not cut, but `_encoded` takes its sentences in parts."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += document.num_characters
        if size >= _CHARACTERS_AT_ONCE:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size


def _encoded(
    batch: list[Document], encoder: Encoder, tally: Tally, hash_lines: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(ids, lengths of sentences, LINE records, DOCUMENT records) of those documents and sentences that have tokens."""
    line_texts = [line for document in batch for line in document.lines]
    encoded_lines = [line.encode() for line in line_texts] if batch[0].is_split else split_lines(line_texts)
    text = b'\n'.join([*encoded_lines, b''])
    ids, lengths = (np.concatenate(arrays) for arrays in zip(*map(encoder.encode, _parts(text)), strict=True))
    ends_of_lines = np.cumsum(np.fromiter(map(len, encoded_lines), np.int64, len(encoded_lines)) + 1)
    characters = np.frombuffer(text, np.uint8)
    line_of_sentence = np.searchsorted(ends_of_lines, np.flatnonzero(characters == ord('\n')))
    num_lines = np.array([len(document.lines) for document in batch])
    document_of_line = np.repeat(np.arange(len(batch)), num_lines)

    lines = np.zeros(len(encoded_lines), LINE)
    if hash_lines:
        digests = b''.join([hashlib.blake2b(line, digest_size=8).digest() for line in encoded_lines])
        lines['digest'] = np.frombuffer(digests, np.uint64)
    lines['words'] = _count_words(characters, ends_of_lines)
    has_tokens = lengths > 0
    lines['sentences'] = np.bincount(line_of_sentence, has_tokens, len(lines))
    tally.counts['empty_sentence'] += int((~has_tokens).sum())

    table = np.empty(len(batch), DOCUMENT)
    ends = np.cumsum(num_lines)
    digests = [
        hashlib.blake2b(b'\n'.join(encoded_lines[end - count : end]), digest_size=16).digest()
        for end, count in zip(ends, num_lines, strict=True)
    ]
    table['digest'] = np.frombuffer(b''.join(digests), 'V16')
    table['uniform'] = [_uniform(document, digest) for digest, document in zip(digests, batch, strict=True)]
    table['tokens'] = np.bincount(document_of_line[line_of_sentence], lengths, len(batch))
    table['sentences'] = np.bincount(document_of_line, lines['sentences'], len(batch))
    line_is_kept = lines['sentences'] > 0
    table['lines'] = np.bincount(document_of_line, line_is_kept, len(batch))
    document_is_kept = table['lines'] > 0
    tally.counts['empty_document'] += int((~document_is_kept).sum())
    return ids, lengths[has_tokens].astype(np.uint32), lines[line_is_kept], table[document_is_kept]


def _parts(text: bytes) -> Iterator[bytes]:
    """Text in parts of bounded size, of whole sentences."""
    start = 0
    while start < len(text):
        stop = len(text) if len(text) - start <= _MOST_AT_ONCE else text.index(b'\n', start + _MOST_AT_ONCE) + 1
        yield text[start:stop]
        start = stop


def uniform_of(document: Document) -> int:
    """What tells which split a document goes to, below 2**64: the `uniform` of its record."""
    text = '\n'.join(document.sentences)
    return _uniform(document, hashlib.blake2b(text.encode(), digest_size=16).digest())


def _uniform(document: Document, digest: bytes) -> int:
    if document.group is not None:
        group = document.group.encode('utf-8', 'surrogatepass')
        digest = hashlib.blake2b(group, digest_size=8).digest()
    return int.from_bytes(digest[:8], 'big')


def _count_words(text: np.ndarray, ends_of_lines: np.ndarray) -> np.ndarray:
    """How many runs of bytes between ASCII white space each line holds."""
    is_blank = text <= 32
    starts = np.flatnonzero(~is_blank & np.append(True, is_blank[:-1]))
    return np.diff(np.searchsorted(starts, ends_of_lines), prepend=0)
