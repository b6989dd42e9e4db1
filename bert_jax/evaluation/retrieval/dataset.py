"""Reads retrieval sets in BEIR format (Thakur et al. 2021, https://arxiv.org/abs/2104.08663).

    corpus.jsonl      {"_id": "d1", "title": "optional", "text": "…"}, a passage per line
    queries.jsonl     {"_id": "q1", "text": "…"}, a query per line
    qrels/SPLIT.tsv   query-id, corpus-id, score; the first line names the columns

The files of passages and queries may end in .gz, .zst, .bz2 or .xz. `Q` queries.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bert_jax import activity
from bert_jax.data.labelled import parse_record, read_utf8_lines
from bert_jax.errors import BadInput
from bert_jax.text.sources.compression import DECOMPRESSORS

_LAYOUT = 'a directory with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv'
_SUFFIXES = ('', *DECOMPRESSORS)
_MAX_ID_CHARACTERS = 40  # longer ids may be text, which errors never contain


class Item(NamedTuple):
    """A passage or a query.

    Attributes:
      where: its file and line.
    """

    where: str
    id: str
    text: str


class _Judgement(NamedTuple):
    where: str
    query_id: str
    passage_id: str
    grade: int


@dataclasses.dataclass(frozen=True)
class RetrievalSet:
    """A checked set. The passages stay on disk and are read again by `passages`.

    Attributes:
      corpus: the file of the passages.
      query_ids: [Q], the queries that the split judges, in the order of their file.
      queries: [Q], their texts.
      judgements: [Q], {index of a passage: grade}; a passage is relevant if its grade is at least 1.
      same_id: [Q] int64, index of the passage with the id of the query; -1 if there is none. BEIR leaves it out of the
        ranking, because in some sets the queries are passages.
    """

    corpus: Path
    num_passages: int
    query_ids: list[str]
    queries: list[str]
    judgements: list[dict[int, int]]
    same_id: np.ndarray

    def passages(self) -> Iterator[str]:
        """Yields the text of each passage: its title, if it has one, a space, and its text."""
        return (item.text for item in _read_items(self.corpus, has_titles=True))


def read_set(directory: str, split: str, *, keep_empty: bool = False) -> RetrievalSet:
    """Reads and checks a set.

    Args:
      split: the name of the judgements, `test` for qrels/test.tsv.
      keep_empty: accepts passages without text, which some published sets have.

    Raises:
      BadInput: names the file and line of an unknown or duplicate id, of an empty text, or of a malformed line.
    """
    if not Path(directory).is_dir():
        raise BadInput(directory, 'is not a directory', _LAYOUT)
    qrels = _find_qrels(Path(directory), split)
    judged = list(_read_judgements(qrels))
    if not any(judgement.grade >= 1 for judgement in judged):
        raise BadInput(str(qrels), 'judges no passage as relevant', 'at least one score of 1 or more')
    corpus, queries = _find(Path(directory), 'corpus.jsonl'), _find(Path(directory), 'queries.jsonl')
    texts = _judged_queries(queries, {judgement.query_id for judgement in judged})
    needed = texts.keys() | {judgement.passage_id for judgement in judged}
    index_of, num_passages = _index_passages(corpus, needed, keep_empty)
    judgements: dict[str, dict[int, int]] = {query_id: {} for query_id in texts}
    for where, query_id, passage_id, grade in judged:
        for each, known, path in ((query_id, texts, queries), (passage_id, index_of, corpus)):
            if each not in known:
                raise BadInput(where, f'names {_quoted(each)}, which is unknown', f'the _id of a line in {path}')
        if index_of[passage_id] in judgements[query_id]:
            raise BadInput(where, 'judges a query and a passage that an earlier line judges', 'each pair once')
        judgements[query_id][index_of[passage_id]] = grade
    same_id = np.array([index_of.get(query_id, -1) for query_id in texts], np.int64)
    return RetrievalSet(corpus, num_passages, [*texts], [*texts.values()], [*judgements.values()], same_id)


def _find(directory: Path, name: str) -> Path:
    for suffix in _SUFFIXES:
        if (path := directory / f'{name}{suffix}').is_file():
            return path
    raise BadInput(str(directory / name), 'does not exist', _LAYOUT)


def _find_qrels(directory: Path, split: str) -> Path:
    path = directory / 'qrels' / f'{split}.tsv'
    if not path.is_file():
        splits = sorted(each.stem for each in (directory / 'qrels').glob('*.tsv'))
        raise BadInput(str(path), 'does not exist', _LAYOUT, f'--split={splits[0]}' if splits else '')
    return path


def _read_judgements(path: Path) -> Iterator[_Judgement]:
    for line_number, line in enumerate(read_utf8_lines(path), 1):
        cells = line.split('\t')
        where = f'{path}:{line_number}'
        if not line.strip() or (line_number == 1 and not _is_number(cells[-1])):
            continue
        if len(cells) != 3 or not _is_integer(cells[2]):
            expected = 'query-id, corpus-id and an integer score, separated by tabs'
            raise BadInput(where, 'is not a judgement', expected)
        yield _Judgement(where, cells[0], cells[1], int(cells[2]))


def _is_integer(cell: str) -> bool:
    return cell.strip().removeprefix('-').isdecimal()


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _judged_queries(path: Path, judged: set[str]) -> dict[str, str]:
    """Returns {id: text} of the queries that the split judges."""
    texts: dict[str, str] = {}
    seen: set[str] = set()
    for where, query_id, text in _read_items(path, has_titles=False):
        _check_is_new(query_id, seen, where)
        if query_id in judged:
            if not text:
                raise BadInput(where, 'has no text', 'a query with a text')
            texts[query_id] = text
    return texts


def _index_passages(path: Path, needed: set[str], keep_empty: bool) -> tuple[dict[str, int], int]:
    """Checks all passages; returns ({id: index} of those that are needed, number of passages)."""
    index_of: dict[str, int] = {}
    seen: set[str] = set()

    def describe() -> str:
        return f'checking {path.name}, {len(seen):,} passages'

    with activity.progress(describe, desc=f'checking {path.name}', unit=' passages', leave=False, delay=1.0) as bar:
        for index, (where, passage_id, text) in enumerate(_read_items(path, has_titles=True)):
            _check_is_new(passage_id, seen, where)
            if not text and not keep_empty:
                fix = '--keep_empty encodes such passages as empty texts'
                raise BadInput(where, 'has neither a title nor a text', 'a passage with a text', fix)
            if passage_id in needed:
                index_of[passage_id] = index
            bar.update()
    return index_of, len(seen)


def _check_is_new(item_id: str, seen: set[str], where: str) -> None:
    if item_id in seen:
        raise BadInput(where, f'has the _id {_quoted(item_id)} of an earlier line', 'a different _id on each line')
    seen.add(item_id)


def _read_items(path: Path, has_titles: bool) -> Iterator[Item]:
    for line_number, line in enumerate(read_utf8_lines(path), 1):
        if line.strip():
            where = f'{path}:{line_number}'
            yield _as_item(where, parse_record(line, where), has_titles)


def _as_item(where: str, fields: dict[str, Any], has_titles: bool) -> Item:
    item_id, text = fields.get('_id'), fields.get('text')
    if not (isinstance(item_id, str) and item_id) and type(item_id) is not int:
        raise BadInput(where, 'has no _id', '{"_id": …, "text": …}')
    if not isinstance(text, str):
        raise BadInput(where, 'has no text', '{"_id": …, "text": …}')
    return Item(where, str(item_id), passage_text(fields) if has_titles else text.strip())


def passage_text(fields: dict[str, Any]) -> str:
    """Returns the text of a passage: its title, if it has one, a space, and its text."""
    title = fields.get('title')
    return f'{title if isinstance(title, str) else ""} {fields["text"]}'.strip()


def _quoted(item_id: str) -> str:
    return repr(item_id) if len(item_id) <= _MAX_ID_CHARACTERS else f'an id of {len(item_id)} characters'
