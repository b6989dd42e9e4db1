"""Reads files of labelled examples as records: a dict per example, with its file and line for errors."""

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax.config import Data
from bert_jax.config.finetuning import Task
from bert_jax.errors import BadInput
from bert_jax.json_files import DamagedJson, parse_json
from bert_jax.text.sources.compression import without_compression
from bert_jax.text.sources.lines import read_whole_lines
from bert_jax.text.sources.tfds import open_tfds
from bert_jax.text.stats import not_utf8_error

TABLES = ('jsonl', 'csv', 'tsv', 'parquet')  # formats with columns
_FORMAT_OF_SUFFIX = {f'.{name}': name for name in TABLES} | {'.ndjson': 'jsonl'}
_MAX_CELL_CHARACTERS = 1 << 26  # in a CSV file
_MAX_LABEL_CHARACTERS = 40  # longer labels may be text, which errors never contain
_MAX_LABELS = 1000
_MAX_INVALID_BYTES = Data().bad_text  # bytes that are not UTF-8, as a fraction of the characters; they are replaced


class Record(NamedTuple):
    """An example as read from its file.

    Attributes:
      where: its file and line, or question, without any text.
      fields: values by column.
    """

    where: str
    fields: dict[str, Any]


def split_source(source: str, formats: tuple[str, ...] = TABLES) -> tuple[str, str]:
    """Returns (format, file) of FORMAT:FILE, or of the name of a file, whose suffix tells its format.

    The name may end in .gz, .zst, .bz2 or .xz after this suffix. The format is '' if the suffix is not known.

    Args:
      formats: those that may precede the name of a file.
    """
    name, _, path = source.partition(':')
    if name in formats and not Path(source).exists():
        return name, path
    return _FORMAT_OF_SUFFIX.get(Path(without_compression(source)).suffix.lower(), ''), source


def table_source(name: str) -> str:
    """Returns FORMAT:FILE for FORMAT:FILE, or for the name of a file with columns.

    Raises:
      BadInput: if the format is unknown.
    """
    file_format, path = split_source(name)
    if not file_format:
        expected = f'a file that ends in {", ".join(f".{each}" for each in TABLES)}, or FORMAT:FILE'
        raise BadInput(name, 'has no known format', expected)
    return f'{file_format}:{path}'


def read_records(source: str, task: Task, needed: tuple[str, ...]) -> Iterator[Record]:
    """Yields the records of a source in order.

    Args:
      source: FORMAT:FILE, or tfds:NAME[:SPLIT].
      needed: columns that every record must have; checked in the header or in the first record.

    Raises:
      BadInput: if the file does not exist, cannot be read, or lacks a column.
    """
    file_format, _, location = source.partition(':')
    if file_format == 'tfds':
        yield from _read_tfds(location, task, needed)
        return
    path = Path(task.directory) / location
    if not path.is_file():
        fix = '' if task.directory else '--config.task.directory=DIR, the directory of the files'
        raise BadInput(str(path), 'does not exist', f'a {file_format} file', fix)
    try:
        yield from _READERS[file_format](path, task, needed)
    except OSError as error:
        raise BadInput(str(path), f'cannot be read ({error.strerror or error})', 'a readable file') from error


def check_columns(needed: Iterable[str], names: Iterable[str], where: str, kind: str = '') -> None:
    """Raises `BadInput` if a column that a kind of task needs is not among `names`."""
    names = list(names)
    for column in needed:
        if column not in names:
            fix = '--config.task.text=NAME, and likewise text_pair and label: the columns to use'
            if kind == 'embedding':
                fix = '--config.embedding.anchor=NAME, and likewise positive, negatives and score: the columns to use'
            raise BadInput(where, f'has no column {column!r}', ', '.join(map(str, names)) or 'columns', fix)


