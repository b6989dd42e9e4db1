"""Finds out which normalization a provided vocabulary expects: lower case or not, with or without accents.

The files next to it say so. Otherwise its tokens show it: lower-case text yields no token with a capital letter.
"""

import dataclasses
import itertools
import pathlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, NamedTuple

from bert_jax.errors import BadInput
from bert_jax.json_files import read_given_json
from bert_jax.text.sentencepiece import SentencePiece
from bert_jax.text.vocabulary import Tokenizer
from bert_jax.text.wordpiece import WordPiece

_MIN_FRACTION = 0.01  # of the tokens with letters; stray additions to a vocabulary stay below it
_BRACKETED = re.compile(r'\[.*\]|<.*>')  # [CLS], [unused1], <pad>
_MIN_IMPROVEMENT = 0.001  # of the tokens of a sample; smaller differences do not justify another setting
_MAX_REMAINING = 0.5  # of the unknown tokens, with the better setting


@dataclasses.dataclass(frozen=True)
class Normalization:
    """The normalization that a file declares for its vocabulary.

    Attributes:
      compose: whether text is normalized to NFC; None if the file does not say.
      file: name of the file.
    """

    lowercase: bool
    strip_accents: bool
    compose: bool | None
    file: str


class TokenizerIssue(NamedTuple):
    """A possible problem with a tokenizer, for a warning; the fields are those of `BadInput`."""

    found: str
    expected: str
    fix: str


# --- Evidence in files. ---


def read_normalization(path: pathlib.Path, tokens: Iterable[str]) -> Normalization | None:
    """Reads the normalization from the other files in the directory of a vocabulary; None if none declares it.

    In this order: tokenizer.json, if it has the same tokens; tokenizer_config.json, as `transformers` reads it; and
    config.json, if it sets `do_lower_case`.

    Raises:
      BadInput: for a damaged file.
    """
    directory = path.parent
    if (directory / 'tokenizer.json').is_file() and path.suffix != '.model':
        content = read_given_json(directory / 'tokenizer.json', 'the tokenizer of a model')
        if (normalization := _from_tokenizer_json(content, {*tokens})) is not None:
            return normalization
    for name in ('tokenizer_config.json', 'config.json'):
        if not (directory / name).is_file():
            continue
        content = read_given_json(directory / name, 'the settings of a tokenizer or a model')
        lowercase = _flag(directory / name, content, 'do_lower_case')
        if lowercase is None and name == 'tokenizer_config.json' and path.suffix != '.model':
            lowercase = True  # the default of `BertTokenizer`
        if lowercase is None:
            continue
        accents = _flag(directory / name, content, 'strip_accents')
        keep_accents = _flag(directory / name, content, 'keep_accents')  # the name in SentencePiece models
        if accents is None:
            accents = lowercase if keep_accents is None else not keep_accents
        return Normalization(lowercase, accents, None if path.suffix == '.model' else False, name)
    return None


def _from_tokenizer_json(content: dict[str, Any], tokens: set[str]) -> Normalization | None:
    model, normalizer = content.get('model'), content.get('normalizer')
    if not isinstance(model, dict) or not isinstance(normalizer, dict):
        return None
    vocabulary, steps = model.get('vocab'), normalizer.get('normalizers', [normalizer])
    if not isinstance(vocabulary, dict) or vocabulary.keys() != tokens or not isinstance(steps, list) or not steps:
        return None
    bert, *others = steps
    if not isinstance(bert, dict) or type(lowercase := bert.get('lowercase')) is not bool:
        return None
    accents = bert.get('strip_accents')
    return Normalization(lowercase, lowercase if accents is None else bool(accents), bool(others), 'tokenizer.json')


def _flag(path: pathlib.Path, content: dict[str, Any], name: str) -> bool | None:
    value = content.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadInput(str(path), f'{name} is of type {type(value).__name__}', 'true or false')
    return value


# --- Evidence in tokens. ---


def has_capitals(tokens: Iterable[str]) -> bool:
    """Whether a vocabulary was trained on text with capital letters, judging by more than a few tokens."""
    words = [word for word in _words(tokens) if word.lower() != word.upper()]
    return sum(word != word.lower() for word in words) > _MIN_FRACTION * len(words)


def has_accents(tokens: Iterable[str]) -> bool:
    """Whether a vocabulary was trained on text with accents, or other marks that `strip_accents` removes.

    One token that is a single accented letter is enough, as it was part of the alphabet. Longer tokens may have been
    added later.
    """
    words = _words(tokens)
    accented = [word for word in words if _is_accented(word)]
    return any(len(word) == 1 for word in accented) or len(accented) > _MIN_FRACTION * len(words)


def _words(tokens: Iterable[str]) -> list[str]:
    """Returns the text of tokens, without '##' or '▁'; omits tokens such as [CLS] and [unused1]."""
    return [token.removeprefix('##').removeprefix('▁') for token in tokens if not _BRACKETED.fullmatch(token)]


def _is_accented(word: str) -> bool:
    decomposed = '' if word.isascii() else unicodedata.normalize('NFD', word)
    return any(unicodedata.category(character) == 'Mn' for character in decomposed)


# --- Evidence in text. ---


def find_normalization_issues(tokenizer: Tokenizer, sentences: list[str]) -> list[TokenizerIssue]:
    """Looks for signs that a tokenizer does not normalize text as its vocabulary expects.

    Args:
      sentences: a sample of the text; may be empty.
    """
    if not isinstance(tokenizer, WordPiece | SentencePiece):  # its file fixes all rules
        return []
    current = {'lowercase': tokenizer.lowercase, 'strip_accents': tokenizer.strip_accents}
    suggested = {
        'lowercase': tokenizer.lowercase and not has_capitals(tokenizer.tokens),
        'strip_accents': tokenizer.strip_accents and not has_accents(tokenizer.tokens),
    }
    if suggested != current:
        found = f'its tokens contain letters that {_describe_flags(current)} removes from the text'
        return [TokenizerIssue(found, _describe_flags(suggested), _flags_to_set(suggested))]
    rate = unknown_rate(tokenizer, tokenizer.encode_batch(sentences))
    if rate < _MIN_IMPROVEMENT:
        return []
    rates = [
        (unknown_rate(tokenizer, tokenizer.with_normalization(**other).encode_batch(sentences)), other)
        for lowercase, strip_accents in itertools.product((True, False), repeat=2)
        if (other := {'lowercase': lowercase, 'strip_accents': strip_accents}) != current
    ]
    best, other = min(rates, key=lambda item: item[0])
    if best > _MAX_REMAINING * rate or rate - best < _MIN_IMPROVEMENT:
        return []
    found = f'{rate:.2%} of the tokens of a sample are [UNK] with {_describe_flags(current)}'
    return [TokenizerIssue(found, f'{best:.3%} with {_describe_flags(other)}', _flags_to_set(other))]


def unknown_rate(tokenizer: Tokenizer, ids: list[list[int]]) -> float:
    """Returns the fraction of [UNK] among the ids of texts; 0 without ids."""
    return sum(row.count(tokenizer.unk_id) for row in ids) / max(1, sum(map(len, ids)))


def _describe_flags(flags: dict[str, bool]) -> str:
    return ', '.join(f'{name}={value}' for name, value in flags.items())


def _flags_to_set(flags: dict[str, bool]) -> str:
    return (
        ' '.join(f'--config.tokenizer.{name}={value}' for name, value in flags.items())
        + ', with the vocabulary file itself as tokenizer.path and another data.corpus'
    )
