"""Finds out whether the ids of a text are those of its words, which the word cache of `prepare` relies on.

There are two ways in which this holds for a pipeline of the `tokenizers` library:

- It drops white space before the model runs, so words are what is between blanks (`BlankRule.DROPS`).
- It keeps white space, and a blank after any other character begins a pre-token. A word then begins with the blanks
  before it (`BlankRule.KEEPS`): 'a  b c' is 'a', '  b', ' c'.

Components whose rules are simple are known by name. Normalizers with tables (SentencePiece's) are tried on every
character (`BlankRule.MOSTLY_KEEPS`), and texts that contain an exception are encoded as a whole: slower, with the same
ids. So is every text if a component is unknown.
"""

import enum
import functools
import itertools
import re
import unicodedata
from collections.abc import Callable
from typing import Any

_LOCAL_NORMALIZERS = ('NFC', 'NFD', 'NFKC', 'NFKD', 'Lowercase')  # no effect across a blank; remove no character
_CHECKED_NORMALIZERS = (*_LOCAL_NORMALIZERS, 'Precompiled', 'StripAccents', 'BertNormalizer', 'Nmt', 'Strip', 'Prepend')
_PATTERNS = (' xc', ' x', ' x\tc', '  x', ' c', ' cx', '  c', ' x')  # words with a character c, after blanks
_TRIED_AT_ONCE = 128
_LIKE_ASCII = ('Lu', 'Ll', 'Lt', 'Lo', 'Nd', 'Cn', 'Co', 'Cs')  # Unicode categories
# Letters with Grapheme_Cluster_Break=Prepend (Unicode 16, UAX 29).
PREPENDED_LETTERS = (
    '\u0d4e\U000111c2\U000111c3\U000113d1\U0001193f\U00011941\U00011a3a\U00011a84\U00011a85\U00011a86'
    '\U00011a87\U00011a88\U00011a89\U00011d46\U00011f02'
)
_DROPPING = ('WhitespaceSplit', 'Whitespace', 'BertPreTokenizer')
_LOCAL_BEHAVIORS = ('Isolated', 'Contiguous', 'Removed')
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT4 = r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
# Patterns of which no alternative matches a blank after another character, or looks back.
_SPLIT_BEFORE_BLANKS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    rf'{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_GPT4}',  # GPT-4, Llama 3
    rf'{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_GPT4}',  # Qwen 2
)
_CROSSES_A_BLANK = re.compile(r'[^\s▁][ ▁]')


class BlankRule(enum.Enum):
    """How the ids of a text follow from those of its words."""

    DROPS = 'words are separated by blanks, which have no ids'
    KEEPS = 'a word begins with the blanks before it'
    MOSTLY_KEEPS = 'the same, except in texts with certain characters'


def find_blank_rule(settings: dict[str, Any]) -> BlankRule | None:
    """Returns the rule of a pipeline; None if it has none, or if its components are unknown.

    Args:
      settings: the content of a tokenizer.json.
    """
    normalizers = _steps(settings['normalizer'], 'normalizers')
    steps = _steps(settings['pre_tokenizer'], 'pretokenizers')
    added = settings['added_tokens']
    if any(_CROSSES_A_BLANK.search(token['content']) or token['rstrip'] for token in added):
        return None
    if not any(' ' in token['content'] for token in added) and _drops_white_space(normalizers, steps):
        return BlankRule.DROPS
    keeps_blanks = not any(_replaces_blanks(step) for step in normalizers)
    is_local = all(step['type'] in _LOCAL_NORMALIZERS or _replaces_blanks(step) for step in normalizers)
    if not _splits_at_blanks(steps, keeps_blanks):
        is_idle = all(step['type'] == 'Split' and step['pattern'] == {'String': ' '} for step in steps)
        keeps_words = is_local and is_idle and not keeps_blanks and _model_keeps_words(settings['model'])
        return BlankRule.KEEPS if keeps_words else None
    if is_local and steps[0]['type'] not in _DROPPING:
        return BlankRule.KEEPS
    is_known = all(step['type'] in _CHECKED_NORMALIZERS or _replaces_known_text(step) for step in normalizers)
    return BlankRule.MOSTLY_KEEPS if is_known else None