def read_utf8_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a file; a few invalid bytes are replaced.

    Raises:
      BadInput: at the end of a file that is not UTF-8; also as `read_whole_lines`.
    """
    counts, num_characters = Counter(), 0
    for line in read_whole_lines(str(path), counts):
        num_characters += len(line)
        yield line
    if counts['invalid_bytes'] > _MAX_INVALID_BYTES * num_characters:
        raise not_utf8_error(str(path), counts['invalid_bytes'], num_characters, 'UTF-8')


def _records_of_rows(
    path: Path, rows: Iterator[tuple[int, list[str]]], task: Task, needed: tuple[str, ...]
) -> Iterator[Record]:
    """Converts (line number, cells) to records.

    The first row names the columns. With `task.columns`, it does so only if it contains the name of the text column.
    """
    names: list[str] | None = None
    for line_number, cells in rows:
        where = f'{path}:{line_number}'
        if names is None:
            names = cells if not task.columns or task.text in cells else list(task.columns)
            check_columns(needed, names, where, task.kind)
            if names is cells:
                continue
        yield Record(where, dict(zip(names, cells, strict=False)))


def _read_tsv(path: Path, task: Task, needed: tuple[str, ...]) -> Iterator[Record]:
    """Reads tab-separated columns; quotation marks have no special meaning, as in GLUE."""
    rows = (
        (line_number, line.split('\t')) for line_number, line in enumerate(read_utf8_lines(path), 1) if line.strip()
    )
    yield from _records_of_rows(path, rows, task, needed)


def _read_csv(path: Path, task: Task, needed: tuple[str, ...]) -> Iterator[Record]:
    csv.field_size_limit(_MAX_CELL_CHARACTERS)
    reader = csv.reader((line + '\n' for line in read_utf8_lines(path)), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise BadInput(f'{path}:{reader.line_num}', f'is not CSV ({error})', 'comma-separated cells') from None

    yield from _records_of_rows(path, rows(), task, needed)


def _read_jsonl(path: Path, task: Task, needed: tuple[str, ...]) -> Iterator[Record]:
    is_first = True
    for line_number, line in enumerate(read_utf8_lines(path), 1):
        if not line.strip():
            continue
        where = f'{path}:{line_number}'
        fields = parse_record(line, where)
        if is_first:
            check_columns(needed, fields, where, task.kind)
        is_first = False
        yield Record(where, fields)


def _read_parquet(path: Path, task: Task, needed: tuple[str, ...]) -> Iterator[Record]:
    """Reads all columns; `where` counts rows from 1."""
    from bert_jax.text.sources.parquet import read_columns  # pyarrow is slow to import

    is_first = True
    for row, fields in enumerate(read_columns(path), 1):
        where = f'{path}, row {row}'
        if is_first:
            check_columns(needed, fields, where, task.kind)
        is_first = False
        yield Record(where, fields)


def parse_record(line: str, where: str) -> dict[str, Any]:
    """Parses a line with a JSON object; `where` is its file and line.

    Raises:
      BadInput: if the line is anything else.
    """
    try:
        return parse_json(line)
    except DamagedJson as error:
        raise BadInput(where, str(error), 'one JSON object per line') from None


def _read_conll(path: Path, task: Task, needed: tuple[str, ...]) -> Iterator[Record]:
    """Reads sentences separated by blank lines, with one word per line: first column the word, last column its tag.

    Lines with -DOCSTART- separate sentences too.
    """
    words: list[str] = []
    tags: list[str] = []
    start = 1
    for line_number, line in enumerate([*read_utf8_lines(path), ''], 1):
        cells = line.split('\t') if '\t' in line else line.split()
        if not line.strip() or cells[0] == '-DOCSTART-':
            if words:
                fields = {task.text: words, task.label: tags}
                yield Record(f'{path}:{start}', fields)
            words, tags, start = [], [], line_number + 1
            continue
        if len(cells) < 2 and task.label in needed:
            raise BadInput(
                f'{path}:{line_number}', 'has one column', 'a word and its tag, separated by a space or a tab'
            )
        words.append(cells[0].removeprefix(task.token_prefix))
        tags.append(cells[-1].strip())


def _read_squad(path: Path, task: Task, needed: tuple[str, ...]) -> Iterator[Record]:
    """Reads questions in the order of the file; `where` counts them from 1."""
    del task, needed
    try:
        articles = parse_json('\n'.join(read_utf8_lines(path)))['data']
        question_number = 0
        for article in articles:
            for paragraph in article['paragraphs']:
                for question in paragraph['qas']:
                    question_number += 1
                    yield Record(f'{path}, question {question_number}', {'context': paragraph['context']} | question)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        found = str(error) if isinstance(error, DamagedJson) else f'is not SQuAD JSON ({type(error).__name__})'
        expected = 'data: [{paragraphs: [{context, qas: [{id, question, answers: [{text, answer_start}]}]}]}]'
        raise BadInput(str(path), found, expected) from None


def _read_tfds(spec: str, task: Task, needed: tuple[str, ...]) -> Iterator[Record]:
    records = open_tfds(spec, ())
    features = records.dataset_info.features
    check_columns(needed, features, f'tfds:{spec}', task.kind)
    for index in range(len(records)):
        fields = {name: _as_python(value, features[name]) for name, value in records[index].items()}
        yield Record(f'tfds:{spec}:{index}', fields)


def _as_python(value: Any, feature: Any) -> Any:
    """Converts bytes to text, class ids to names (-1, which means unknown, to None) and arrays to lists."""
    inner = getattr(feature, 'feature', feature)  # the elements of a sequence
    if isinstance(value, dict):
        return {name: _as_python(field, inner[name]) for name, field in value.items()}
    if hasattr(inner, 'int2str') and getattr(value, 'ndim', 0) == 0:
        return inner.int2str(int(value)) if int(value) >= 0 else None
    if getattr(value, 'ndim', 0) or isinstance(value, list):  # texts of varying number are a list
        return [_as_python(item, inner) for item in value]
    if isinstance(value, bytes):
        return value.decode('utf-8', 'replace')
    return value.item() if hasattr(value, 'item') else value


_READERS: dict[str, Callable[[Path, Task, tuple[str, ...]], Iterator[Record]]] = {
    'tsv': _read_tsv,
    'csv': _read_csv,
    'jsonl': _read_jsonl,
    'parquet': _read_parquet,
    'conll': _read_conll,
    'squad': _read_squad,
}


class RecordReader:
    """Reads records; those that lack a needed column are skipped and counted, up to `task.bad_records` of them.

    Attributes:
      counts: {event: count} of skipped records, complete once all records have been read.
    """

    def __init__(self, source: str, task: Task, needed: tuple[str, ...], texts: tuple[str, ...] = ()):
        """Args: texts: needed columns in which a text of spaces counts as missing."""
        self._records, self._allowed, self._needed = read_records(source, task, needed), task.bad_records, needed
        self._source, self._texts = source, texts
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Record]:
        """Yields the records that have all needed columns.

        Raises:
          BadInput: as `read_records`; if there is no such record, or too many records lack a column.
        """
        num_records, num_bad = 0, 0
        first_bad: tuple[str, str] | None = None
        for record in self._records:
            num_records += 1
            missing = [name for name in self._needed if self._is_missing(record.fields.get(name), name)]
            if missing:
                num_bad, first_bad = num_bad + 1, first_bad or (record.where, missing[0])
                continue
            yield record
        if num_bad:
            self.counts['record without a column'] = num_bad
        if first_bad is not None and num_bad > self._allowed * num_records:
            where, name = first_bad
            raise BadInput(
                where,
                f'has no {"text in " if name in self._texts else ""}{name!r}; '
                f'{num_bad:,} of {num_records:,} records lack a column',
                'a value in every column that is used',
                'fix the file, or allow more with --config.task.bad_records=FRACTION',
            )
        if num_records == num_bad:
            raise BadInput(self._source, 'contains no example', 'at least one')

    def _is_missing(self, value: Any, name: str) -> bool:
        return value is None or (name in self._texts and isinstance(value, str) and not value.strip())


def parse_number(where: str, label: Any, name: str = 'label', fix: str = '--config.task.label=COLUMN') -> float:
    """Converts a label to a finite number.

    Args:
      name: what the error calls it.

    Raises:
      BadInput: if it is none.
    """
    try:
        value = float(label)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        # A long label is probably text, which messages do not show.
        length = len(str(label))
        found = f'has the {name} {label!r}' if length <= 10 else f'has a {name} of {length} characters'
        raise BadInput(where, found, 'a number', fix)
    return value


def sort_labels(names: Iterable[str], where: str) -> tuple[str, ...]:
    """Returns distinct labels in the order of their ids: `O` first, then numerically or else alphabetically.

    Raises:
      BadInput: if the number or the length of the labels suggests that they are text; the error omits them.
    """
    labels = {*names}
    longest = max(map(len, labels), default=0)
    if len(labels) > _MAX_LABELS or longest > _MAX_LABEL_CHARACTERS:
        raise BadInput(
            where,
            f'has {len(labels):,} different labels of up to {longest} characters',
            f'at most {_MAX_LABELS:,} labels of at most {_MAX_LABEL_CHARACTERS} characters',
            '--config.task.label=COLUMN, the column of the labels; or list such labels in config.task.labels',
        )
    are_integers = all(label.lstrip('-').isdecimal() for label in labels)
    return tuple(sorted(labels, key=lambda label: (label != 'O', int(label) if are_integers else 0, label)))


def unknown_label(where: str, label: str, labels: tuple[str, ...]) -> BadInput:
    """Returns the error for a label that does not occur in the training file."""
    described = repr(label) if len(label) <= _MAX_LABEL_CHARACTERS else f'of {len(label)} characters'
    return BadInput(
        where,
        f'has the label {described}, which is not in the training file (or not in config.task.labels)',
        'one of ' + ', '.join(labels[:20]) + (' …' if len(labels) > 20 else ''),
        'fix the file, or set --config.task.label=COLUMN if the labels are in another column',
    )
