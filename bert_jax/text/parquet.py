"""Reads text columns of parquet files in small batches of rows, in bounded memory however the rows are encoded.

A page can only be decompressed as a whole, so reading large pages takes a few times their size.
"""

import os
from collections.abc import Iterator
from typing import Any

import pyarrow
from etils import epath
from pyarrow import parquet

from bert_jax.errors import BadInput

_BUFFER_BYTES = 1 << 20  # per read
_LONG_ROW_BYTES = 1 << 16  # rows of this average length are read one at a time
_VALUES_PER_PAGE = 1024
_RECORDS_AT_ONCE = 1024
_MAX_EXPANSION = 1000  # factor by which a column may expand; text compresses less
_SMALL_BYTES = 1 << 28  # a column may always expand to this size


def plan_row_groups(path: epath.Path, columns: list[str]) -> list[int]:
    """Returns the uncompressed bytes of each row group.

    Raises:
      BadInput: for a file that is not parquet, lacks a column, or has a text column of another type.
    """
    try:
        with path.open('rb') as file:
            table = parquet.ParquetFile(file)
            schema, metadata = table.schema_arrow, table.metadata
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable_error(path, error) from None
    for column_index, column in enumerate(columns):
        _check_column(path, schema, column, 'text_field' if column_index == 0 else 'group_field')
    return [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]


def _check_column(path: epath.Path, schema: pyarrow.Schema, column: str, option: str) -> None:
    texts = [field.name for field in schema if _is_text(field.type)]
    fix = f'--config.data.{option}=NAME, one of: {", ".join(texts)}' if texts else 'use a file with a text column'
    if column not in schema.names:
        raise BadInput(str(path), f'has no column {column!r}', ', '.join(schema.names), fix)
    kind = schema.field(column).type
    if option == 'text_field' and not _is_text(kind):
        raise BadInput(str(path), f'column {column!r} is of type {kind}', 'a text column', fix)


def _is_text(kind: pyarrow.DataType) -> bool:
    is_type = pyarrow.types
    if is_type.is_dictionary(kind):
        return _is_text(kind.value_type)
    tests = (is_type.is_string, is_type.is_large_string, is_type.is_string_view, is_type.is_binary)
    return any(test(kind) for test in (*tests, is_type.is_large_binary, is_type.is_binary_view, is_type.is_null))


def read_rows(
    path: str, start: int, stop: int, columns: list[str], num_bytes: int, num_rows: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (index of the row in its file, {column: value}) of the row groups [start, stop); `stop` -1 is the end.

    The first column holds text; its values are bytes.

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
                count = _rows_at_once(table, file, group, columns[0], num_bytes, num_rows)
                for batch in table.iter_batches(count, [group], columns, use_threads=False):
                    for values in zip(*(_values(batch.column(name)) for name in columns), strict=True):
                        row += 1
                        yield row, dict(zip(columns, values, strict=True))
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
                for batch in table.iter_batches(_RECORDS_AT_ONCE, [group], use_threads=False):
                    yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable_error(path, error) from None


def _values(column: pyarrow.Array) -> list[Any]:
    if _is_text(column.type) and not pyarrow.types.is_null(column.type):
        column = column.cast(pyarrow.large_binary())  # decoded later, where invalid UTF-8 is counted
    return column.to_pylist()


def _column_chunk(metadata: Any, column: str) -> Any:
    chunks = (metadata.column(column_index) for column_index in range(metadata.num_columns))
    return next(chunk for chunk in chunks if chunk.path_in_schema == column)


def _rows_at_once(table: parquet.ParquetFile, file: Any, group: int, column: str, num_bytes: int, max_rows: int) -> int:
    """Returns how many rows of a row group fit into `num_bytes`.

    The declared size counts a repeated value once, so with a dictionary every row counts as its longest value.
    """
    chunk = _column_chunk(table.metadata.row_group(group), column)
    size = chunk.total_uncompressed_size / max(1, chunk.num_values)
    if size >= _LONG_ROW_BYTES:
        return 1
    if chunk.has_dictionary_page and chunk.total_uncompressed_size * max_rows > num_bytes:
        position = file.tell()
        encoded = parquet.ParquetFile(file, read_dictionary=[column], pre_buffer=False, buffer_size=_BUFFER_BYTES)
        batch = next(encoded.iter_batches(1, [group], [column], use_threads=False), None)
        file.seek(position)
        if batch is not None and pyarrow.types.is_dictionary(batch.column(0).type):
            values = batch.column(0).dictionary.cast(pyarrow.large_binary())
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
    lengths = ((chunk.total_uncompressed_size, chunk.num_values) for chunk in groups if chunk.num_values)
    return max((size * min(_VALUES_PER_PAGE, count) // count for size, count in lengths), default=0)


def _unreadable_error(path: Any, error: Exception) -> BadInput:
    return BadInput(
        str(path), f'cannot be read as parquet ({type(error).__name__})', 'a parquet file with a text column'
    )
