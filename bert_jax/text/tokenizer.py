"""Trains tokenizers, and loads those that the user provides.

A tokenizer.json of BERT's kind is a `WordPiece`, any other a `Pipeline`; a .model file is a `SentencePiece`.

Ids of special tokens are looked up, never assumed: a provided vocabulary keeps its ids.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from bert_jax import config
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.json_files import read_given_json
from bert_jax.text.bpe import train_bpe
from bert_jax.text.normalization import (
    Normalization,
    has_accents,
    has_capitals,
    read_normalization,
)
from bert_jax.text.pipeline import Pipeline
from bert_jax.text.sentencepiece import SentencePiece, read_pieces, train_sentencepiece
from bert_jax.text.special_tokens import SPECIAL_TOKENS, find_special_tokens
from bert_jax.text.vocabulary import MAX_TOKENS, Tokenizer, library_errors, tokens_by_id
from bert_jax.text.wordpiece import WordPiece, bert_backend, is_decomposed, train_wordpiece

__all__ = ['SPECIAL_TOKENS', 'Pipeline', 'SentencePiece', 'Tokenizer', 'WordPiece', 'load_tokenizer', 'train_tokenizer']

_LAST_LOADED: dict[tuple[bytes, bool, bool], SentencePiece] = {}  # at most one, by model and settings
_MAX_FILE_BYTES = 1 << 28  # ten times a vocabulary of 4 M tokens
_MAX_UNUSED_IDS = 1024  # gaps in the ids of a tokenizer.json, in addition to one per token


def train_tokenizer(settings: config.Tokenizer, texts: Iterator[str]) -> Tokenizer:
    """Trains a vocabulary on the first `sample_bytes` of the texts; deterministic.

    A sample that is too small for `vocab_size` yields a smaller vocabulary.

    Raises:
      BadInput: without text, or if `vocab_size` is too small for the characters of the text (SentencePiece).
    """
    sample, num_bytes = [], 0
    for text in texts:
        sample.append(text)
        num_bytes += len(text.encode())
        if num_bytes >= settings.sample_bytes:
            break
    if not sample:
        raise BadInput('config.data.source', 'holds no text to train a tokenizer on', 'files with text')
    trainers = {'wordpiece': train_wordpiece, 'sentencepiece': train_sentencepiece, 'bpe': train_bpe}
    return trainers[settings.kind](settings, sample)


# --- Loading. ---


def load_tokenizer(
    path: str | os.PathLike[str],
    *,
    lowercase: bool | None = None,
    strip_accents: bool | None = None,
    report_ignored: bool = True,
) -> Tokenizer:
    """Loads a `vocab.txt`, a `tokenizer.json`, a SentencePiece `.model`, or a directory that contains one.

    A vocabulary keeps its ids: the id of a token is its line. Normalization of text is determined by, in this order:

    1. the rules of a `tokenizer.json`, or the `tokenizer_config.json` of a directory; settings that differ are
       reported and ignored;
    2. `lowercase` and `strip_accents`, unless None; if files next to the vocabulary contradict them, this is reported;
    3. the files next to the vocabulary;
    4. its tokens: without capital letters, lower case; if also without accents, accents are stripped. This is printed.

    Without `report_ignored`, settings are ignored without a report: the caller makes one.

    If accents are kept and no file declares the normalization, text is also normalized to NFC.

    Raises:
      BadInput: for a file that does not exist, is not a tokenizer, or lacks special tokens (which are named).
    """
    is_directory, file = os.path.isdir(path), _find_file(pathlib.Path(path))
    requested = {'lowercase': lowercase, 'strip_accents': strip_accents}
    if file.suffix == '.json':
        loaded = _load_json(file)
        if report_ignored:
            _report_differences(file.name, requested, loaded, 'is ignored')
        return loaded
    content = _read_bounded(file)
    tokens = {} if file.suffix == '.model' else _read_vocabulary(file, content)
    pieces = read_pieces(content, str(file)) if file.suffix == '.model' else list(tokens)
    declared = read_normalization(file, pieces)
    if declared is not None:
        if report_ignored or not is_directory:
            consequence = 'is ignored' if is_directory else 'is used anyway'
            _report_differences(declared.file, requested, declared, consequence)
        if is_directory:
            requested = {'lowercase': None, 'strip_accents': None}
    flags, source = _resolve_normalization(pieces, declared, **requested)
    if source and not (is_directory and declared):
        kind = 'uncased' if flags['lowercase'] else 'cased'
        accents = 'accents stripped' if flags['strip_accents'] else 'accents kept'
        say(f'{file}: {kind}, {accents} ({source})')
    if file.suffix == '.model':
        return _sentencepiece(content, **flags, where=str(file))
    compose = not is_decomposed(tokens) if declared is None or declared.compose is None else declared.compose
    return WordPiece(bert_backend(tokens, **flags, compose=compose), str(file))


def _find_file(path: pathlib.Path) -> pathlib.Path:
    """Returns the file itself, or the most complete one of a directory."""
    if not path.is_dir():
        if not path.is_file():
            expected = 'a vocab.txt, tokenizer.json, .model file, or a directory'
            raise BadInput(f'tokenizer {path}', 'does not exist', expected)
        return path
    names = ('sentencepiece.model', 'tokenizer.json', 'vocab.txt')
    existing = [path / name for name in names if (path / name).is_file()]
    if not existing:
        raise BadInput(f'tokenizer {path}', 'holds no tokenizer', 'tokenizer.json, vocab.txt or sentencepiece.model')
    return existing[0]


def _read_bounded(path: pathlib.Path) -> bytes:
    """Reads a file of a tokenizer.

    Raises:
      BadInput: for a file that is larger than any vocabulary, or cannot be read.
    """
    try:
        if (size := path.stat().st_size) > _MAX_FILE_BYTES:
            raise BadInput(str(path), f'has {size:,} bytes', f'a tokenizer file of at most {_MAX_FILE_BYTES:,} bytes')
        return path.read_bytes()
    except OSError as error:
        raise BadInput(str(path), f'cannot be read ({error.strerror})', 'a tokenizer file') from error


def load_configured_tokenizer(settings: config.Tokenizer, *, report_ignored: bool = True) -> Tokenizer:
    """Loads the tokenizer of `tokenizer.path`; see `load_tokenizer`."""
    requested = {'lowercase': settings.lowercase, 'strip_accents': settings.strip_accents}
    return load_tokenizer(settings.path, **requested, report_ignored=report_ignored)


def load_saved_tokenizer(directory: str | os.PathLike[str]) -> Tokenizer:
    """Loads a tokenizer that `Tokenizer.save` wrote; its files contain all settings.

    Raises:
      BadInput: see `load_tokenizer`.
    """
    return load_tokenizer(directory)


def prefer_saved_tokenizer(
    provided: Tokenizer, settings: config.Tokenizer, directory: str | os.PathLike[str]
) -> Tokenizer:
    """Returns the provided tokenizer, or the one of the same vocabulary that a corpus or run saved in `directory`.

    Earlier versions read vocabularies with other defaults and did not normalize to NFC; their corpora and runs stay
    usable. The saved tokenizer is preferred if the two differ only in NFC, or if `tokenizer.path` is a file without
    settings, whose normalization the program chose.
    """
    directory, path = pathlib.Path(directory), pathlib.Path(settings.path)
    if not os.path.isfile(directory / 'tokenizer_config.json'):  # also if it may not be read
        return provided
    saved = load_saved_tokenizer(directory)
    if saved.hash == provided.hash or saved.tokens != provided.tokens:
        return provided
    if saved.agrees_with(provided):
        return saved
    is_compatible = settings.lowercase in (None, saved.lowercase) and settings.strip_accents in (
        None,
        saved.strip_accents,
    )
    if not is_compatible or path.suffix == '.json' or not path.is_file():
        return provided
    kept, new = (f'lowercase={each.lowercase}, strip_accents={each.strip_accents}' for each in (saved, provided))
    say(f'warning: {directory} keeps its settings, {kept}; a new tokenizer from {path} would use {new}')
    return saved


def _resolve_normalization(
    tokens: list[str], declared: Normalization | None, lowercase: bool | None, strip_accents: bool | None
) -> tuple[dict[str, bool], str]:
    """Returns (`lowercase` and `strip_accents` of a vocabulary, their source; '' if both were requested)."""
    if lowercase is not None and strip_accents is not None:
        return {'lowercase': lowercase, 'strip_accents': strip_accents}, ''
    source = 'inferred from its tokens' if declared is None else f'from {declared.file}'
    source = source if lowercase is strip_accents is None else f'from the config, and {source}'
    if declared is not None:
        lowercase = declared.lowercase if lowercase is None else lowercase
        strip_accents = declared.strip_accents if strip_accents is None else strip_accents
    lowercase = not has_capitals(tokens) if lowercase is None else lowercase
    strip_accents = lowercase and not has_accents(tokens) if strip_accents is None else strip_accents
    return {'lowercase': lowercase, 'strip_accents': strip_accents}, source


def _report_differences(file: str, requested: dict[str, bool | None], found: Any, consequence: str) -> None:
    for name, value in requested.items():
        if value is not None and value != (declared := getattr(found, name)):
            say(f'warning: config.tokenizer.{name}={value} {consequence}: {file} says {declared}')


def _sentencepiece(model: bytes, *, lowercase: bool, strip_accents: bool, where: str) -> SentencePiece:
    """Builds the tokenizer of a model, with a cache: `prepare` loads each model twice, the original and its copy."""
    key = model, lowercase, strip_accents
    if key not in _LAST_LOADED:
        loaded = SentencePiece(model, lowercase=lowercase, strip_accents=strip_accents, where=where)
        _LAST_LOADED.clear()
        _LAST_LOADED[key] = loaded
    return _LAST_LOADED[key]


def _read_vocabulary(path: pathlib.Path, content: bytes) -> dict[str, int]:
    """Reads {token: line} from a file with one token per line."""
    if (num_lines := content.count(b'\n')) > MAX_TOKENS:
        raise BadInput(str(path), f'has {num_lines:,} lines', f'a vocabulary of at most {MAX_TOKENS:,} tokens')
    try:
        text = content.decode('utf-8')
    except UnicodeDecodeError:
        raise BadInput(str(path), 'is not UTF-8', 'a vocabulary with one token per line') from None
    vocabulary: dict[str, int] = {}
    for index, line in enumerate(text.removesuffix('\n').split('\n')):
        token = line.rstrip('\r')
        if vocabulary.setdefault(token, index) != index:
            raise BadInput(f'{path}:{index + 1}', f'repeats line {vocabulary[token] + 1}', 'every token once')
    return vocabulary


def _load_json(path: pathlib.Path) -> WordPiece | Pipeline:
    import tokenizers

    expected = 'a tokenizer.json of the `tokenizers` library'
    content = read_given_json(path, expected)
    _check_ids(content, str(path))
    with library_errors(str(path), 'is not a tokenizer.json', expected):
        backend = tokenizers.Tokenizer.from_file(str(path))
        tokens = {*tokens_by_id(backend)}
        if WordPiece.fits(content, tokens):
            return WordPiece(backend, str(path))
        return Pipeline(backend, find_special_tokens(path, content, tokens), str(path))


def _check_ids(content: dict[str, Any], where: str) -> None:
    """Checks that ids are not much larger than the vocabulary: arrays are as long as the largest id.

    Raises:
      BadInput: for an id that is not an integer, or far above the number of tokens.
    """
    model, added = content.get('model'), content.get('added_tokens')
    vocabulary = model.get('vocab') if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += range(len(vocabulary)) if isinstance(vocabulary, list) else []
    ids += [token.get('id') for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    limit = 2 * len(ids) + _MAX_UNUSED_IDS
    for index in ids:
        if type(index) is not int or not 0 <= index < limit:
            found = f'has the id {index!r:.40} in a vocabulary of {len(ids):,} tokens'
            raise BadInput(where, found, f'integers from 0 up, one per token, below {limit:,}')
