"""What a tokenizer does to a part of the text, and what speaks against it, before all of the text is read."""

import dataclasses
import itertools
from collections import Counter
from typing import Any

from bert_jax import config
from bert_jax.console import say
from bert_jax.text.chunks import Source
from bert_jax.text.documents import ReadOptions, read_chunk
from bert_jax.text.normalization import TokenizerIssue, unknown_rate
from bert_jax.text.stats import Stats
from bert_jax.text.vocabulary import Tokenizer

_FEWEST_OF_WANTED = 0.9  # of the tokens asked for; a vocabulary with fewer is reported
PREVIEW_SENTENCES = 20_000
_LONGEST_BEGINNING = 1 << 20  # characters of a document, or the rest of a line more
SAMPLE_CHARACTERS = 200_000  # that the share of unknown tokens is measured on: 0.1% of 40,000 tokens are 40


def first_sentences(
    sources: list[Source], options: ReadOptions, *, most: int = PREVIEW_SENTENCES, characters: int | None = None
) -> list[str]:
    """Sentences from the start of the sources, up to `most` or `characters`; of a long document, only its beginning.

    Raises:
      BadInput: see `read_chunk`.
    """
    sentences, num_characters = [], 0
    for chunk in itertools.chain.from_iterable(source.chunks for source in sources):
        for document in read_chunk(chunk, options, Stats()):
            end = document.text.find('\n', _LONGEST_BEGINNING)
            beginning = document if end == -1 else dataclasses.replace(document, text=document.text[:end])
            for sentence in beginning.sentences:
                sentences.append(sentence)
                num_characters += len(sentence)
                if len(sentences) >= most or (characters is not None and num_characters >= characters):
                    return sentences
    return sentences


def describe_tokenizer(tokenizer: Tokenizer, sentences: list[str]) -> dict[str, Any]:
    """How a tokenizer cuts up sentences.

    Returns:
      `kind`, `vocab_size`, `tokens_per_word`, `unknown_rate`, and `splits`, {word: pieces} of words that occur often
      and those of them that are cut most; None for a rate of nothing.
    """
    ids = tokenizer.encode_batch(sentences)
    num_tokens, num_words = sum(map(len, ids)), sum(len(sentence.split()) for sentence in sentences)
    words = Counter(word for sentence in sentences for word in sentence.split() if word.isalpha())
    frequent = [word for word, count in words.most_common(2000) if count > 1]
    rows = tokenizer.encode_batch(frequent)
    pieces = {word: [tokenizer.token(i) for i in row] for word, row in zip(frequent, rows, strict=True)}
    most_cut = sorted(frequent, key=lambda word: (-len(pieces[word]), word))[:10]
    return {
        'kind': tokenizer.kind,
        'vocab_size': tokenizer.vocab_size,
        'tokens_per_word': num_tokens / num_words if num_words else None,
        'unknown_rate': unknown_rate(tokenizer, ids) if num_tokens else None,
        'splits': {word: pieces[word] for word in [*frequent[:10], *most_cut]},
    }


def find_vocab_size_issues(vocab_size: int, settings: config.Tokenizer) -> list[TokenizerIssue]:
    """What to say of a vocabulary trained here that is much smaller than asked for."""
    if vocab_size >= _FEWEST_OF_WANTED * settings.vocab_size:
        return []
    found = f'has {vocab_size:,} tokens of the {settings.vocab_size:,} asked for: all that this text gives'
    fix = f'more text, or --config.tokenizer.vocab_size={vocab_size}'
    return [TokenizerIssue(found, f'about tokenizer.vocab_size={settings.vocab_size:,}', fix)]


def report_issues(issues: list[TokenizerIssue], where: str, progress: bool) -> list[str]:
    """A line for each doubt; with `progress` they are printed."""
    lines = [f'{where}: {issue.found}; expected: {issue.expected}; fix: {issue.fix}' for issue in issues]
    for line in lines if progress else ():
        say(f'warning: {line}')
    return lines
