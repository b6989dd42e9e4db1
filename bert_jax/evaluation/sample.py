"""Samples raw text independently of any tokenizer: windows of text, and the words in them to predict."""

import dataclasses
import hashlib
import itertools
import pathlib
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from bert_jax import config
from bert_jax.config.fields import Role, names_with
from bert_jax.errors import BadInput
from bert_jax.text.chunks import Chunk
from bert_jax.text.cleaning.cleaner import read_cleaned
from bert_jax.text.corpus import load_corpus
from bert_jax.text.documents import Document
from bert_jax.text.encode import split_hash
from bert_jax.text.existing import changes_since, weighted_sources
from bert_jax.text.merge import MIN_DOCUMENTS
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.plan import plan_source
from bert_jax.text.stats import Stats

WINDOW_CHARACTERS = 200  # short enough for the positions of nearly every run
WORD_RATE = 0.15  # fraction of the words to predict
_MAX_WORD_CHARACTERS = 24  # longer strings are not words, or belong to a script without spaces between words
_MIN_CHUNKS = 8  # a sample covers at least this number of chunks of the source, if it has them
_IDEOGRAPHS = '\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff'  # and kana
_WORD = re.compile(f'[{_IDEOGRAPHS}]{{1,2}}|[^\\s{_IDEOGRAPHS}]+')


@dataclasses.dataclass(frozen=True)
class Window:
    """A window of text, and the character range [start, stop) of each word to predict."""

    text: str
    words: tuple[tuple[int, int], ...]


def read_held_out_windows(data: config.Data, count: int) -> list[Window]:
    """Returns up to `count` windows of the held-out documents of a corpus, read again from the corpus's source.

    Raises:
      BadInput: if the source is missing, has changed, or consists of records.
    """
    if config.is_records(data.source):
        raise BadInput(data.source, 'contains ids, not text', 'a source of text', '--source=text:GLOB')
    corpus = load_corpus(data.corpus, data.local_copy)
    data = _as_prepared(data, corpus.manifest['settings'])
    for source, _, _ in weighted_sources(data):
        if changes := changes_since(pathlib.Path(corpus.directory), source):
            raise BadInput(source, f'has changed since the corpus was prepared: {changes}', 'the text of the corpus')
    return _sample_windows(data, count)


def read_source_windows(data: config.Data, source: str, count: int) -> list[Window]:
    """Returns up to `count` windows of all documents of a source, read with the settings in `data`.

    Raises:
      BadInput: see `plan_source` and `read_chunk`.
    """
    return _sample_windows(dataclasses.replace(data, validation_source=source), count)


def _as_prepared(data: config.Data, settings: dict[str, Any]) -> config.Data:
    """Returns `data` with the settings that its corpus was prepared with.

    The two may differ, because a run finds its corpus by the directory alone.
    """
    recorded = {name.removeprefix('data.'): value for name, value in settings.items() if name.startswith('data.')}
    if isinstance(recorded['source'], list):
        recorded['source'] = tuple(map(tuple, recorded['source']))
    defaults = config.Data()
    unrecorded = {name: getattr(defaults, name) for name in names_with(Role.CONTENT_IF_SET, config.Data)}
    return dataclasses.replace(data, **unrecorded | recorded)


def _sample_windows(data: config.Data, count: int) -> list[Window]:
    """Returns up to `count` distinct windows with words to predict, from chunks across all held-out sources."""
    sources = weighted_sources(data)
    sources = [name for name, _, split in sources if split == 'validation'] or [name for name, _, _ in sources]
    options = ReadOptions.from_config(data)
    chunks = [chunk for i, source in enumerate(sources) for chunk in plan_source(source, i, options).chunks]

    def read(chunk: Chunk) -> Iterator[Document]:
        return read_cleaned(chunk, options, Stats(), pathlib.Path(data.corpus))

    limit = 1 << 64 if data.validation_source else int(data.validation_fraction * (1 << 64))
    training_hashes: set[int] = set()
    if not data.validation_source:  # the first documents are for training, whatever their hash
        first_documents = itertools.islice(read(chunks[0]), MIN_DOCUMENTS)
        training_hashes = {split_hash(document) for document in first_documents}
    windows: dict[str, Window] = {}
    windows_per_chunk = -(-count // min(len(chunks), _MIN_CHUNKS))
    for chunk in _in_bit_reversed_order(chunks):
        num_before = len(windows)
        for document in read(chunk):
            document_hash = split_hash(document)
            if document_hash >= limit or document_hash in training_hashes:
                continue
            windows |= {window.text: window for window in split_into_windows(document) if window.words}
            if len(windows) - num_before >= windows_per_chunk:
                break
        if len(windows) >= count:
            break
    return list(windows.values())[:count]


def _in_bit_reversed_order(chunks: list[Chunk]) -> Iterator[Chunk]:
    """Yields all chunks, each far from the ones before it: sorted by their indices with the bits reversed."""
    num_bits = max(len(chunks) - 1, 1).bit_length()
    order = (int(f'{i:0{num_bits}b}'[::-1], 2) for i in range(1 << num_bits))
    return (chunks[index] for index in order if index < len(chunks))


def split_into_windows(document: Document) -> Iterator[Window]:
    """Splits a document into windows of as many whole sentences as fit; longer sentences are split at spaces."""
    parts, length = [], 0
    for sentence in document.sentences:
        for part in textwrap.wrap(' '.join(sentence.split()), WINDOW_CHARACTERS, break_on_hyphens=False):
            if parts and length + len(part) > WINDOW_CHARACTERS:
                yield _window(' '.join(parts))
                parts, length = [], 0
            parts.append(part)
            length += len(part) + 1
    if parts:
        yield _window(' '.join(parts))


def _window(text: str) -> Window:
    return Window(text, tuple(_select_words(text)))


def _select_words(text: str) -> Iterator[tuple[int, int]]:
    """Selects the words to predict by a hash of the window's text and the word's index, whatever the tokenizer.

    A word is a string between spaces, including its punctuation, because no tokenizer here joins subwords across a
    space. In ideographs and kana, one or two characters in a row are a word.
    """
    key = hashlib.blake2b(text.encode(), digest_size=16).digest()
    for word_index, match in enumerate(_WORD.finditer(text)):
        word_hash = hashlib.blake2b(word_index.to_bytes(4, 'big'), digest_size=8, key=key).digest()
        is_word = len(match[0]) <= _MAX_WORD_CHARACTERS and any(character.isalnum() for character in match[0])
        if is_word and int.from_bytes(word_hash, 'big') < WORD_RATE * (1 << 64):
            yield match.span()
