"""The rules for lines and documents that C4 and Gopher published, by name.

C4: Raffel et al. 2020, arXiv 1910.10683, section 2.2. Gopher: Rae et al. 2021, arXiv 2112.11446, appendix A.1.1. A word
is what white space separates, so the rules that count words suit scripts with blanks between words.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, Literal

from bert_jax.config.cleaning import QUALITY_RULES
from bert_jax.text.cleaning import repetition
from bert_jax.text.sentences import split_into_sentences

# C4, section 2.2.
_END_MARKS = ('.', '!', '?', '"', '”', '。', '！', '？', '؟', '۔', '।', '॥')  # the paper's, and those of other scripts
_ELLIPSES = ('...', '…')
_MIN_WORDS_OF_LINE = 5
_MIN_SENTENCES = 3
_POLICY = ('terms of use', 'privacy policy', 'cookie policy', 'uses cookies', 'use of cookies', 'use cookies')
_BEGINNING = 600  # characters; most documents of three sentences have them there

# Gopher, appendix A.1.1.
_MIN_WORDS = 50
_MAX_WORDS = 100_000
_MIN_WORD_LENGTH = 3  # characters, mean
_MAX_WORD_LENGTH = 10
_MAX_SYMBOLS = 0.1  # per word
_MAX_BULLETS = 0.9  # of the lines
_MAX_ELLIPSES = 0.3  # of the lines
_MIN_WITH_LETTERS = 0.8  # of the words
_MIN_STOP_WORDS = 2
_STOP_WORDS = frozenset('the be to of and that have with'.split())
_BULLETS = ('•', '‣', '▪', '◦', '●', '·', '-', '*', '–')
_LETTER = re.compile(r'[^\W\d_]')
_MAX_WORDS_IN_PHRASES = 100_000  # of a document: phrases take much more memory than the text
_PUNCTUATION = '.,;:!?"\'()[]“”‘’'


class Text:
    """The text of a document, and what several rules need of it."""

    def __init__(self, text: str):
        self.text = text

    @functools.cached_property
    def lines(self) -> list[str]:
        return self.text.split('\n')

    @functools.cached_property
    def words(self) -> list[str]:
        return self.text.split()

    @functools.cached_property
    def num_characters(self) -> int:
        """Characters of the words, with one blank after each."""
        return repetition.num_characters(self.words)

    @property
    def beginning(self) -> tuple[list[str], int]:
        """The words that are searched for repeated phrases, and their characters."""
        if len(self.words) <= _MAX_WORDS_IN_PHRASES:
            return self.words, self.num_characters
        words = self.words[:_MAX_WORDS_IN_PHRASES]
        return words, repetition.num_characters(words)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
      meaning: what it drops, after 'documents' or 'lines'.
      source: the paper.
      unit: what `is_broken_by` takes: a `Text` or a line.
    """

    name: str
    meaning: str
    source: str
    unit: Literal['document', 'line']
    is_broken_by: Callable[[Any], bool]


# --- C4. ---


def _lacks_terminal_punctuation(line: str) -> bool:
    return not line.endswith(_END_MARKS) or line.endswith(_ELLIPSES)


def _has_few_words(line: str) -> bool:
    return len(line.split(None, _MIN_WORDS_OF_LINE - 1)) < _MIN_WORDS_OF_LINE


def _mentions_javascript(line: str) -> bool:
    return 'javascript' in line.lower()


def _mentions_policy(line: str) -> bool:
    line = line.lower()
    return any(phrase in line for phrase in _POLICY)


def _has_placeholder_text(text: Text) -> bool:
    return 'lorem ipsum' in text.text.lower()


def _has_curly_bracket(text: Text) -> bool:
    return '{' in text.text


def _has_few_sentences(text: Text) -> bool:
    if len(text.lines) >= _MIN_SENTENCES:  # each has at least one
        return False
    beginnings = (line[:_BEGINNING] for line in text.lines)
    if sum(len(split_into_sentences(beginning)) for beginning in beginnings) > _MIN_SENTENCES:  # one may be cut
        return False
    return sum(len(split_into_sentences(line)) for line in text.lines) < _MIN_SENTENCES


# --- Gopher: quality. ---


def _has_unusual_word_count(text: Text) -> bool:
    return not _MIN_WORDS <= len(text.words) <= _MAX_WORDS


def _has_unusual_word_length(text: Text) -> bool:
    num_words = len(text.words)
    return not _MIN_WORD_LENGTH * num_words <= text.num_characters - num_words <= _MAX_WORD_LENGTH * num_words


def _has_many_symbols(text: Text) -> bool:
    limit = _MAX_SYMBOLS * len(text.words)
    return text.text.count('#') > limit or sum(map(text.text.count, _ELLIPSES)) > limit


def _has_many_bullets(text: Text) -> bool:
    return sum(line.startswith(_BULLETS) for line in text.lines) > _MAX_BULLETS * len(text.lines)


