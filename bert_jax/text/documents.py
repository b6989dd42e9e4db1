"""Reads the documents of a chunk one at a time, in memory that does not grow with the source."""

import dataclasses
from collections import Counter
from collections.abc import Generator, Iterable, Iterator

from bert_jax.errors import BadInput
from bert_jax.text import chunks
from bert_jax.text.chunks import Chunk, FileRange
from bert_jax.text.sentences import split_into_sentences
from bert_jax.text.sources.formats import AUTOMATIC
from bert_jax.text.sources.kinds import ENCODED_KINDS, FILE_KINDS, READERS
from bert_jax.text.sources.lines import resolve_encoding
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.stats import Stats

_LINES_AT_ONCE = 1 << 14


@dataclasses.dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
      text: lines separated by line feeds; each is stripped, and none is empty or contains NUL.
      group: the value of `data.group_field`.
      is_split: whether each line is one sentence.
    """

    text: str  # not a list of lines: many short strings take much more memory
    group: str | None = None
    is_split: bool = False

    @property
    def lines(self) -> list[str]:
        return self.text.split('\n')

    @property
    def sentences(self) -> list[str]:
        return self.lines if self.is_split else [s for line in self.lines for s in split_into_sentences(line)]

    @property
    def num_characters(self) -> int:
        return len(self.text) - self.text.count('\n')


def read_chunk(chunk: Chunk, options: ReadOptions, stats: Stats) -> Generator[Document, None, None]:
    """Yields the documents of a chunk, in order.

    In a text file, each line is a sentence or paragraph, and a blank line or the end of the file ends a document.

    Raises:
      BadInput: for a file that cannot be read, is damaged, or consists mostly of bad records or bytes that are not
        UTF-8. The message names the file and line, never the text.
    """
    for file_range in chunk.ranges:
        try:
            yield from _read_range(chunk.kind, file_range, options, stats)
        except OSError as error:
            raise BadInput(
                file_range.path, f'cannot be read ({error.strerror or type(error).__name__})', 'a file to read'
            ) from error


def _read_range(kind: str, file_range: FileRange, options: ReadOptions, stats: Stats) -> Iterator[Document]:
    num_documents, num_bad = 0, stats.counts['bad_record_skipped']
    if options.encoding == AUTOMATIC and kind in ENCODED_KINDS:
        encoding = resolve_encoding(file_range.path, options.encoding)
        options = dataclasses.replace(options, encoding=encoding)
        stats.add_encoding(file_range.path, encoding)
    with stats.of_file(file_range.path) as check:
        for paragraphs, group in READERS[kind](file_range, options, stats):
            for document in _documents(paragraphs, group, options, stats):
                num_documents += 1
                yield document
            check()
    if not num_documents and file_range.is_whole_file and kind in FILE_KINDS:
        if stats.counts['bad_record_skipped'] > num_bad:
            raise stats.bad_records_error('no record can be used')
        stats.counts['empty_file'] += 1


def _documents(paragraphs: Iterable[str], group: str | None, options: ReadOptions, stats: Stats) -> Iterator[Document]:
    """Yields one document, or several if it is too long."""
    lines, blocks, size = [], [], 0
    for line in _short_lines(paragraphs, stats.counts):
        if size >= chunks.MAX_DOCUMENT_LENGTH:
            stats.counts['long_document_cut'] += 1
            stats.characters += size
            yield Document('\n'.join(blocks + lines), group, not options.split_sentences)
            lines, blocks, size = [], [], 0
        elif len(lines) >= _LINES_AT_ONCE:  # joined, they take less memory
            blocks.append('\n'.join(lines))
            lines = []
        lines.append(line)
        size += len(line)
    stats.characters += size
    if lines:
        yield Document('\n'.join(blocks + lines), group, not options.split_sentences)
    else:
        stats.counts['empty_document'] += 1


def _short_lines(paragraphs: Iterable[str], counts: Counter) -> Iterator[str]:
    """Strips paragraphs and splits long ones, as records may hold lines of any length."""
    for paragraph in paragraphs:
        if len(paragraph) <= chunks.MAX_LINE_LENGTH:
            pieces = (paragraph,)
        else:
            starts = range(0, len(paragraph), chunks.MAX_LINE_LENGTH)
            pieces = [paragraph[start : start + chunks.MAX_LINE_LENGTH] for start in starts]
            counts['long_line_split'] += len(pieces) - 1
        for piece in pieces:
            if text := piece.strip():
                yield text
