"""Columns of Arrow tables by name, where 'a.b' is the field b of the struct column a."""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow

from bert_jax.errors import BadInput
from bert_jax.text.sources.options import ReadOptions


def check_columns(path: Any, schema: pyarrow.Schema, options: ReadOptions) -> None:
    """Raises `BadInput` if a table lacks a column that is read, or has a text column of another type."""
    texts = list(_text_names(schema))
    for column in options.fields:
        fix = options.describe_choice(column, texts) if texts else 'use a file with a text column'
        kind = _type_of(schema, column)
        if kind is None:
            raise BadInput(str(path), f'has no column {column!r}', ', '.join(schema.names), fix)
        if column in options.text_fields and not (_is_text(kind) or (options.template and _is_number(kind))):
            raise BadInput(str(path), f'column {column!r} is of type {kind}', 'a text column', fix)


def _text_names(fields: Iterable[pyarrow.Field], prefix: str = '') -> Iterator[str]:
    for field in fields:
        if pyarrow.types.is_struct(field.type):
            yield from _text_names(_fields_of(field.type), f'{prefix}{field.name}.')
        elif _is_text(field.type):
            yield prefix + field.name


def _fields_of(kind: pyarrow.DataType) -> list[pyarrow.Field]:
    return [kind.field(index) for index in range(kind.num_fields)]


def _type_of(schema: pyarrow.Schema, column: str) -> pyarrow.DataType | None:
    if column in schema.names:
        return schema.field(column).type
    fields, kind = list(schema), None
    for name in column.split('.'):
        kind = next((field.type for field in fields if field.name == name), None)
        fields = _fields_of(kind) if kind is not None and pyarrow.types.is_struct(kind) else []
    return kind


def _is_text(kind: pyarrow.DataType) -> bool:
    is_type = pyarrow.types
    if is_type.is_dictionary(kind):
        return _is_text(kind.value_type)
    tests = (is_type.is_string, is_type.is_large_string, is_type.is_string_view, is_type.is_binary)
    return any(test(kind) for test in (*tests, is_type.is_large_binary, is_type.is_binary_view, is_type.is_null))


def _is_number(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)


def column_of(batch: pyarrow.RecordBatch, column: str) -> pyarrow.Array:
    """Returns a column of a batch."""
    if column in batch.schema.names:
        return batch.column(column)
    name, *inner = column.split('.')
    array = batch.column(name)
    for name in inner:
        array = array.flatten()[array.type.get_field_index(name)]  # null where the struct is
    return array


def iter_rows(batch: pyarrow.RecordBatch, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yields {column: value} of the rows of a batch; texts are bytes, as invalid UTF-8 is counted when decoded."""
    values = (_values(column_of(batch, name)) for name in columns)
    for row in zip(*values, strict=True):
        yield dict(zip(columns, row, strict=True))


def _values(column: pyarrow.Array) -> list[Any]:
    if _is_text(column.type) and not pyarrow.types.is_null(column.type):
        column = column.cast(pyarrow.large_binary())
    return column.to_pylist()
