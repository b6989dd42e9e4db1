"""Reads Arrow files: streams, as `datasets` saves them, and the file format."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pyarrow
from etils import epath

from bert_jax.errors import BadInput
from bert_jax.files import is_local
from bert_jax.text.chunks import FileRange, SizedRanges
from bert_jax.text.sources.columns import check_columns, iter_rows
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.records import BYTES_AT_ONCE, RECORDS_AT_ONCE, Texts, text_or_skip
from bert_jax.text.stats import Stats

_FILE_FORMAT = b'ARROW1'
_END_OF_STREAM = b'\xff\xff\xff\xff\0\0\0\0'


def divide(path: epath.Path, length: int, size: int, options: ReadOptions) -> SizedRanges:
    """Divides a large local file into ranges of batches.

    Raises:
      BadInput: for a damaged file on disk, and one that lacks a column.
    """
    whole = [(FileRange(str(path)), length)]
    if not is_local(path):
        return whole
    with _open(path) as (schema, batches):
        check_columns(path, schema, options)
        if length < 2 * size:
            return whole
        ranges, start, total, index = [], 0, 0, -1
        for index, batch in enumerate(batches):
            total += batch.nbytes
            if total >= size:
                ranges.append((FileRange(str(path), start, index + 1), total))
                start, total = index + 1, 0
    return [*ranges, (FileRange(str(path), start, index + 1), total)] if total else ranges


def read(file_range: FileRange, options: ReadOptions, stats: Stats) -> Texts:
    """Yields the text of the rows of a range of batches."""
    row, path = -1, epath.Path(file_range.path)
    with _open(path) as (schema, batches):
        check_columns(path, schema, options)
        for index, batch in enumerate(batches):
            if index == file_range.stop:
                return
            if index < file_range.start:
                row += batch.num_rows
                continue
            count = max(1, min(RECORDS_AT_ONCE, BYTES_AT_ONCE * batch.num_rows // max(1, batch.nbytes)))
            for start in range(0, batch.num_rows, count):
                for record in iter_rows(batch.slice(start, count), options.fields):
                    row += 1
                    locate = functools.partial('{}:{}'.format, path, row)
                    yield from text_or_skip(record, dict, options, stats, locate)


@contextlib.contextmanager
def _open(path: epath.Path) -> Iterator[tuple[pyarrow.Schema, Iterator[pyarrow.RecordBatch]]]:
    """Yields the schema and the batches of a file, which are mapped into memory if it is on disk.

    Raises:
      BadInput: for a damaged file, also while batches are read.
    """
    try:
        with contextlib.ExitStack() as stack:
            file: Any = pyarrow.memory_map(str(path)) if is_local(path) else path.open('rb')
            stack.enter_context(file)
            is_stream = file.read(len(_FILE_FORMAT)) != _FILE_FORMAT
            if is_stream and is_local(path):
                _check_end(path, file)
            file.seek(0)
            if is_stream:
                reader = stack.enter_context(pyarrow.ipc.open_stream(file))
                yield reader.schema, iter(reader)
            else:
                table = stack.enter_context(pyarrow.ipc.open_file(file))
                yield table.schema, (table.get_batch(index) for index in range(table.num_record_batches))
    except (pyarrow.ArrowException, OSError) as error:
        found = f'cannot be read as an Arrow file ({type(error).__name__})'
        raise BadInput(str(path), found, 'a complete file in the Arrow format', 'copy it again') from None


def _check_end(path: epath.Path, file: Any) -> None:
    """Raises `BadInput` if a stream lacks the mark of its end: pyarrow takes one cut between batches for complete."""
    file.seek(max(0, file.size() - len(_END_OF_STREAM)))
    if file.read() != _END_OF_STREAM:
        found = 'cannot be read as an Arrow file (its end is missing)'
        raise BadInput(str(path), found, 'a complete file in the Arrow format', 'copy it again')