def find_exceptions(split: Callable[[str], list[str]]) -> re.Pattern[str]:
    """Finds the texts to which `MOSTLY_KEEPS` does not apply: those in which the pattern is found.

    These are texts with a character next to which a blank may not separate words, such as one that normalization
    removes. Each character is tried on both sides of a blank, alone and within words. Letters and digits outside ASCII
    are assumed to be like those in it, except letters that join a blank after them to one grapheme.

    Args:
      split: normalizes a text and returns its pre-tokens.
    """
    split_word = functools.cache(split)

    def find(characters: list[str]) -> list[str]:
        words = [pattern.replace('c', character) for character in characters for pattern in _PATTERNS]
        if split(''.join(words)) == [piece for word in words for piece in split_word(word)]:
            return []
        middle = len(characters) // 2
        return characters if not middle else find(characters[:middle]) + find(characters[middle:])

    if find(['x']):
        return re.compile('')
    tried = [*map(chr, itertools.chain(range(1, 0x0A), range(0x0B, 0x20), range(0x21, 0x7F))), *PREPENDED_LETTERS]
    others = map(chr, itertools.chain(range(0x7F, 0x20000), range(0xE0000, 0xE1000)))
    tried += [character for character in others if unicodedata.category(character) not in _LIKE_ASCII]
    parts = (tried[start : start + _TRIED_AT_ONCE] for start in range(0, len(tried), _TRIED_AT_ONCE))
    exceptions = ''.join(itertools.chain.from_iterable(map(find, parts)))
    return re.compile(f'[{re.escape(exceptions)}]' if exceptions else '(?!)')


def _steps(component: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """Returns the components of a sequence, or the one component."""
    if component is None:
        return []
    if component['type'] != 'Sequence':
        return [component]
    return [step for part in component[name] for step in _steps(part, name)]


def _replaces_blanks(normalizer: dict[str, Any]) -> bool:
    """Whether a normalizer writes the mark '▁' for a blank, as in Gemma's."""
    return normalizer == {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'}


def _replaces_known_text(normalizer: dict[str, Any]) -> bool:
    """Whether a normalizer replaces a character, runs of white space, or blanks at the ends of a text."""
    pattern = normalizer['pattern'] if normalizer['type'] == 'Replace' else {}
    return len(pattern.get('String', '')) == 1 or pattern.get('Regex') in (' {2,}', r'\s+', '^ | $', '^ ', ' $')


def _drops_white_space(normalizers: list[dict[str, Any]], steps: list[dict[str, Any]]) -> bool:
    """Whether words are what is between blanks, whatever precedes them."""
    is_local = all(step['type'] in (*_LOCAL_NORMALIZERS, 'BertNormalizer') for step in normalizers)
    marks_first = any(step.get('prepend_scheme') == 'first' for step in steps)
    return bool(steps) and steps[0]['type'] in _DROPPING and is_local and not marks_first


def _splits_at_blanks(steps: list[dict[str, Any]], keeps_blanks: bool) -> bool:
    """Whether pre-tokenizers split between a character other than white space and a blank."""
    for step in steps:
        if step['type'] in _DROPPING or (step['type'] == 'Metaspace' and step['split']):
            return True
        if keeps_blanks and _splits_before_blanks(step):
            return True
        if not _is_local(step):
            return False
    return False


def _splits_before_blanks(step: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer always splits between a character other than white space and a blank."""
    if step['type'] == 'ByteLevel':
        return step['use_regex']
    if step['type'] != 'Split' or step['pattern'].get('Regex') not in _SPLIT_BEFORE_BLANKS:
        return False
    return (step['behavior'], step['invert']) in (('Isolated', False), ('Isolated', True), ('Removed', True))


def _is_local(step: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer that runs first never lets text on one side of a blank affect the other side."""
    return step['type'] == 'Digits' or (step['type'] == 'Punctuation' and step['behavior'] in _LOCAL_BEHAVIORS)


def _model_keeps_words(model: dict[str, Any]) -> bool:
    """Whether a model that gets a whole text never joins '▁' to a character before it.

    Byte-pair merges depend on nothing but their own characters, so no token may contain '▁' after another character.
    """
    if model['type'] != 'BPE' or '▁' not in model['vocab']:  # if '▁' is unknown, it may be fused with its neighbour
        return False
    if model['ignore_merges'] or model['continuing_subword_prefix'] or model['end_of_word_suffix']:
        return False
    pairs = (merge if isinstance(merge, list) else merge.split(' ') for merge in model['merges'])
    return not any(_CROSSES_A_BLANK.search(''.join(pair)) for pair in pairs)
