"""The kinds of sources: how each is divided and read. A new kind of file is a row in `FILE_KINDS`."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from etils import epath

from bert_jax.text.chunks import FileRange, SizedRanges
from bert_jax.text.sources import arrow, delimited, parquet, python_docs, text, tfds, web
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.records import Texts
from bert_jax.text.stats import Stats

Reader = Callable[[FileRange, ReadOptions, Stats], Texts]


class FileKind(NamedTuple):
    """A kind of file.

    Attributes:
      divide: returns the ranges of a file: (path, its bytes, bytes of a range, options).
      read: yields (paragraphs, group) for each document of a range.
      suffixes: of the files that are read in a directory; () for all.
    """

    divide: Callable[[epath.Path, int, int, ReadOptions], SizedRanges]
    read: Reader
    suffixes: tuple[str, ...] = ()


FILE_KINDS: dict[str, FileKind] = {
    'text': FileKind(text.divide_text, text.read_text),
    'jsonl': FileKind(text.divide, text.read_jsonl, ('.jsonl', '.json', '.ndjson')),
    'csv': FileKind(functools.partial(delimited.divide, 'csv'), functools.partial(delimited.read, 'csv'), ('.csv',)),
    'tsv': FileKind(functools.partial(delimited.divide, 'tsv'), functools.partial(delimited.read, 'tsv'), ('.tsv',)),
    'parquet': FileKind(parquet.divide, parquet.read, ('.parquet',)),
    'arrow': FileKind(arrow.divide, arrow.read, ('.arrow',)),  # of hf:DIR
    'html': FileKind(web.divide, web.read_html, ('.html', '.htm', '.xhtml')),
    'warc': FileKind(web.divide, web.read_warc, ('.warc', '.wet')),
}
ENCODED_KINDS = ('text', 'jsonl', 'csv', 'tsv')  # whose files may have any encoding
READERS: dict[str, Reader] = {
    'python-docs': python_docs.read,
    'tfds': tfds.read,
    **{name: kind.read for name, kind in FILE_KINDS.items()},
}
