"""The text of records: objects with named fields, from JSON, tables or TFDS. Bad ones are counted, and skipped."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bert_jax.text.sources.lines import decode, iter_lines, join_wrapped
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.stats import Stats

Texts = Iterator[tuple[Iterable[str], str | None]]  # (paragraphs, group) of each document

RECORDS_AT_ONCE = 256
BYTES_AT_ONCE = 1 << 25  # of a batch of records, unless one record is larger
_MAX_NAMES = 20  # of fields, in a message


class BadRecord(Exception):
    """A record that is skipped; its arguments are (found, expected)."""


def text_or_skip(
    record: Any, parse: Callable[[Any], dict[str, Any]], options: ReadOptions, stats: Stats, locate: Callable[[], str]
) -> Texts:
    """Yields the text of a record; if the record is bad, counts it instead.

    Args:
      parse: returns the fields of the record; raises `BadRecord`.
      locate: returns 'FILE:LINE'.
    """
    stats.records += 1
    try:
        text = _text_of(parse(record), options, stats.counts)
    except BadRecord as bad:
        stats.skip_record(locate, *bad.args)
        return
    yield text


def _text_of(record: dict[str, Any], options: ReadOptions, counts: Counter) -> tuple[Iterable[str], str | None]:
    values = {field: _value(record, field, options) for field in options.fields}
    if options.template:
        texts = [text + (_as_text(values[name], name, counts) if name else '') for text, name in options.template_parts]
        text = ''.join(texts)
    else:
        text = values[options.text_field]
        text = decode(text, counts) if isinstance(text, bytes) else text
        if text is not None and not isinstance(text, str):
            raise BadRecord(f'field {options.text_field!r} is of type {type(text).__name__}', 'text')
    group = values[options.group_field] if options.group_field else None
    group = None if group is None else group.decode('utf-8', 'replace') if isinstance(group, bytes) else str(group)
    lines = iter_lines(clean(text or '', counts), counts)
    return (join_wrapped(lines) if options.join_lines else lines), group


def _value(record: dict[str, Any], field: str, options: ReadOptions) -> Any:
    """Returns the value of a field; 'a.b' is the field b of the object in field a. None if an object is null."""
    if field in record:
        return record[field]
    value, prefix = record, ''
    for name in field.split('.'):
        if value is None:
            return None
        if not isinstance(value, dict) or name not in value:
            names = [f'{prefix}{key}' for key in list(value if isinstance(value, dict) else record)[:_MAX_NAMES]]
            raise BadRecord(f'has no field {field!r}', options.describe_choice(field, names))
        value, prefix = value[name], f'{prefix}{name}.'
    return value


def _as_text(value: Any, field: str, counts: Counter) -> str:
    """Returns a value as it appears in a template."""
    if isinstance(value, bytes):
        return decode(value, counts)
    if value is None or isinstance(value, str):
        return value or ''
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadRecord(f'field {field!r} is of type {type(value).__name__}', 'text or a number')


def clean(text: str, counts: Counter) -> str:
    """Removes NUL characters and replaces lone surrogates; counts both."""
    if '\0' in text:
        counts['nul_bytes_removed'] += text.count('\0')
        text = text.replace('\0', '')
    try:
        text.encode('utf-8')
    except UnicodeEncodeError:  # a lone surrogate, written as an escape in JSON or in a string literal
        counts['invalid_utf8_replaced'] += 1
        num_before = text.count('\ufffd')
        text = text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
        counts['invalid_bytes'] += text.count('\ufffd') - num_before
    return text
