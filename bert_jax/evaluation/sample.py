"""A sample of raw text, the same for every tokenizer: windows of text, and the words in them that are to be guessed."""

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
from bert_jax.text.chunks import plan_source
from bert_jax.text.corpus import load_corpus
from bert_jax.text.documents import Document, ReadOptions, read_chunk
from bert_jax.text.encode import split_hash
from bert_jax.text.existing import changes_since, weighted_sources
from bert_jax.text.merge import MIN_DOCUMENTS
from bert_jax.text.stats import Stats

WINDOW_CHARACTERS = 200  # so few that they fit the positions of nearly every run
WORD_RATE = 0.15  # of the words are to be guessed
_LONGEST_WORD = 24  # characters; what is longer is no word, or of a script that puts no blanks between words
_FEWEST_CHUNKS = 8  # of the source that a sample is taken from, if there are so many
_IDEOGRAPHS = '\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff'  # kana too
_WORD = re.compile(f'[{_IDEOGRAPHS}]{{1,2}}|[^\\s{_IDEOGRAPHS}]+')


@dataclasses.dataclass(frozen=True)
class Window:
    """A stretch of text, and the characters [start, stop) of each of its words that is to be guessed."""

    text: str
    words: tuple[tuple[int, int], ...]


def held_out_windows(data: config.Data, count: int) -> list[Window]:
    """Windows of the documents that the corpus of a run holds out, read anew from the source that it was made of.

    Raises:
      BadInput: when that source is not there, has changed, or is of records.
    """
    if config.is_records(data.source):
        raise BadInput(data.source, 'holds ids, not text', 'a source of text', '--source=text:GLOB')
    corpus = load_corpus(data.corpus, data.local_copy)
    data = _as_prepared(data, corpus.manifest['settings'])
    for source, _, _ in weighted_sources(data):
        if changes := changes_since(pathlib.Path(corpus.directory), source):
            raise BadInput(source, f'has changed since the corpus was made: {changes}', 'the text of the corpus')
    return _spread(data, count)


def windows_of_source(data: config.Data, source: str, count: int) -> list[Window]:
    """Windows of all documents of a source, read as `data` says.

    Raises:
      BadInput: see `plan_source` and `read_chunk`.
    """
    return _spread(dataclasses.replace(data, validation_source=source), count)


def _as_prepared(data: config.Data, settings: dict[str, Any]) -> config.Data:
    """`data` with the values that its corpus was made with: a run finds its corpus by the directory alone."""
    made_with = {name.removeprefix('data.'): value for name, value in settings.items() if name.startswith('data.')}
    if isinstance(made_with['source'], list):
        made_with['source'] = tuple(map(tuple, made_with['source']))
    unset = config.Data()
    newer = {name: getattr(unset, name) for name in names_with(Role.CONTENT_IF_SET, config.Data)}
    return dataclasses.replace(data, **newer | made_with)


def _spread(data: config.Data, count: int) -> list[Window]:
    """Up to `count` different windows that have words to guess, from chunks spread evenly over the held-out sources."""
    sources = weighted_sources(data)
    sources = [name for name, _, split in sources if split == 'validation'] or [name for name, _, _ in sources]
    fields = data.text_field, data.group_field, data.documents
    planned = (plan_source(name, number, *fields).chunks for number, name in enumerate(sources))
    chunks = list(itertools.chain.from_iterable(planned))
    options = ReadOptions.from_config(data)
    limit = 1 << 64 if data.validation_source else int(data.validation_fraction * (1 << 64))
    trained_on: set[int] = set()
    if not data.validation_source:  # whatever their hash, the first documents are for training
        first = itertools.islice(read_chunk(chunks[0], options, Stats()), MIN_DOCUMENTS)
        trained_on = {split_hash(document) for document in first}
    found: dict[str, Window] = {}
    for chunk in _from_far_apart(chunks):
        num_before = len(found)
        for document in read_chunk(chunk, options, Stats()):
            split_key = split_hash(document)
            if split_key >= limit or split_key in trained_on:
                continue
            found |= {window.text: window for window in windows_of(document) if window.words}
            if len(found) - num_before >= -(-count // min(len(chunks), _FEWEST_CHUNKS)):
                break
        if len(found) >= count:
            break
    return list(found.values())[:count]


def _from_far_apart(chunks: list) -> Iterator[Any]:
    """All of them, each far from those before: by the bits of their numbers, the lowest first."""
    width = max(len(chunks) - 1, 1).bit_length()
    order = (int(f'{number:0{width}b}'[::-1], 2) for number in range(1 << width))
    return (chunks[number] for number in order if number < len(chunks))


def windows_of(document: Document) -> Iterator[Window]:
    """A document in windows of as many whole sentences as fit; a longer sentence is cut at blanks."""
    held, size = [], 0
    for sentence in document.sentences:
        for part in textwrap.wrap(' '.join(sentence.split()), WINDOW_CHARACTERS, break_on_hyphens=False):
            if held and size + len(part) > WINDOW_CHARACTERS:
                yield _window(' '.join(held))
                held, size = [], 0
            held.append(part)
            size += len(part) + 1
    if held:
        yield _window(' '.join(held))


def _window(text: str) -> Window:
    return Window(text, tuple(_chosen_words(text)))


def _chosen_words(text: str) -> Iterator[tuple[int, int]]:
    """The words to guess, by a hash of the window's text and the number of the word: no tokenizer has a say.

    A word is what stands between blanks, its punctuation included, as no tokenizer here joins pieces across a blank; of
    ideographs and kana, one or two characters in a row.
    """
    key = hashlib.blake2b(text.encode(), digest_size=16).digest()
    for number, match in enumerate(_WORD.finditer(text)):
        drawn = hashlib.blake2b(number.to_bytes(4, 'big'), digest_size=8, key=key).digest()
        is_word = len(match[0]) <= _LONGEST_WORD and any(character.isalnum() for character in match[0])
        if is_word and int.from_bytes(drawn, 'big') < WORD_RATE * (1 << 64):
            yield match.span()
