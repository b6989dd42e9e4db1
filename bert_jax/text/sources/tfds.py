"""Reads datasets of TFDS in the ArrayRecord format, without TensorFlow."""

import functools
import re
from collections.abc import Iterable
from typing import Any

from bert_jax.errors import BadInput
from bert_jax.text.chunks import Chunk, FileRange, Source, steps
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.records import BYTES_AT_ONCE, RECORDS_AT_ONCE, Texts, text_or_skip
from bert_jax.text.stats import Stats

_RECORDS_PER_CHUNK = 1 << 14  # as TFDS does not know their sizes
_VERSION = re.compile(r'[\d*]+\.[\d*]+\.[\d*]+')


def plan(source: str, source_index: int, options: ReadOptions) -> Source:
    """Divides a dataset into chunks of records."""
    location = source.partition(':')[2]
    ranges = steps(len(open_tfds(location, options.fields)), _RECORDS_PER_CHUNK)
    chunks = [Chunk('tfds', source_index, (FileRange(location, start, stop),), stop - start) for start, stop in ranges]
    return Source(source, tuple(chunks), {})


def read(file_range: FileRange, options: ReadOptions, stats: Stats) -> Texts:
    """Yields the text of the records of a range."""
    records = open_tfds(file_range.path, ())
    start, count = file_range.start, 1
    while start < file_range.stop:
        indices = range(start, min(start + count, file_range.stop))
        batch = records.__getitems__(indices)
        start += len(indices)
        values = (record.get(field) for record in batch for field in options.text_fields)
        largest = max((len(value) for value in values if isinstance(value, bytes)), default=0)
        count = max(1, min(4 * count, RECORDS_AT_ONCE, BYTES_AT_ONCE // max(1, largest)))
        for index, record in zip(indices, batch, strict=True):
            locate = functools.partial('tfds:{}:{}'.format, file_range.path, index)
            yield from text_or_skip(record, dict, options, stats, locate)


def _check_field(field: str, names: Iterable[str], where: str) -> None:
    """Raises `BadInput` if `field` is not among the names of the data's fields."""
    names = list(names)
    if field not in names and field.partition('.')[0] not in names:
        fix = '--config.data.text_field=NAME (or group_field)'
        raise BadInput(where, f'has no field {field!r}', ', '.join(names), fix)


def open_tfds(spec: str, fields: Iterable[str]) -> Any:
    """Opens the records of `NAME[/CONFIG][:VERSION][:SPLIT]`, indexable and without TensorFlow.

    Raises:
      BadInput: for a dataset, split or feature that does not exist.
    """
    import tensorflow_datasets as tfds

    head, bracket, slicing = spec.partition('[')  # a slice may contain colons: train[:10%]
    name, _, split = head.rpartition(':')
    if not name or _VERSION.fullmatch(split):
        name, split = head, 'train'
    split += bracket + slicing
    where = f'config.data.source=tfds:{spec}'
    try:
        builder: Any = tfds.builder(name, file_format='array_record')
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        found = f'is not a dataset that TFDS can open ({type(error).__name__})'
        raise BadInput(where, found, 'NAME[/CONFIG][:VERSION][:SPLIT]') from None
    for field in fields:
        _check_field(field, builder.info.features, where)
    builder.download_and_prepare(file_format='array_record')
    if split.partition('[')[0].partition('+')[0] not in builder.info.splits:
        raise BadInput(where, f'has no split {split!r}', ', '.join(builder.info.splits))
    return builder.as_data_source(split=split)
