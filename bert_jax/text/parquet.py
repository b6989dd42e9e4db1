"""Text columns of parquet files, read in batches of rows that fit into little memory however the rows are encoded.

A page is the least that can be decompressed: a file whose pages are large takes some times their size.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow
from etils import epath
from pyarrow import parquet

from bert_jax.errors import BadInput

_BUFFER_BYTES = 1 << 20  # read at once
_LONG = 1 << 16  # bytes; rows of this length on average are read one at a time
_VALUES_OF_PAGE = 1024
_MOST_EXPANDED = 1000  # times; text does not compress so well
_SMALL = 1 << 28  # bytes, however well compressed


def plan_row_groups(path: epath.Path, columns: list[str]) -> list[int]:
    """The uncompressed bytes of each row group.

    Raises:
      BadInput: for a file that is not parquet, lacks a column, or has one that is not of text.
    """
    try:
        with path.open('rb') as file:
            table = parquet.ParquetFile(file)
            schema, metadata = table.schema_arrow, table.metadata
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable_error(path, error) from None
    for number, column in enumerate(columns):
        _check_column(path, schema, column, 'text_field' if number == 0 else 'group_field')
    return [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]


def _check_column(path: epath.Path, schema: pyarrow.Schema, column: str, option: str) -> None:
    texts = [field.name for field in schema if _is_text(field.type)]
    fix = f'--config.data.{option}=NAME, one of: {", ".join(texts)}' if texts else 'a file with a column of text'
    if column not in schema.names:
        raise BadInput(str(path), f'has no column {column!r}', ', '.join(schema.names), fix)
    kind = schema.field(column).type
    if option == 'text_field' and not _is_text(kind):
        raise BadInput(str(path), f'column {column!r} is of type {kind}', 'a column of text', fix)


def _is_text(kind: pyarrow.DataType) -> bool:
    is_type = pyarrow.types
    if is_type.is_dictionary(kind):
        return _is_text(kind.value_type)
    tests = (is_type.is_string, is_type.is_large_string, is_type.is_string_view, is_type.is_binary)
    return any(test(kind) for test in (*tests, is_type.is_large_binary, is_type.is_binary_view, is_type.is_null))


def read_rows(
    path: str, start: int, stop: int, columns: list[str], num_bytes: int, num_rows: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the row in its file, {column: value}) of the row groups [start, stop); -1 is the end.

    The first column is of text; its values are bytes.

    Args:
      num_bytes, num_rows: of a batch, at most, unless one row is larger.

    Raises:
      BadInput: for a file that is damaged, or that expands as text does not.
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


def _values(column: pyarrow.Array) -> list[Any]:
    if _is_text(column.type) and not pyarrow.types.is_null(column.type):
        column = column.cast(pyarrow.large_binary())  # decoded later, so that invalid UTF-8 is counted
    return column.to_pylist()


def _column_chunk(metadata: Any, column: str) -> Any:
    chunks = (metadata.column(number) for number in range(metadata.num_columns))
    return next(chunk for chunk in chunks if chunk.path_in_schema == column)


def _rows_at_once(table: parquet.ParquetFile, file: Any, group: int, column: str, num_bytes: int, most: int) -> int:
    """So many rows of a row group take at most `num_bytes`.

    The declared size counts a repeated value once: where there is a dictionary, its longest value counts for every row.
    """
    chunk = _column_chunk(table.metadata.row_group(group), column)
    size = chunk.total_uncompressed_size / max(1, chunk.num_values)
    if size >= _LONG:
        return 1
    if chunk.has_dictionary_page and chunk.total_uncompressed_size * most > num_bytes:
        position = file.tell()
        encoded = parquet.ParquetFile(file, read_dictionary=[column], pre_buffer=False, buffer_size=_BUFFER_BYTES)
        batch = next(encoded.iter_batches(1, [group], [column], use_threads=False), None)
        file.seek(position)
        if batch is not None and pyarrow.types.is_dictionary(batch.column(0).type):
            values = batch.column(0).dictionary.cast(pyarrow.large_binary())
            size = max(size, *map(len, values.to_pylist()), 0)
    return max(1, min(most, int(num_bytes // max(1, size))))


def _check_expansion(path: str, metadata: Any) -> None:
    for number in range(metadata.num_columns):
        chunk = metadata.column(number)
        compressed, size = chunk.total_compressed_size, chunk.total_uncompressed_size
        if size > max(_SMALL, _MOST_EXPANDED * compressed):
            found = f'column {chunk.path_in_schema!r} expands from {compressed:,} to {size:,} bytes'
            raise BadInput(path, found, f'text, which compresses less than {_MOST_EXPANDED} times')


def longest_page(path: str, column: str) -> int:
    """An estimate of the bytes of the longest page of a column, which must fit into memory several times.

    Arrow looks at the size of a page only after every 1,024 values; other writers cut theirs in time.
    """
    with epath.Path(path).open('rb') as file:
        metadata = parquet.ParquetFile(file).metadata
    if 'arrow' not in (metadata.created_by or ''):
        return 0
    groups = (_column_chunk(metadata.row_group(group), column) for group in range(metadata.num_row_groups))
    lengths = ((chunk.total_uncompressed_size, chunk.num_values) for chunk in groups if chunk.num_values)
    return max((size * min(_VALUES_OF_PAGE, count) // count for size, count in lengths), default=0)


def _unreadable_error(path: Any, error: Exception) -> BadInput:
    return BadInput(str(path), f'cannot be read as parquet ({type(error).__name__})', 'text columns')
