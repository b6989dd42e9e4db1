"""Finds the scripts whose words a vocabulary does not know."""

from collections import Counter

from bert_jax.text.normalization import TokenizerIssue
from bert_jax.text.scripts import OTHER, script_of
from bert_jax.text.vocabulary import Tokenizer

_MIN_WORDS = 5  # unknown words of a script that are reported
_MIN_FRACTION = 0.01  # of the words of a script
_MIN_FRACTION_OF_ALL = 0.0005  # of the words of the text
_NUM_SHOWN = 5


def find_unknown_scripts(tokenizer: Tokenizer, sentences: list[str]) -> list[TokenizerIssue]:
    """Finds out whether a vocabulary lacks the characters of a script, so that its words become [UNK].

    Args:
      sentences: a sample of the text; may be empty.
    """
    words = Counter(word for sentence in sentences for word in sentence.split())
    ids = dict(zip(words, tokenizer.encode_batch([tokenizer.word_prefix + word for word in words]), strict=True))
    unknown = [word for word, row in ids.items() if tokenizer.unk_id in row]
    characters = {character for word in words for character in word}
    missing = {character for character in characters if _is_missing(tokenizer, character)} if unknown else set()
    num_words = _count_by_script({word: words[word] for word in words}, set())
    num_unknown = _count_by_script({word: words[word] for word in unknown}, missing)
    total, reported = sum(words.values()), []
    for script, count in num_unknown.most_common():
        fraction = min(1.0, count / max(1, num_words[script]))
        if count < max(_MIN_WORDS, _MIN_FRACTION_OF_ALL * total) or fraction < _MIN_FRACTION:
            continue
        of_script = {character for character in characters if script_of(character) == script}
        num_missing = len(of_script & missing)
        lacks = f' (it lacks {num_missing:,} of {len(of_script):,} characters)' if num_missing else ''
        described = 'symbols' if script == OTHER else f'{script} characters'
        reported.append(f'{fraction:.1%} of the words with {described}{lacks}')
    if not reported:
        return []
    others = f', and words in {len(reported) - _NUM_SHOWN} more scripts' if len(reported) > _NUM_SHOWN else ''
    found = f'turns into [UNK], in a sample: {", ".join(reported[:_NUM_SHOWN])}{others}'
    fix = (
        '--config.tokenizer.path= trains a vocabulary on this text; to continue a model, choose one whose vocabulary '
        'has these characters, such as a multilingual or byte-level one'
    )
    return [TokenizerIssue(found, 'a vocabulary with the characters of the text', fix)]


def _is_missing(tokenizer: Tokenizer, character: str) -> bool:
    """Whether a character is unknown both as a word and within one."""
    alone, within = tokenizer.encode_batch([tokenizer.word_prefix + character, f'{tokenizer.word_prefix}a{character}'])
    return tokenizer.unk_id in alone and tokenizer.unk_id in within


def _count_by_script(words: dict[str, int], missing: set[str]) -> Counter[str]:
    """Counts words by the scripts of their missing characters; of words without any, by all of their scripts."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        scripts = {script_of(character) for character in ({*word} & missing or word)}
        for script in scripts:
            counts[script] += count
    return counts
