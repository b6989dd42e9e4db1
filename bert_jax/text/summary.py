"""The result of `prepare`: what a corpus holds, or how much of it is still to be encoded."""

import dataclasses
import pathlib
from typing import Any

from bert_jax import config
from bert_jax.text.preview import find_vocab_size_issues, report_issues
from bert_jax.text.tokenizer import Tokenizer, load_saved_tokenizer


@dataclasses.dataclass(frozen=True)
class PrepareSummary:
    """The contents of a corpus, as `prepare --json` prints them.

    Attributes:
      documents, sentences, tokens: counts over both splits.
      unknown_rate: fraction of the tokens that are [UNK].
      tokens_per_word: tokens divided by whitespace-separated words.
      seconds: wall-clock time of the process that wrote the corpus, including tokenizer training.
      dropped: {reason: count} of everything that was left out or replaced.
      path: the directory.
      reused: whether the corpus already existed with the same settings.
      splits: {split: {documents, sentences, tokens}}.
      dropped_characters: {reason: characters} of what cleaning left out or replaced.
      languages: {code: documents} before other languages were dropped, if `data.languages` is set.
      vocab_size: tokens in the vocabulary.
      vocab_size_requested: `tokenizer.vocab_size` of the config; None for a provided tokenizer.
      warnings: possible problems with the tokenizer, one sentence each.
    """

    documents: int
    sentences: int
    tokens: int
    unknown_rate: float
    tokens_per_word: float
    seconds: float
    dropped: dict[str, int]
    path: str
    reused: bool
    splits: dict[str, dict[str, int]]
    dropped_characters: dict[str, int]
    languages: dict[str, int]
    vocab_size: int
    vocab_size_requested: int | None
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A corpus whose other shards have not finished; the fields are keys of `prepare --json`.

    Attributes:
      path: of the corpus.
      pieces: chunks of the corpus.
      pieces_left: chunks that other shards have not encoded yet.
    """

    path: str
    pieces: int
    pieces_left: int


def summarize(
    directory: pathlib.Path,
    manifest: dict[str, Any],
    provided: Tokenizer | None,
    settings: config.Tokenizer,
    warnings: list[str],
    progress: bool,
    *,
    reused: bool,
) -> PrepareSummary:
    """Returns the summary of a corpus; `warnings` are those about its tokenizer that were printed already."""
    splits, vocab_size = manifest['splits'], load_saved_tokenizer(directory / 'tokenizer').vocab_size
    if provided is None:
        warnings = [*warnings, *report_issues(find_vocab_size_issues(vocab_size, settings), 'the tokenizer', progress)]
    totals = {name: sum(split[name] for split in splits.values()) for name in ('documents', 'sentences', 'tokens')}
    measured = {name: manifest[name] for name in ('unknown_rate', 'tokens_per_word', 'seconds', 'dropped')}
    measured |= {name: manifest.get(name, {}) for name in ('dropped_characters', 'languages')}
    requested = settings.vocab_size if provided is None else None
    sizes = {'vocab_size': vocab_size, 'vocab_size_requested': requested}
    return PrepareSummary(
        **totals, **measured, **sizes, path=str(directory), reused=reused, splits=splits, warnings=warnings
    )
