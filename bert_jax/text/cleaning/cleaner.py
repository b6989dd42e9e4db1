"""Cleans documents: drops boilerplate lines, other languages and what breaks a rule, and replaces personal data.

The steps follow each other in this order: boilerplate lines, rules for lines, language, rules for documents,
replacements. A line or document is counted under the first rule that it breaks.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Generator, Iterable

from bert_jax import config
from bert_jax.config.cleaning import ANY_LANGUAGE, selected_rules
from bert_jax.text.chunks import Chunk
from bert_jax.text.cleaning.boilerplate import FILE_NAME, Boilerplate, line_digests
from bert_jax.text.cleaning.languages import check_languages, language_of
from bert_jax.text.cleaning.redaction import redact
from bert_jax.text.cleaning.rules import RULES, Rule, Text
from bert_jax.text.documents import Document, read_chunk
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.stats import Stats

OnDrop = Callable[[str, str], None]  # called with the reason and the text that is dropped or replaced


def check_cleaning(data: config.Data) -> None:
    """Checks the settings that need more than the config.

    Raises:
      BadInput: see `check_languages`.
    """
    if data.languages:
        check_languages(data.languages)


class Cleaner:
    """Cleans documents by the settings of `ReadOptions`."""

    def __init__(self, options: ReadOptions, directory: pathlib.Path, on_drop: OnDrop | None = None):
        """Prepares the rules.

        Args:
          directory: holds `boilerplate.npy`, if boilerplate is dropped: that of a job or of a corpus.
        """
        rules = [RULES[name] for name in selected_rules(options.quality_rules)]
        self._line_rules = [rule for rule in rules if rule.unit == 'line']
        self._document_rules = [rule for rule in rules if rule.unit == 'document']
        self._languages, self._redacted = options.languages, tuple(options.redact)
        self._boilerplate = Boilerplate(directory / FILE_NAME) if options.boilerplate_documents else None
        self._on_drop = on_drop

    def clean(self, documents: Iterable[Document], stats: Stats) -> Generator[Document, None, None]:
        """Yields the documents that remain, cleaned, and counts in `stats` what does not."""
        for document in documents:
            text = self._clean(document.text, functools.partial(self._drop, stats), stats)
            if text is not None:
                yield document if text is document.text else dataclasses.replace(document, text=text)

    def _drop(self, stats: Stats, reason: str, text: str) -> None:
        stats.counts[reason] += 1
        stats.dropped_characters[reason] += len(text)
        if self._on_drop is not None:
            self._on_drop(reason, text)

    def _clean(self, text: str, drop: OnDrop, stats: Stats) -> str | None:
        if self._boilerplate is not None or self._line_rules:
            text = self._without_dropped_lines(text, drop)
            if not text:
                stats.counts['document_of_dropped_lines'] += 1
                return None
        if self._languages:
            language = language_of(text)
            stats.languages[language] += 1
            if language not in self._languages and ANY_LANGUAGE not in self._languages:
                drop('other_language', text)
                return None
        parts = Text(text)
        for rule in self._document_rules:
            if rule.is_broken_by(parts):
                drop(rule.name, text)
                return None
        return redact(text, self._redacted, drop) if self._redacted else text

    def _without_dropped_lines(self, text: str, drop: OnDrop) -> str:
        lines = text.split('\n')
        are_boilerplate = [False] * len(lines)
        if self._boilerplate is not None:
            are_boilerplate = self._boilerplate.are_in(line_digests(text)).tolist()
        kept = []
        for line, is_boilerplate in zip(lines, are_boilerplate, strict=True):
            reason = 'boilerplate_line' if is_boilerplate else _first_broken(self._line_rules, line)
            if reason:
                drop(reason, line)
            else:
                kept.append(line)
        return text if len(kept) == len(lines) else '\n'.join(kept)


def _first_broken(rules: list[Rule], line: str) -> str:
    return next((rule.name for rule in rules if rule.is_broken_by(line)), '')


def read_cleaned(
    chunk: Chunk, options: ReadOptions, stats: Stats, directory: pathlib.Path, on_drop: OnDrop | None = None
) -> Generator[Document, None, None]:
    """Yields the documents of a chunk as a corpus has them: read by `read_chunk` and cleaned by a `Cleaner`."""
    documents = read_chunk(chunk, options, stats)
    return Cleaner(options, directory, on_drop).clean(documents, stats) if options.cleans else documents
