"""Previews a tokenizer on the first sentences of the text, and warns about problems before all of it is read."""

import dataclasses
import itertools
from collections import Counter
from typing import Any

from bert_jax import config
from bert_jax.console import say
from bert_jax.text.chunks import Source
from bert_jax.text.documents import read_chunk
from bert_jax.text.normalization import TokenizerIssue, find_normalization_issues, unknown_rate
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.stats import Stats
from bert_jax.text.unknown_words import find_unknown_scripts
from bert_jax.text.vocabulary import Tokenizer

_MIN_OF_REQUESTED = 0.9  # of `vocab_size`; a smaller vocabulary is reported
PREVIEW_SENTENCES = 20_000
_MAX_BEGINNING = 1 << 20  # characters of a document, up to the end of a line
SAMPLE_CHARACTERS = 200_000  # for the fraction of unknown tokens; about 40,000 tokens, of which 0.1% are 40


def first_sentences(
    sources: list[Source], options: ReadOptions, *, limit: int = PREVIEW_SENTENCES, characters: int | None = None
) -> list[str]:
    """Reads up to `limit` sentences, or `characters`, from the start of the sources; of long documents, the beginning.

    Raises:
      BadInput: see `read_chunk`.
    """
    sentences, num_characters = [], 0
    for chunk in itertools.chain.from_iterable(source.chunks for source in sources):
        for document in read_chunk(chunk, options, Stats()):
            end = document.text.find('\n', _MAX_BEGINNING)
            beginning = document if end == -1 else dataclasses.replace(document, text=document.text[:end])
            for sentence in beginning.sentences:
                sentences.append(sentence)
                num_characters += len(sentence)
                if len(sentences) >= limit or (characters is not None and num_characters >= characters):
                    return sentences
    return sentences


def describe_tokenizer(tokenizer: Tokenizer, sentences: list[str]) -> dict[str, Any]:
    """Measures how a tokenizer splits sentences.

    Returns:
      `kind`, `vocab_size`, `tokens_per_word`, `unknown_rate`, and `splits`: {word: subwords} of the ten most frequent
      words, and of the ten frequent words with the most subwords. Without sentences, the rates are None.
    """
    ids = tokenizer.encode_batch(sentences)
    num_tokens, num_words = sum(map(len, ids)), sum(len(sentence.split()) for sentence in sentences)
    words = Counter(word for sentence in sentences for word in sentence.split() if word.isalpha())
    frequent = [word for word, count in words.most_common(2000) if count > 1]
    prefix = tokenizer.word_prefix
    rows = tokenizer.encode_batch([prefix + word for word in frequent])
    subwords = {
        word: [tokenizer.token(i).removeprefix(prefix) for i in row] for word, row in zip(frequent, rows, strict=True)
    }
    most_split = sorted(frequent, key=lambda word: (-len(subwords[word]), word))[:10]
    return {
        'kind': tokenizer.kind,
        'vocab_size': tokenizer.vocab_size,
        'tokens_per_word': num_tokens / num_words if num_words else None,
        'unknown_rate': unknown_rate(tokenizer, ids) if num_tokens else None,
        'splits': {word: subwords[word] for word in [*frequent[:10], *most_split]},
    }


def find_vocab_size_issues(vocab_size: int, settings: config.Tokenizer) -> list[TokenizerIssue]:
    """Finds out whether a vocabulary trained here is much smaller than requested."""
    if vocab_size >= _MIN_OF_REQUESTED * settings.vocab_size:
        return []
    found = f'has only {vocab_size:,} of the {settings.vocab_size:,} requested tokens; this text yields no more'
    fix = f'--config.tokenizer.vocab_size={vocab_size}, or add more text'
    return [TokenizerIssue(found, f'about tokenizer.vocab_size={settings.vocab_size:,}', fix)]


def find_vocabulary_issues(tokenizer: Tokenizer, is_from_file: bool, sentences: list[str]) -> list[TokenizerIssue]:
    """Looks for signs that a provided vocabulary does not suit the text: its normalization, or unknown scripts.

    Args:
      is_from_file: whether `tokenizer.path` names it; that of an initial model has the normalization of the model.
      sentences: a sample of the text; may be empty.
    """
    issues = find_normalization_issues(tokenizer, sentences) if is_from_file else []
    return issues or find_unknown_scripts(tokenizer, sentences)


def report_issues(issues: list[TokenizerIssue], where: str, progress: bool) -> list[str]:
    """Returns one line per issue; prints them if `progress`."""
    lines = [f'{where}: {issue.found}; expected: {issue.expected}; fix: {issue.fix}' for issue in issues]
    for line in lines if progress else ():
        say(f'warning: {line}')
    return lines


def report_vocabulary(
    provided: Tokenizer, settings: config.Tokenizer, sentences: list[str], progress: bool
) -> list[str]:
    """Returns one line per possible problem of a provided vocabulary with a sample; prints them if `progress`."""
    where = f'config.tokenizer.path={settings.path}' if settings.path else 'the tokenizer of the initial model'
    return report_issues(find_vocabulary_issues(provided, bool(settings.path), sentences), where, progress)
