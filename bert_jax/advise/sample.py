"""Reads a sample of the text and estimates its length, its scripts, and whether it is English."""

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bert_jax import config
from bert_jax.activity import activity
from bert_jax.errors import BadInput
from bert_jax.text.chunks import Chunk
from bert_jax.text.corpus import read_manifest
from bert_jax.text.documents import read_chunk
from bert_jax.text.existing import weighted_sources
from bert_jax.text.prepare import plan_sources
from bert_jax.text.scripts import OTHER, script_of
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.stats import Stats
from bert_jax.text.tokenizer import load_saved_tokenizer

_READ_CHARACTERS = 50_000_000  # of the whole text, seconds to read; an amount, so that the advice is always the same
_SAMPLE_CHARACTERS = 4_000_000
_DOCUMENT_CHARACTERS = 20_000  # of a document, in the sample
_WORD = re.compile(r'\w+')
_ENGLISH = frozenset('the of and to in a is that for it as with was on are this be by not or from at an have'.split())


@dataclasses.dataclass(frozen=True)
class TextSample:
    """What is known about the text of a config.

    Attributes:
      characters: of the whole text; estimated unless `is_complete`.
      is_complete: whether all of the text was read or it is a prepared corpus.
      documents: the sample: beginnings of documents from all parts of the text.
      scripts: share of the letters by script, such as {'Latin': 0.98}.
      letters: share of the characters that are letters.
      english: share of the words that are among the 24 most frequent ones of English.
      unigram: nats per character without white space of a model that knows only how frequent each character is.
      corpus_tokens: tokens of the training split of the prepared corpus; None without one.
    """

    characters: float
    is_complete: bool
    documents: tuple[str, ...]
    scripts: dict[str, float]
    letters: float
    english: float
    unigram: float
    corpus_tokens: int | None

    @property
    def is_english(self) -> bool:
        """Whether the text is mostly English: these words are 30% to 40% of English, and of other languages few."""
        return self.english > 0.2


def read_sample(data: config.Data, lowercase: bool) -> TextSample:
    """Reads the text of a config, at most 50 M characters from all parts of it.

    Args:
      lowercase: whether the tokenizer ignores case, for `unigram`.

    Raises:
      BadInput: if the text cannot be read; see `plan_source` and `read_chunk`.
    """
    if config.is_records(data.source):
        raise BadInput('config.data.source', 'holds ids, not text', 'a source of text')
    mixture = [each for each in weighted_sources(data) if each.split != 'validation']
    options, characters, documents, is_complete = ReadOptions.from_config(data), 0.0, [], True
    per_source = _SAMPLE_CHARACTERS // len(mixture)
    with activity('reading the text'):
        for source, weighted in zip(plan_sources(data, mixture), mixture, strict=True):
            found = _read_source(source.chunks, options, _READ_CHARACTERS / len(mixture))
            characters += found.characters * weighted.weight
            is_complete &= found.is_complete
            documents += _thinned(found.documents, per_source)
    if not any(documents):
        raise BadInput(f'config.data.source={data.source}', 'holds no text', 'files with text')
    tokens = _tokens_of_corpus(data)
    if tokens is not None and not is_complete:
        characters, is_complete = tokens * _characters_per_token(data.corpus, documents), True
    return _described(characters, is_complete, tuple(documents), lowercase, tokens)


def _tokens_of_corpus(data: config.Data) -> int | None:
    """Returns the training tokens of the corpus in `data.corpus`; None if there is none, or of another text."""
    manifest = read_manifest(Path(data.corpus))
    if manifest is None:
        return None
    recorded = manifest['settings']['data.source']
    source = recorded if isinstance(recorded, str) else tuple(map(tuple, recorded))
    return manifest['splits']['train']['tokens'] if source == data.source else None


@dataclasses.dataclass(frozen=True)
class _Read:
    characters: float
    is_complete: bool
    documents: list[str]


def _read_source(chunks: tuple[Chunk, ...], options: ReadOptions, most_characters: float) -> _Read:
    """Reads whole chunks from all over a source up to a number of characters; at least a part of one."""
    stats, documents = Stats(), []
    characters = done_bytes = 0
    for chunk in _spread(chunks):
        before = characters
        for document in read_chunk(chunk, options, stats):
            characters += document.num_characters
            documents.append(document.text[:_DOCUMENT_CHARACTERS])
            if characters > most_characters:
                break
        else:
            done_bytes += chunk.num_bytes
            continue
        if done_bytes:  # the unfinished chunk is left out of the estimate
            total = sum(each.num_bytes for each in chunks)
            return _Read(max(before / done_bytes * total, characters), False, documents)
        return _Read(characters, False, documents)
    return _Read(characters, True, documents)


def _spread(chunks: tuple[Chunk, ...]) -> Iterator[Chunk]:
    """Yields all chunks, so that the first ones come from all parts: every 16th, then those after them, and so on."""
    stride = max(len(chunks) // 16, 1)
    return itertools.chain.from_iterable(chunks[start::stride] for start in range(stride))


def _thinned(documents: list[str], characters: int) -> list[str]:
    """Returns every n-th document, so that they have at most about this number of characters."""
    return documents[:: max(1, math.ceil(sum(map(len, documents)) / characters))]


def _characters_per_token(corpus: str, documents: list[str]) -> float:
    tokenizer, texts = load_saved_tokenizer(Path(corpus) / 'tokenizer'), documents[:200]
    return sum(map(len, texts)) / max(sum(map(len, tokenizer.encode_batch(texts))), 1)


def _described(
    characters: float, is_complete: bool, documents: tuple[str, ...], lowercase: bool, tokens: int | None
) -> TextSample:
    counts = Counter(''.join(documents).lower() if lowercase else ''.join(documents))
    counts = Counter({character: count for character, count in counts.items() if not character.isspace()})
    total = max(counts.total(), 1)
    scripts: Counter[str] = Counter()
    for character, count in counts.items():
        if (script := script_of(character)) != OTHER:
            scripts[script] += count
    words = Counter(word for text in documents for word in _WORD.findall(text.lower()))
    return TextSample(
        characters,
        is_complete,
        documents,
        {name: count / scripts.total() for name, count in scripts.most_common(5)},
        scripts.total() / total,
        sum(words[word] for word in _ENGLISH) / max(words.total(), 1),
        -sum(count / total * math.log(count / total) for count in counts.values()),
        tokens,
    )
