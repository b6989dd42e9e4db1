"""Finds out whether the ids of a text are those of its words, which the word cache of `prepare` relies on.

There are two ways in which this holds for a pipeline of the `tokenizers` library:

- It drops white space before the model runs, so words are what is between blanks (`BlankRule.DROPS`).
- It keeps white space, and a blank after any other character begins a pre-token. A word then begins with the blanks
  before it (`BlankRule.KEEPS`): 'a  b c' is 'a', '  b', ' c'.

Only components whose rules are known count. Everything else is encoded as a whole: slower, with the same ids.
"""

import enum
import re
from typing import Any

_LOCAL_NORMALIZERS = ('NFC', 'NFD', 'NFKC', 'NFKD', 'Lowercase')  # no effect across a blank; remove no character
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


def find_blank_rule(settings: dict[str, Any]) -> BlankRule | None:
    """Returns the rule of a pipeline; None if it has none, or is unknown.

    Args:
      settings: the content of a tokenizer.json.
    """
    normalizers, steps = (
        _steps(settings['normalizer'], 'normalizers'),
        _steps(settings['pre_tokenizer'], 'pretokenizers'),
    )
    added = settings['added_tokens']
    if any(_CROSSES_A_BLANK.search(token['content']) or token['rstrip'] for token in added):
        return None
    is_local = all(step['type'] in _LOCAL_NORMALIZERS or _replaces_blanks(step) for step in normalizers)
    if steps and steps[0]['type'] in _DROPPING:
        is_plain = not any(token['lstrip'] or ' ' in token['content'] for token in added)
        is_local = all(step['type'] in (*_LOCAL_NORMALIZERS, 'BertNormalizer') for step in normalizers)
        drops = is_plain and is_local and not any(step.get('prepend_scheme') == 'first' for step in steps)
        return BlankRule.DROPS if drops else None
    if not is_local:
        return None
    keeps_blanks = not any(_replaces_blanks(step) for step in normalizers)
    for step in steps:
        if step['type'] == 'Metaspace' and step['split']:
            return BlankRule.KEEPS
        if keeps_blanks and _splits_before_blanks(step):
            return BlankRule.KEEPS
        is_idle = step['type'] == 'Split' and step['pattern'] == {'String': ' '} and not keeps_blanks
        if not is_idle and not _is_local(step):
            return None
    return BlankRule.KEEPS if not keeps_blanks and _model_keeps_words(settings['model']) else None


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
