"""Files of labelled examples -> records: a dict for each, and where it stands (file and line, never text)."""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax.config import Data
from bert_jax.config.finetuning import Task
from bert_jax.errors import BadInput
from bert_jax.json_files import DamagedJson, parse_json
from bert_jax.text.chunks import open_tfds
from bert_jax.text.lines import read_whole_lines
from bert_jax.text.stats import not_utf8_error

_LONGEST_FIELD = 1 << 26  # characters, of a CSV
_LONGEST_LABEL = 40  # characters; anything longer may be text, and is not shown
_MOST_LABELS = 1000
_BAD_TEXT = Data().bad_text  # share of the text that may be bytes that are not UTF-8; they are replaced


class Record(NamedTuple):
    """One example as its file has it."""

    where: str
    fields: dict[str, Any]


def read_records(source: str, task: Task, needed: tuple[str, ...]) -> Iterator[Record]:
    """The records of a source in order.

    Args:
      source: FORMAT:FILE, or tfds:NAME[:SPLIT].
      needed: the columns that a record must have. Where a file names its columns, they are looked for there.

    Raises:
      BadInput: for a file that is not there, cannot be read, or has no such column.
    """
    kind, _, rest = source.partition(':')
    if kind == 'tfds':
        yield from _read_tfds(rest, needed)
        return
    path = Path(task.directory) / rest
    if not path.is_file():
        fix = '' if task.directory else '--config.task.directory=DIR, where the files lie'
        raise BadInput(str(path), 'is not there', f'a {kind} file', fix)
    try:
        yield from _READERS[kind](path, task, needed)
    except OSError as error:
        raise BadInput(str(path), f'cannot be read ({error.strerror or error})', 'a file to read') from error


def check_columns(needed: Iterable[str], names: Iterable[str], where: str) -> None:
    """Raises `BadInput` for a column that is not among the names."""
    names = list(names)
    for column in needed:
        if column not in names:
            fix = '--config.task.text=NAME, text_pair, label: which columns to take'
            raise BadInput(where, f'has no column {column!r}', ', '.join(map(str, names)) or 'columns', fix)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file; raises `BadInput` at its end when it is not in UTF-8."""
    counts, num_characters = Counter(), 0
    for line in read_whole_lines(str(path), counts):
        num_characters += len(line)
        yield line
    if counts['invalid_bytes'] > _BAD_TEXT * num_characters:
        raise not_utf8_error(str(path), counts['invalid_bytes'], num_characters, 'UTF-8')


def _rows(path: Path, rows: Iterator[tuple[int, list[str]]], task: Task, needed: tuple[str, ...]) -> Iterator[Record]:
    """Records from cells. The first row names the columns; with `task.columns`, only if it has the text's name."""
    names: list[str] | None = None
    for number, cells in rows:
        if names is None:
            names = cells if not task.columns or task.text in cells else list(task.columns)
            check_columns(needed, names, f'{path}:{number}')
            if names is cells:
                continue
        yield Record(f'{path}:{number}', dict(zip(names, cells, strict=False)))


def _read_tsv(path: Path, task: Task, needed: tuple[str, ...]) -> Iterator[Record]:
    """Columns between tabs; a quotation mark is a character like any other, as in GLUE."""
    rows = ((number, line.split('\t')) for number, line in enumerate(_lines(path), 1) if line.strip())
    yield from _rows(path, rows, task, needed)


