"""What `predict` reads: an example a line, JSON lines, or any of the files that a task is learned from."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from bert_jax.config.finetuning import FORMATS, Task
from bert_jax.data.labelled import Record, read_records
from bert_jax.errors import BadInput
from bert_jax.text.chunks import LONGEST_RECORD, Part
from bert_jax.text.lines import decode, read_lines


def read_examples(
    source: str, columns: tuple[str, ...], task: Task, *, optional: int, counts: Counter
) -> Iterator[Record]:
    """The examples of a source, in order, as records with the given columns.

    Args:
      source: FORMAT:FILE as in `config.task`, relative to the current directory; else a file (`.gz`, `.zst` too), or
        `-` for standard input. It holds JSON lines when its name says so (`.jsonl`, `jsonl:-`), else an example a line,
        with a tab between the two texts of a pair or between question and text.
      optional: how many of the last columns may be absent.
      counts: {what: how often}: lines that are not UTF-8, whose invalid bytes are replaced.

    Raises:
      BadInput: for a file that is not there or cannot be read, or a line without a column.
    """
    kind, _, _ = source.partition(':')
    needed = columns[: len(columns) - optional]
    is_stdin = source in ('-', 'jsonl:-')
    if kind in FORMATS and not is_stdin and not Path(source).exists():
        yield from read_records(source, task, needed)
        return
    name = 'standard input' if is_stdin else source
    lines = _standard_input(counts) if is_stdin else _lines_of(source, counts)
    is_json = source == 'jsonl:-' or Path(source.removesuffix('.gz').removesuffix('.zst')).suffix in (
        '.jsonl',
        '.ndjson',
    )
    for number, line in enumerate(lines, 1):
        where = f'{name}:{number}'
        if is_json and line.strip():
            yield Record(where, _parse(line, where))
        elif not is_json:
            yield Record(where, _split(line, columns, len(needed), where))


def _standard_input(counts: Counter) -> Iterator[str]:
    if sys.stdin is None:
        raise BadInput('--input=-', 'standard input is closed', 'a file, or a pipe that writes examples')
    number = 0
    while line := sys.stdin.buffer.readline(LONGEST_RECORD + 1):
        number += 1
        if len(line) > LONGEST_RECORD:
            raise _too_long(f'standard input:{number}')
        yield decode(line, counts).rstrip('\r\n')


def _lines_of(path: str, counts: Counter) -> Iterator[str]:
    if not Path(path).is_file():
        expected = f'a file, - for standard input, or FORMAT:FILE with FORMAT one of {", ".join(FORMATS)}'
        raise BadInput(f'--input={path}', 'is not a file', expected)
    for number, line in enumerate(read_lines(Part(path), 'jsonl', counts), 1):
        if line is None:
            raise _too_long(f'{path}:{number}')
        yield line


def _too_long(where: str) -> BadInput:
    return BadInput(where, 'is too long a line', f'lines of at most {LONGEST_RECORD:,} bytes')


def _parse(line: str, where: str) -> dict:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise BadInput(where, 'is not JSON', 'a JSON object a line') from None
    if not isinstance(record, dict):
        raise BadInput(where, f'is a JSON {type(record).__name__}', 'a JSON object a line')
    return record


def _split(line: str, columns: tuple[str, ...], num_needed: int, where: str) -> dict[str, str]:
    """The columns of a line; one column takes all of it."""
    cells = [line] if len(columns) == 1 else line.split('\t')
    if not num_needed <= len(cells) <= len(columns):
        found = f'has {len(cells)} texts'
        raise BadInput(where, found, ' and '.join(columns) + ', with a tab between them', 'or JSON lines: FILE.jsonl')
    return dict(zip(columns, cells, strict=False))


def describe(counts: Counter) -> list[str]:
    """Lines about what was replaced, cut or split; none for nothing. Invalid bytes are counted by line."""
    named = {what.replace('_', ' '): count for what, count in sorted(counts.items()) if what != 'invalid_bytes'}
    return [f'{count:,} x {what}' for what, count in named.items() if count]


def as_tsv(result: dict, task: Task) -> str:
    """A result for a terminal or a pipe: label or answer and score, between tabs; of tags a line for each word."""
    if task.kind == 'tagging':
        return '\n'.join([*(f'{each["word"]}\t{each["tag"]}' for each in result['tags']), ''])
    if task.kind == 'regression':
        return f'{result["score"]}'
    first = result['label'] if task.kind == 'classification' else ' '.join(result['answer'].split())
    return f'{first}\t{result["score"]}'


def jsonl(results: Iterable[dict]) -> Iterator[str]:
    """A JSON object a line."""
    return (json.dumps(result, ensure_ascii=False) + '\n' for result in results)