def _has_many_ellipses(text: Text) -> bool:
    return sum(line.endswith(_ELLIPSES) for line in text.lines) > _MAX_ELLIPSES * len(text.lines)


def _has_few_words_with_letters(text: Text) -> bool:
    others = [word for word in text.words if not word.isalpha() and not _LETTER.search(word)]
    return len(text.words) - len(others) < _MIN_WITH_LETTERS * len(text.words)


def _lacks_stop_words(text: Text) -> bool:
    words = set(text.words)
    if len(_STOP_WORDS & words) >= _MIN_STOP_WORDS:
        return False
    return len(_STOP_WORDS & {word.strip(_PUNCTUATION).lower() for word in words}) < _MIN_STOP_WORDS


# --- Gopher: repetition (table A1). ---


def _has_duplicate_lines(text: Text) -> bool:
    return repetition.has_duplicate_lines(text.lines)


def _has_a_frequent_ngram(text: Text) -> bool:
    return repetition.has_a_frequent_ngram(*text.beginning)


def _has_duplicate_ngrams(text: Text) -> bool:
    return repetition.has_duplicate_ngrams(*text.beginning)


def _shares(limits: dict[int, float]) -> str:
    *first, last = (f'{limit:.0%}' for limit in limits.values())
    return f'{", ".join(first)} or {last}'


# (name, unit, what it drops, function). Each paper's rules, in the order of `QUALITY_RULES`.
_C4: tuple[tuple[str, Any, str, Callable], ...] = (
    ('c4_terminal_punctuation', 'line', 'that do not end in . ! ? or a quotation mark', _lacks_terminal_punctuation),
    ('c4_short_lines', 'line', f'of fewer than {_MIN_WORDS_OF_LINE} words', _has_few_words),
    ('c4_javascript', 'line', 'with the word Javascript', _mentions_javascript),
    ('c4_policy', 'line', 'about cookies, privacy policy or terms of use', _mentions_policy),
    ('c4_lorem_ipsum', 'document', 'with the phrase lorem ipsum', _has_placeholder_text),
    ('c4_curly_bracket', 'document', 'with a curly bracket, as in code', _has_curly_bracket),
    ('c4_sentences', 'document', f'of fewer than {_MIN_SENTENCES} sentences', _has_few_sentences),
)
_GOPHER: tuple[tuple[str, Any, str, Callable], ...] = (
    (
        'gopher_word_count',
        'document',
        f'of fewer than {_MIN_WORDS} or more than {_MAX_WORDS:,} words',
        _has_unusual_word_count,
    ),
    (
        'gopher_word_length',
        'document',
        f'with a mean word length below {_MIN_WORD_LENGTH} or above {_MAX_WORD_LENGTH} characters',
        _has_unusual_word_length,
    ),
    (
        'gopher_symbols',
        'document',
        f'with more than {_MAX_SYMBOLS} hash signs, or ellipses, per word',
        _has_many_symbols,
    ),
    (
        'gopher_bullets',
        'document',
        f'in which more than {_MAX_BULLETS:.0%} of the lines begin with a bullet',
        _has_many_bullets,
    ),
    (
        'gopher_ellipses',
        'document',
        f'in which more than {_MAX_ELLIPSES:.0%} of the lines end in an ellipsis',
        _has_many_ellipses,
    ),
    (
        'gopher_letters',
        'document',
        f'in which fewer than {_MIN_WITH_LETTERS:.0%} of the words contain a letter',
        _has_few_words_with_letters,
    ),
    (
        'gopher_stop_words',
        'document',
        f'without {_MIN_STOP_WORDS} of the English words the, be, to, of, and, that, have, with',
        _lacks_stop_words,
    ),
    (
        'gopher_duplicate_lines',
        'document',
        f'in which more than {repetition.MAX_DUPLICATE_LINES:.0%} of the lines, or '
        f'{repetition.MAX_DUPLICATE_LINE_CHARACTERS:.0%} of their characters, repeat an earlier line',
        _has_duplicate_lines,
    ),
    (
        'gopher_top_ngrams',
        'document',
        f'in which one phrase of 2, 3 or 4 words makes up more than {_shares(repetition.MAX_TOP_NGRAM)} of the '
        'characters',
        _has_a_frequent_ngram,
    ),
    (
        'gopher_duplicate_ngrams',
        'document',
        'in which repeated phrases of 5, 6, 7, 8, 9 or 10 words make up more than '
        f'{_shares(repetition.MAX_DUPLICATE_NGRAMS)} of the characters',
        _has_duplicate_ngrams,
    ),
)
RULES = {
    name: Rule(name, meaning, source, unit, function)
    for source, rules in (('C4, section 2.2', _C4), ('Gopher, appendix A.1.1', _GOPHER))
    for name, unit, meaning, function in rules
}
assert tuple(RULES) == QUALITY_RULES