def _read_csv(path: Path, task: Task, needed: tuple[str, ...]) -> Iterator[Record]:
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader((line + '\n' for line in _lines(path)), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise BadInput(f'{path}:{reader.line_num}', f'is not CSV ({error})', 'cells between commas') from None

    yield from _rows(path, rows(), task, needed)


def _read_jsonl(path: Path, task: Task, needed: tuple[str, ...]) -> Iterator[Record]:
    del task
    is_first = True
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        record = parse_record(line, f'{path}:{number}')
        if is_first:
            check_columns(needed, record, f'{path}:{number}')
        is_first = False
        yield Record(f'{path}:{number}', record)


def parse_record(line: str, where: str) -> dict[str, Any]:
    """The record in a line of JSON; raises `BadInput` for anything else. `where` is its file and line."""
    try:
        return parse_json(line)
    except DamagedJson as error:
        raise BadInput(where, str(error), 'a JSON object a line') from None


def _read_conll(path: Path, task: Task, needed: tuple[str, ...]) -> Iterator[Record]:
    """A word a line, first column the word and last its tag, a blank line between sentences; -DOCSTART- is no word."""
    words: list[str] = []
    tags: list[str] = []
    start = 1
    for number, line in enumerate([*_lines(path), ''], 1):
        cells = line.split('\t') if '\t' in line else line.split()
        if not line.strip() or cells[0] == '-DOCSTART-':
            if words:
                fields = {task.text: words, task.label: tags}
                yield Record(f'{path}:{start}', fields)
            words, tags, start = [], [], number + 1
            continue
        if len(cells) < 2 and task.label in needed:
            raise BadInput(f'{path}:{number}', 'has one column', 'a word and its tag, between blanks or tabs')
        words.append(cells[0].removeprefix(task.token_prefix))
        tags.append(cells[-1].strip())


def _read_squad(path: Path, task: Task, needed: tuple[str, ...]) -> Iterator[Record]:
    """Questions in the order of the file; `where` counts them from 1."""
    del task, needed
    try:
        articles = parse_json('\n'.join(_lines(path)))['data']
        number = 0
        for article in articles:
            for paragraph in article['paragraphs']:
                for question in paragraph['qas']:
                    number += 1
                    yield Record(f'{path}, question {number}', {'context': paragraph['context']} | question)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        found = str(error) if isinstance(error, DamagedJson) else f'is not SQuAD JSON ({type(error).__name__})'
        expected = 'data: [{paragraphs: [{context, qas: [{id, question, answers: [{text, answer_start}]}]}]}]'
        raise BadInput(str(path), found, expected) from None


def _read_tfds(spec: str, needed: tuple[str, ...]) -> Iterator[Record]:
    records = open_tfds(spec, [])
    features = records.dataset_info.features
    check_columns(needed, features, f'tfds:{spec}')
    for index in range(len(records)):
        fields = {name: _plain(value, features[name]) for name, value in records[index].items()}
        yield Record(f'tfds:{spec}:{index}', fields)


def _plain(value: Any, feature: Any) -> Any:
    """Text for bytes, names for numbers of classes (None for -1, 'not known'), lists for arrays."""
    inner = getattr(feature, 'feature', feature)  # of a sequence
    if isinstance(value, dict):
        return {name: _plain(part, inner[name]) for name, part in value.items()}
    if hasattr(inner, 'int2str') and getattr(value, 'ndim', 0) == 0:
        return inner.int2str(int(value)) if int(value) >= 0 else None
    if getattr(value, 'ndim', 0):
        return [_plain(item, inner) for item in value]
    if isinstance(value, bytes):
        return value.decode('utf-8', 'replace')
    return value.item() if hasattr(value, 'item') else value


_READERS: dict[str, Callable[[Path, Task, tuple[str, ...]], Iterator[Record]]] = {
    'tsv': _read_tsv,
    'csv': _read_csv,
    'jsonl': _read_jsonl,
    'conll': _read_conll,
    'squad': _read_squad,
}


class RecordReader:
    """Records looked at one by one; those that lack something are skipped and counted, up to `task.bad_records`."""

    def __init__(self, source: str, task: Task, needed: tuple[str, ...]):
        self._records, self._allowed, self._needed = read_records(source, task, needed), task.bad_records, needed
        self._source = source
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Record]:
        """The records that have all that is needed.

        Raises:
          BadInput: as `read_records`; when there is no record, or too many lack something.
        """
        number, num_bad = 0, 0
        first_bad: tuple[str, str] | None = None
        for number, record in enumerate(self._records, 1):  # noqa: B007
            missing = [name for name in self._needed if record.fields.get(name) is None]
            if missing:
                num_bad, first_bad = num_bad + 1, first_bad or (record.where, missing[0])
                continue
            yield record
        if num_bad:
            self.counts['record without a column'] = num_bad
        if first_bad is not None and num_bad > self._allowed * number:
            where, name = first_bad
            raise BadInput(
                where,
                f'has no {name!r}; {num_bad:,} of {number:,} records lack a column',
                'a value in every column that is used',
                'fix the file, or --config.task.bad_records=SHARE',
            )
        if number == num_bad:
            raise BadInput(self._source, 'holds no example', 'at least one')


def sorted_labels(found: Iterable[str], where: str) -> tuple[str, ...]:
    """Labels in the order of their ids: numbers as numbers, else by their letters; `O` first.

    Raises:
      BadInput: for so many labels, or such long ones, that they look like text; they are not shown.
    """
    labels = {*found}
    longest = max(map(len, labels), default=0)
    if len(labels) > _MOST_LABELS or longest > _LONGEST_LABEL:
        raise BadInput(
            where,
            f'has {len(labels):,} different labels of up to {longest} characters',
            f'at most {_MOST_LABELS:,} of at most {_LONGEST_LABEL}',
            '--config.task.label=COLUMN, the column of the labels; config.task.labels lists what is so by intention',
        )
    by_number = all(label.lstrip('-').isdecimal() for label in labels)
    return tuple(sorted(labels, key=lambda label: (label != 'O', int(label) if by_number else 0, label)))


def unknown_label(where: str, label: str, labels: tuple[str, ...]) -> BadInput:
    """The error for a label that training has not seen."""
    shown = repr(label) if len(label) <= _LONGEST_LABEL else f'of {len(label)} characters'
    return BadInput(
        where,
        f'has the label {shown}, which the training file does not have (or config.task.labels does not list)',
        'one of ' + ', '.join(labels[:20]) + (' …' if len(labels) > 20 else ''),
        'fix the file, or --config.task.label=COLUMN if that is another',
    )
