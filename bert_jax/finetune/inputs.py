"""Reads the input of `predict`: one example per line, JSON lines, or any file format used for training."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bert_jax.config.finetuning import FORMATS, SCORES, Task
from bert_jax.data.labelled import Record, parse_record, read_records
from bert_jax.errors import BadInput
from bert_jax.finetune.predict import Columns
from bert_jax.text.chunks import MAX_RECORD_BYTES
from bert_jax.text.sources.compression import without_compression
from bert_jax.text.sources.lines import decode, line_too_long_error, read_whole_lines

_STANDARD_INPUT = ('-', 'jsonl:-')
_JSON_LINES = ('.jsonl', '.ndjson')  # file name suffixes


def check_source(source: str) -> None:
    """Checks the name of a source before a model is loaded.

    Raises:
      BadInput: if `read_examples` cannot read it.
    """
    format_name, _, path = source.partition(':')
    if source in _STANDARD_INPUT or (format_name == 'tfds' and path):
        return
    if not Path(path if _is_of_format(source) else source).is_file():
        expected = f'a file, - for standard input, or FORMAT:FILE with FORMAT one of {", ".join(FORMATS)}'
        raise BadInput(f'--input={source}', 'is not a file', expected)


def _is_of_format(source: str) -> bool:
    return source.partition(':')[0] in FORMATS and source not in _STANDARD_INPUT and not Path(source).exists()


def read_examples(source: str, columns: Columns, task: Task, *, counts: Counter) -> Iterator[Record]:
    """Yields the examples of a source, in order, as records with the given columns.

    Args:
      source: FORMAT:FILE as in `config.task`, relative to the current directory; or a file, which may be compressed
        (`.gz`, `.zst`, `.bz2`, `.xz`); or `-` for standard input. `.jsonl` files and `jsonl:-` hold JSON lines. Other
        input holds one example per line, with a tab between the two texts of a pair or between question and context.
      counts: {event: count}; updated for lines that are not UTF-8, whose invalid bytes are replaced.

    Raises:
      BadInput: for a missing or unreadable file, or a line with too few or too many texts.
    """
    if _is_of_format(source):
        yield from read_records(source, task, ())
        return
    is_stdin = source in _STANDARD_INPUT
    name = 'standard input' if is_stdin else source
    lines = _standard_input(counts) if is_stdin else read_whole_lines(source, counts)
    is_json = source == 'jsonl:-' or without_compression(source).endswith(_JSON_LINES)
    for line_number, line in enumerate(lines, 1):
        where = f'{name}:{line_number}'
        if is_json and line.strip():
            yield Record(where, parse_record(line, where))
        elif not is_json:
            yield Record(where, _split(line, columns, where))


def _standard_input(counts: Counter) -> Iterator[str]:
    if sys.stdin is None:
        raise BadInput('--input=-', 'standard input is closed', 'a file, or a pipe that writes examples')
    line_number = 0
    while line := sys.stdin.buffer.readline(MAX_RECORD_BYTES + 1):
        line_number += 1
        if len(line) > MAX_RECORD_BYTES:
            raise line_too_long_error(f'standard input:{line_number}')
        yield decode(line, counts).rstrip('\r\n')


def _split(line: str, columns: Columns, where: str) -> dict[str, str]:
    """Splits a line into columns at tabs; a single column takes the whole line."""
    cells = [line] if len(columns.names) == 1 else line.split('\t')
    if not columns.num_needed <= len(cells) <= len(columns.names):
        texts = '1 text' if len(cells) == 1 else f'{len(cells)} texts'
        found, expected = f'has {texts}, counted by tabs', f'{" and ".join(columns.names)}, separated by a tab'
        raise BadInput(where, found, expected, 'or use JSON lines, in a file whose name ends in .jsonl')
    return dict(zip(columns.names, cells, strict=False))


def describe(counts: Counter) -> list[str]:
    """Formats one line per kind of text that was replaced, cut or split; invalid bytes are counted by line."""
    named = {what.replace('_', ' '): count for what, count in sorted(counts.items()) if what != 'invalid_bytes'}
    return [f'{count:,} x {what}' for what, count in named.items() if count]


def as_tsv(result: dict, task: Task) -> str:
    """Formats a result for a terminal or pipe: label or answer, tab, score; for tags, one line per word."""
    if task.kind == 'tagging':
        return '\n'.join([*(f'{each["word"]}\t{each["tag"]}' for each in result['tags']), ''])
    if task.kind in SCORES:
        return f'{result["score"]}'
    first = result['label'] if task.kind == 'classification' else ' '.join(result['answer'].split())
    return f'{first}\t{result["score"]}'
