"""Reads text columns of parquet files in small batches of rows, in bounded memory however the rows are encoded.

A page can only be decompressed as a whole, so reading large pages takes a few times their size.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

import pyarrow
from etils import epath
from pyarrow import parquet

from bert_jax.errors import BadInput
from bert_jax.text.chunks import FileRange, SizedRanges
from bert_jax.text.sources.columns import check_columns, column_of, iter_rows
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.records import BYTES_AT_ONCE, RECORDS_AT_ONCE, Texts, text_or_skip
from bert_jax.text.stats import Stats

_BUFFER_BYTES = 1 << 20  # per read
_LONG_ROW_BYTES = 1 << 16  # rows of this average length are read one at a time
_VALUES_PER_PAGE = 1024
_ROWS_AT_ONCE = 1024
_MAX_EXPANSION = 1000  # factor by which a column may expand; text compresses less
_SMALL_BYTES = 1 << 28  # a column may always expand to this size


def divide(path: epath.Path, length: int, size: int, options: ReadOptions) -> SizedRanges:
    """Divides a file into row groups; sizes are those of the uncompressed data.

    Raises:
      BadInput: for a file that is not parquet, lacks a column, or has a text column of another type.
    """
    try:
        with path.open('rb') as file:
            table = parquet.ParquetFile(file)
            schema, metadata = table.schema_arrow, table.metadata
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable_error(path, error) from None
    check_columns(path, schema, options)
    sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    if sum(sizes) < 2 * size:
        return [(FileRange(str(path)), sum(sizes))]
    return [(FileRange(str(path), group, group + 1), sizes[group]) for group in range(len(sizes))]


def read(file_range: FileRange, options: ReadOptions, stats: Stats) -> Texts:
    """Yields the text of the rows of some row groups."""
    path, start, stop = file_range.path, file_range.start, file_range.stop
    for row, record in _read_rows(path, start, stop, options.fields, BYTES_AT_ONCE, RECORDS_AT_ONCE):
        yield from text_or_skip(record, dict, options, stats, functools.partial('{}:{}'.format, path, row))


def _read_rows(
    path: str, start: int, stop: int, columns: tuple[str, ...], num_bytes: int, num_rows: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (index of the row in its file, {column: value}) of the row groups [start, stop); `stop` -1 is the end.

    Args:
      num_bytes, num_rows: upper limits for a batch, unless one row is larger.

    Raises:
      BadInput: for a file that is damaged, or that expands more than text can.
    """
    with epath.Path(path).open('rb') as file:
        try:
            table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            stop = table.metadata.num_row_groups if stop == -1 else stop
            row = sum(table.metadata.row_group(group).num_rows for group in range(start)) - 1
            for group in range(start, stop):
                _check_expansion(path, table.metadata.row_group(group))
                share = num_bytes // len(columns)
                count = min(_rows_at_once(table, file, group, column, share, num_rows) for column in columns)
                for batch in table.iter_batches(count, [group], list(columns), use_threads=False):
                    for record in iter_rows(batch, columns):
                        row += 1
                        yield row, record
        except (pyarrow.ArrowException, OSError) as error:
            raise _unreadable_error(path, error) from None


def read_columns(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yields every row of a file as {column: value}, with texts decoded.

    Raises:
      BadInput: for a file that is damaged, or that expands more than text can.
    """
    with epath.Path(path).open('rb') as file:
        try:
            table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            for group in range(table.metadata.num_row_groups):
                _check_expansion(str(path), table.metadata.row_group(group))
                for batch in table.iter_batches(_ROWS_AT_ONCE, [group], use_threads=False):
                    yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable_error(path, error) from None


def _column_chunk(metadata: Any, column: str) -> Any:
    chunks = (metadata.column(column_index) for column_index in range(metadata.num_columns))
    return next((chunk for chunk in chunks if chunk.path_in_schema == column), None)  # None: a list or a struct


def _rows_at_once(table: parquet.ParquetFile, file: Any, group: int, column: str, num_bytes: int, max_rows: int) -> int:
    """Returns how many rows of a row group fit into `num_bytes`.

    The declared size counts a repeated value once, so with a dictionary every row counts as its longest value.
    """
    chunk = _column_chunk(table.metadata.row_group(group), column)
    if chunk is None:
        return max_rows
    size = chunk.total_uncompressed_size / max(1, chunk.num_values)
    if size >= _LONG_ROW_BYTES:
        return 1
    if chunk.has_dictionary_page and chunk.total_uncompressed_size * max_rows > num_bytes:
        position = file.tell()
        encoded = parquet.ParquetFile(file, read_dictionary=[column], pre_buffer=False, buffer_size=_BUFFER_BYTES)
        batch = next(encoded.iter_batches(1, [group], [column], use_threads=False), None)
        file.seek(position)
        found = None if batch is None else column_of(batch, column)
        if found is not None and pyarrow.types.is_dictionary(found.type):
            values = found.dictionary.cast(pyarrow.large_binary())
            size = max(size, *map(len, values.to_pylist()), 0)
    return max(1, min(max_rows, int(num_bytes // max(1, size))))


def _check_expansion(path: str, metadata: Any) -> None:
    for column_index in range(metadata.num_columns):
        chunk = metadata.column(column_index)
        compressed, size = chunk.total_compressed_size, chunk.total_uncompressed_size
        if size > max(_SMALL_BYTES, _MAX_EXPANSION * compressed):
            found = f'column {chunk.path_in_schema!r} expands from {compressed:,} to {size:,} bytes'
            raise BadInput(path, found, f'text, which compresses by less than a factor of {_MAX_EXPANSION:,}')


def longest_page(path: str, column: str) -> int:
    """Estimates the bytes of the longest page of a column, which must fit into memory several times.

    Arrow checks the size of a page only after every 1,024 values; other writers limit their pages.
    """
    with epath.Path(path).open('rb') as file:
        metadata = parquet.ParquetFile(file).metadata
    if 'arrow' not in (metadata.created_by or ''):
        return 0
    groups = (_column_chunk(metadata.row_group(group), column) for group in range(metadata.num_row_groups))
    lengths = ((chunk.total_uncompressed_size, chunk.num_values) for chunk in groups if chunk and chunk.num_values)
    return max((size * min(_VALUES_PER_PAGE, count) // count for size, count in lengths), default=0)


def _unreadable_error(path: Any, error: Exception) -> BadInput:
    return BadInput(
        str(path), f'cannot be read as parquet ({type(error).__name__})', 'a parquet file with a text column'
    )
