"""Sets in BEIR format are read as BEIR reads them, or rejected by file and line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bert_jax.errors import BadInput
from bert_jax.evaluation.retrieval.dataset import read_set
from tests.support.retrieval import write_names_set


def test_set_has_the_queries_of_its_split_and_joined_titles(tmp_path: Path) -> None:
    dataset = read_set(str(write_names_set(tmp_path)), 'test')
    assert (dataset.query_ids, dataset.queries) == (['q0', 'q1', 'd5'], ['who is ada', 'who is bob', 'lovely film'])
    assert dataset.judgements == [{0: 2, 4: 1}, {1: 1}, {1: 1, 2: 0}]
    assert dataset.same_id.tolist() == [-1, -1, 5]
    assert [*dataset.passages()][:2] == ['who ada is in town', 'bob is in the film']
    assert dataset.num_passages == len([*dataset.passages()]) == 6


def test_compressed_files_numeric_ids_and_a_missing_header_are_accepted(tmp_path: Path) -> None:
    (tmp_path / 'qrels').mkdir()
    with gzip.open(tmp_path / 'corpus.jsonl.gz', 'wt') as file:
        file.write('{"_id": 7, "text": "a"}\n\n{"_id": "8", "text": "b", "title": null}\n')
    (tmp_path / 'queries.jsonl').write_text('{"_id": 1, "text": "who"}\n')
    (tmp_path / 'qrels' / 'dev.tsv').write_text('1\t8\t1\n')
    dataset = read_set(str(tmp_path), 'dev')
    assert (dataset.judgements, [*dataset.passages()]) == ([{1: 1}], ['a', 'b'])


NOT_UTF8 = '{"_id": "q0", "text": "café"}\n'.encode('latin-1')


def _append(name: str, text: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        with (directory / name).open('a') as file:
            file.write(text)

    return change


@pytest.mark.parametrize(
    'change, words',
    [
        (_append('qrels/test.tsv', 'q1\td77\t1\n'), ["test.tsv:7: names 'd77', which is unknown", 'corpus.jsonl']),
        (_append('qrels/test.tsv', 'q77\td1\t1\n'), ["test.tsv:7: names 'q77', which is unknown", 'queries.jsonl']),
        (_append('qrels/test.tsv', 'q1\td1\t0\n'), ['test.tsv:7: judges a query and a passage that an earlier']),
        (_append('qrels/test.tsv', 'q1 d1 1\n'), ['test.tsv:7: is not a judgement']),
        (_append('corpus.jsonl', '{"_id": "d1", "text": "x"}\n'), ["corpus.jsonl:7: has the _id 'd1' of an earlier"]),
        (_append('queries.jsonl', '{"_id": "q0", "text": "x"}\n'), ["queries.jsonl:5: has the _id 'q0' of an earlier"]),
        (_append('corpus.jsonl', '{"_id": "d9", "text": " "}\n'), ['corpus.jsonl:7: has neither', '--keep_empty']),
        (_append('corpus.jsonl', '{"_id": "d9"}\n'), ['corpus.jsonl:7: has no text']),
        (_append('corpus.jsonl', '{"text": "x"}\n'), ['corpus.jsonl:7: has no _id']),
        (_append('corpus.jsonl', '{"_id"\n'), ['corpus.jsonl:7: is not JSON']),
        (lambda d: (d / 'queries.jsonl').write_text('{"_id": "q0", "text": ""}\n'), ['queries.jsonl:1: has no text']),
        (lambda d: (d / 'queries.jsonl').unlink(), ['queries.jsonl: does not exist']),
        (lambda d: (d / 'qrels/test.tsv').rename(d / 'qrels/dev.tsv'), ['test.tsv: does not exist', '--split=dev']),
        (lambda d: (d / 'qrels/test.tsv').write_text('q0\td0\t1.0\n'), ['test.tsv:1: is not a judgement']),
        (lambda d: (d / 'corpus.jsonl').write_bytes(NOT_UTF8), ['corpus.jsonl: holds', 'not UTF-8']),
        (lambda d: (d / 'queries.jsonl').write_bytes(NOT_UTF8), ['queries.jsonl: holds', 'not UTF-8']),
        (lambda d: (d / 'qrels/test.tsv').write_bytes('q0\tdé\t1\n'.encode('latin-1')), ['test.tsv: holds']),
        (lambda d: (d / 'qrels/test.tsv').write_text('q0\td0\t0\n'), ['test.tsv: judges no passage as relevant']),
    ],
)
def test_bad_set_is_rejected_by_file_and_line(
    change: Callable[[Path], object], words: list[str], tmp_path: Path
) -> None:
    change(write_names_set(tmp_path))
    with pytest.raises(BadInput) as error:
        read_set(str(tmp_path), 'test')
    assert all(word in str(error.value) for word in words), str(error.value)


def test_empty_passages_are_kept_on_request(tmp_path: Path) -> None:
    directory = write_names_set(tmp_path)
    with (directory / 'corpus.jsonl').open('a') as file:
        file.write(json.dumps({'_id': 'd9', 'title': '', 'text': ''}) + '\n')
    dataset = read_set(str(directory), 'test', keep_empty=True)
    assert [*dataset.passages()][-1] == ''
