"""Tokenizers: text <-> ids, trained here or brought along.

Ids of special tokens are looked up, never assumed: a vocabulary keeps the ids it came with.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from bert_jax import config
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.json_files import read_given_json
from bert_jax.text.normalization import (
    Normalization,
    has_accents,
    has_capitals,
    read_normalization,
)
from bert_jax.text.sentencepiece import SentencePiece, read_pieces, train_sentencepiece
from bert_jax.text.vocabulary import MAX_TOKENS, SPECIAL_TOKENS, Tokenizer, library_errors
from bert_jax.text.wordpiece import WordPiece, bert_backend, is_decomposed, train_wordpiece

__all__ = ['SPECIAL_TOKENS', 'SentencePiece', 'Tokenizer', 'WordPiece', 'load_tokenizer', 'train_tokenizer']

_LAST_LOADED: dict[tuple[bytes, bool, bool], SentencePiece] = {}  # by model and settings, none or one
_LARGEST_FILE = 1 << 28  # bytes; a vocabulary of 4 M tokens has a tenth of it
_MOST_UNUSED_IDS = 1024  # that a tokenizer.json may leave out, besides as many as it has tokens


def train_tokenizer(settings: config.Tokenizer, texts: Iterator[str]) -> Tokenizer:
    """Trains a vocabulary on the first `sample_bytes` of the texts; the same texts give the same vocabulary.

    A sample too small for `vocab_size` gives a smaller vocabulary.

    Raises:
      BadInput: without any text, or when `vocab_size` has no room for the characters of the text (SentencePiece).
    """
    sample, num_bytes = [], 0
    for text in texts:
        sample.append(text)
        num_bytes += len(text.encode())
        if num_bytes >= settings.sample_bytes:
            break
    if not sample:
        raise BadInput('config.data.source', 'holds no text to train a tokenizer on', 'text')
    train = train_wordpiece if settings.kind == 'wordpiece' else train_sentencepiece
    return train(settings, sample)


# --- Loading. ---


def load_tokenizer(
    path: str | os.PathLike[str], *, lowercase: bool | None = None, strip_accents: bool | None = None
) -> Tokenizer:
    """Loads a `vocab.txt`, a `tokenizer.json`, a SentencePiece `.model`, or a directory that holds them.

    A vocabulary keeps its ids: the id of a token is its line. How text is normalized is decided by, in this order:

    1. the rules of a `tokenizer.json`, or the `tokenizer_config.json` of a directory: a setting that differs is
       reported and not used;
    2. `lowercase` and `strip_accents`, unless None: one that the files beside a vocabulary contradict is reported;
    3. the files beside the vocabulary;
    4. its tokens: without capital letters lower case, without accents in lower case no accents. This is printed.

    Text is normalized to NFC as well, where accents are kept and no file says how text is to be normalized.

    Raises:
      BadInput: for a file that is not there, not a tokenizer, or without one of the special tokens (named).
    """
    is_directory, file = os.path.isdir(path), _file_of(pathlib.Path(path))
    given = {'lowercase': lowercase, 'strip_accents': strip_accents}
    if file.suffix == '.json':
        loaded = _load_json(file)
        _report_differences(file.name, given, loaded, 'is not used')
        return loaded
    content = _read_bounded(file)
    tokens = {} if file.suffix == '.model' else _read_vocabulary(file, content)
    pieces = read_pieces(content, str(file)) if file.suffix == '.model' else list(tokens)
    beside = read_normalization(file, pieces)
    if beside is not None:
        _report_differences(beside.file, given, beside, 'is not used' if is_directory else 'is used nevertheless')
        if is_directory:
            given = {'lowercase': None, 'strip_accents': None}
    flags, source = _resolve_normalization(pieces, beside, **given)
    if source and not (is_directory and beside):
        kind = 'uncased' if flags['lowercase'] else 'cased'
        accents = 'accents stripped' if flags['strip_accents'] else 'accents kept'
        say(f'{file}: {kind}, {accents}, by {source}')
    if file.suffix == '.model':
        return _sentencepiece(content, **flags, where=str(file))
    compose = not is_decomposed(tokens) if beside is None or beside.compose is None else beside.compose
    return WordPiece(bert_backend(tokens, **flags, compose=compose), str(file))


def _file_of(path: pathlib.Path) -> pathlib.Path:
    """The file itself, or that of a directory which says most."""
    if not path.is_dir():
        if not path.is_file():
            expected = 'a vocab.txt, tokenizer.json, .model file, or a directory'
            raise BadInput(f'tokenizer {path}', 'is not there', expected)
        return path
    names = ('sentencepiece.model', 'tokenizer.json', 'vocab.txt')
    found = [path / name for name in names if (path / name).is_file()]
    if not found:
        raise BadInput(f'tokenizer {path}', 'holds no tokenizer', 'tokenizer.json, vocab.txt or sentencepiece.model')
    return found[0]


def _read_bounded(path: pathlib.Path) -> bytes:
    """The content of a file of a tokenizer.

    Raises:
      BadInput: for a file that is larger than any vocabulary, or cannot be read.
    """
    try:
        if (size := path.stat().st_size) > _LARGEST_FILE:
            raise BadInput(str(path), f'has {size:,} bytes', f'a file of a tokenizer, at most {_LARGEST_FILE:,} bytes')
        return path.read_bytes()
    except OSError as error:
        raise BadInput(str(path), f'cannot be read ({error.strerror})', 'a file of a tokenizer') from error


def load_configured_tokenizer(settings: config.Tokenizer) -> Tokenizer:
    """The tokenizer of `tokenizer.path`; see `load_tokenizer`."""
    return load_tokenizer(settings.path, lowercase=settings.lowercase, strip_accents=settings.strip_accents)


def load_saved_tokenizer(directory: str | os.PathLike[str]) -> Tokenizer:
    """Loads what `Tokenizer.save` wrote to a directory: its files name all settings.

    Raises:
      BadInput: as `load_tokenizer`.
    """
    return load_tokenizer(directory)


def prefer_saved_tokenizer(
    given: Tokenizer, settings: config.Tokenizer, directory: str | os.PathLike[str]
) -> Tokenizer:
    """A tokenizer that is brought along, or instead of it the one that a corpus or a run saved in `directory`.

    Earlier versions read a vocabulary with other settings, and did not compose text: what was made then stays usable.
    The saved tokenizer counts if the two differ in composition alone, or if the settings of `tokenizer.path`, a file
    that holds none, were chosen by the program.
    """
    directory, path = pathlib.Path(directory), pathlib.Path(settings.path)
    if not os.path.isfile(directory / 'tokenizer_config.json'):  # nor where it may not be read
        return given
    saved = load_saved_tokenizer(directory)
    if saved.hash == given.hash or saved.tokens != given.tokens:
        return given
    if saved.agrees_with(given):
        return saved
    is_chosen = settings.lowercase in (None, saved.lowercase) and settings.strip_accents in (None, saved.strip_accents)
    if not is_chosen or path.suffix == '.json' or not path.is_file():
        return given
    before, now = (f'lowercase={of.lowercase}, strip_accents={of.strip_accents}' for of in (saved, given))
    say(f'warning: {directory} was made with {before}, and stays so; a new one of {path} would have {now}')
    return saved


def _resolve_normalization(
    tokens: list[str], beside: Normalization | None, lowercase: bool | None, strip_accents: bool | None
) -> tuple[dict[str, bool], str]:
    """(`lowercase` and `strip_accents` of a vocabulary, what they are taken from unless both are given)."""
    if lowercase is not None and strip_accents is not None:
        return {'lowercase': lowercase, 'strip_accents': strip_accents}, ''
    source = 'its tokens, as no file says' if beside is None else beside.file
    source = source if lowercase is strip_accents is None else f'the config and {source}'
    if beside is not None:
        lowercase = beside.lowercase if lowercase is None else lowercase
        strip_accents = beside.strip_accents if strip_accents is None else strip_accents
    lowercase = not has_capitals(tokens) if lowercase is None else lowercase
    strip_accents = lowercase and not has_accents(tokens) if strip_accents is None else strip_accents
    return {'lowercase': lowercase, 'strip_accents': strip_accents}, source


def _report_differences(file: str, given: dict[str, bool | None], found: Any, consequence: str) -> None:
    for name, value in given.items():
        if value is not None and value != (theirs := getattr(found, name)):
            say(f'warning: config.tokenizer.{name}={value} {consequence}: {file} says {theirs}')


def _sentencepiece(model: bytes, *, lowercase: bool, strip_accents: bool, where: str) -> SentencePiece:
    """Of a model file; `prepare` loads one twice, once from where it was and once from where it was copied to."""
    key = model, lowercase, strip_accents
    if key not in _LAST_LOADED:
        loaded = SentencePiece(model, lowercase=lowercase, strip_accents=strip_accents, where=where)
        _LAST_LOADED.clear()
        _LAST_LOADED[key] = loaded
    return _LAST_LOADED[key]


def _read_vocabulary(path: pathlib.Path, content: bytes) -> dict[str, int]:
    """{token: line} of a file with a token a line."""
    if (num_lines := content.count(b'\n')) > MAX_TOKENS:
        raise BadInput(str(path), f'has {num_lines:,} lines', f'a vocabulary of at most {MAX_TOKENS:,} tokens')
    try:
        text = content.decode('utf-8')
    except UnicodeDecodeError:
        raise BadInput(str(path), 'is not UTF-8', 'a vocabulary, a token a line') from None
    vocabulary: dict[str, int] = {}
    for number, line in enumerate(text.removesuffix('\n').split('\n')):
        token = line.rstrip('\r')
        if vocabulary.setdefault(token, number) != number:
            raise BadInput(f'{path}:{number + 1}', f'repeats line {vocabulary[token] + 1}', 'every token once')
    return vocabulary


def _load_json(path: pathlib.Path) -> WordPiece:
    import tokenizers

    expected = 'a tokenizer.json of WordPiece'
    _check_ids(read_given_json(path, expected), str(path))
    with library_errors(str(path), 'is not a tokenizer.json', expected):
        return WordPiece(tokenizers.Tokenizer.from_file(str(path)), str(path))


def _check_ids(content: dict[str, Any], where: str) -> None:
    """Everything is made as long as the largest id: a small file must not ask for a large vocabulary.

    Raises:
      BadInput: for an id that is no whole number or far beyond the number of tokens.
    """
    model, added = content.get('model'), content.get('added_tokens')
    vocabulary = model.get('vocab') if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [token.get('id') for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    limit = 2 * len(ids) + _MOST_UNUSED_IDS
    for index in ids:
        if type(index) is not int or not 0 <= index < limit:
            found = f'has the id {index!r:.40} in a vocabulary of {len(ids):,} tokens'
            raise BadInput(where, found, f'whole numbers from 0 on, one for each token, below {limit:,}')
