"""How a vocabulary that is brought along wants its text: in lower case or not, with accents or without.

The files beside it say; where none does, its tokens show it: text in lower case gives no token with a capital letter.
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
from bert_jax.text.vocabulary import Tokenizer

_ENOUGH = 0.01  # of the tokens with letters: a share that stray additions to a vocabulary do not reach
_BRACKETED = re.compile(r'\[.*\]|<.*>')  # [CLS], [unused1], <pad>
_FEWER_UNKNOWN = 0.001  # of the tokens of a sample: a difference below is no reason to change a setting
_SHARE_LEFT = 0.5  # and the better setting leaves at most that share of the unknown ones


@dataclasses.dataclass(frozen=True)
class Normalization:
    """What a file says about the text of its vocabulary.

    Attributes:
      compose: whether text is normalized to NFC; None where the file does not decide it.
      file: the name of the file.
    """

    lowercase: bool
    strip_accents: bool
    compose: bool | None
    file: str


class TokenizerIssue(NamedTuple):
    """A reason to believe that text is not normalized as its vocabulary wants; the fields are those of `BadInput`."""

    found: str
    expected: str
    fix: str


# --- What the files say. ---


def read_normalization(path: pathlib.Path, tokens: Iterable[str]) -> Normalization | None:
    """What the other files in the directory of a vocabulary say about it; None where there is none.

    A tokenizer.json counts if it is of the same tokens; then tokenizer_config.json, as `transformers` reads it, and
    config.json, if it names `do_lower_case`.

    Raises:
      BadInput: for a file that is damaged.
    """
    directory = path.parent
    if (directory / 'tokenizer.json').is_file() and path.suffix != '.model':
        content = read_given_json(directory / 'tokenizer.json', 'the tokenizer of a model')
        if (found := _from_tokenizer_json(content, {*tokens})) is not None:
            return found
    for name in ('tokenizer_config.json', 'config.json'):
        if not (directory / name).is_file():
            continue
        content = read_given_json(directory / name, 'the settings of a tokenizer or a model')
        lowercase = _flag(directory / name, content, 'do_lower_case')
        if lowercase is None and name == 'tokenizer_config.json' and path.suffix != '.model':
            lowercase = True  # `BertTokenizer` takes it so
        if lowercase is None:
            continue
        accents = _flag(directory / name, content, 'strip_accents')
        kept = _flag(directory / name, content, 'keep_accents')  # the name in models of SentencePiece
        if accents is None:
            accents = lowercase if kept is None else not kept
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


# --- What the tokens show. ---


def has_capitals(tokens: Iterable[str]) -> bool:
    """Whether a vocabulary was made of text with capital letters, not only a few of its tokens."""
    words = [word for word in _words(tokens) if word.lower() != word.upper()]
    return sum(word != word.lower() for word in words) > _ENOUGH * len(words)


def has_accents(tokens: Iterable[str]) -> bool:
    """Whether a vocabulary was made of text with accents, or other marks that `strip_accents` takes away.

    A single accented letter shows it: it was in the alphabet. Longer tokens may have been added by somebody.
    """
    words = _words(tokens)
    accented = [word for word in words if _is_accented(word)]
    return any(len(word) == 1 for word in accented) or len(accented) > _ENOUGH * len(words)


def _words(tokens: Iterable[str]) -> list[str]:
    """Tokens without the marks of their place in a word; those that are no text are left out."""
    return [token.removeprefix('##').removeprefix('▁') for token in tokens if not _BRACKETED.fullmatch(token)]


def _is_accented(word: str) -> bool:
    decomposed = '' if word.isascii() else unicodedata.normalize('NFD', word)
    return any(unicodedata.category(character) == 'Mn' for character in decomposed)


# --- What a text shows. ---


def find_normalization_issues(tokenizer: Tokenizer, sentences: list[str]) -> list[TokenizerIssue]:
    """Reasons to believe that a tokenizer normalizes text in another way than its vocabulary wants.

    Args:
      sentences: a sample of the text; may be empty.
    """
    current = {'lowercase': tokenizer.lowercase, 'strip_accents': tokenizer.strip_accents}
    wanted = {
        'lowercase': tokenizer.lowercase and not has_capitals(tokenizer.tokens),
        'strip_accents': tokenizer.strip_accents and not has_accents(tokenizer.tokens),
    }
    if wanted != current:
        found = f'its tokens have letters that {_named(current)} takes from the text'
        return [TokenizerIssue(found, _named(wanted), _fix(wanted))]
    rate = unknown_rate(tokenizer, tokenizer.encode_batch(sentences))
    if rate < _FEWER_UNKNOWN:
        return []
    rates = [
        (unknown_rate(tokenizer, tokenizer.with_normalization(**other).encode_batch(sentences)), other)
        for lowercase, strip_accents in itertools.product((True, False), repeat=2)
        if (other := {'lowercase': lowercase, 'strip_accents': strip_accents}) != current
    ]
    best, other = min(rates, key=lambda item: item[0])
    if best > _SHARE_LEFT * rate or rate - best < _FEWER_UNKNOWN:
        return []
    found = f'{rate:.2%} of the tokens of a sample are [UNK] with {_named(current)}'
    return [TokenizerIssue(found, f'{best:.3%} with {_named(other)}', _fix(other))]


def unknown_rate(tokenizer: Tokenizer, ids: list[list[int]]) -> float:
    """The share of [UNK] among the ids of some texts; 0 for none."""
    return sum(row.count(tokenizer.unk_id) for row in ids) / max(1, sum(map(len, ids)))


def _named(flags: dict[str, bool]) -> str:
    return ', '.join(f'{name}={value}' for name, value in flags.items())


def _fix(flags: dict[str, bool]) -> str:
    return (
        ' '.join(f'--config.tokenizer.{name}={value}' for name, value in flags.items())
        + ' with the vocabulary file itself as tokenizer.path, and another data.corpus'
    )
