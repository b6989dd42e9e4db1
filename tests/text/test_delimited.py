"""CSV and TSV files: quoted line feeds, any delimiter, with or without a header, divided only between records."""

import csv
import io
import json

import numpy as np
import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.text import chunks
from bert_jax.text.documents import read_chunk
from bert_jax.text.prepare import prepare
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.plan import plan_source
from bert_jax.text.stats import Stats
from tests.support.texts import contents

TOKENIZER = config.Tokenizer(vocab_size=200)
RECORDS = [
    {'id': '1', 'title': 'Grüße', 'text': 'One line, with a comma.'},
    {'id': '2', 'title': 'Two "words"', 'text': 'First line.\nSecond "quoted" line.\n\nAfter a blank one.'},
    {'id': '3', 'title': '', 'text': '"Quoted" at the start; 你好\tand a tab | and a bar.'},
]


def read(source, **options):
    """Reads the lines of all documents of a source; returns (lines per document, stats)."""
    stats, options = Stats(), ReadOptions(**{'split_sentences': False} | options)
    planned = plan_source(source, 0, options)
    return [document.lines for chunk in planned.chunks for document in read_chunk(chunk, options, stats)], stats


def as_csv(records, delimiter=',', header=True, end='\r\n', **options):
    file = io.StringIO(newline='')
    writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter, lineterminator=end, **options)
    if header:
        writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def write_jsonl(path, records):
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))


EXPECTED = [[line for line in record['text'].split('\n') if line] for record in RECORDS]


@pytest.mark.parametrize('delimiter', [',', ';', '\t', '|', '^'])
@pytest.mark.parametrize('end', ['\r\n', '\n'])
def test_every_delimiter_is_found_or_set(tmp_path, delimiter, end):
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        (tmp_path / 'a').write_text('\ufeff' + as_csv(RECORDS, delimiter, end=end, quoting=quoting), newline='')
        for option in ({}, {'delimiter': delimiter})[delimiter == '^' :]:
            found, stats = read(f'csv:{tmp_path}/a', **option)
            assert found == EXPECTED and not +stats.counts and stats.records == 3
    if delimiter == '\t':
        assert read(f'tsv:{tmp_path}/a')[0] == EXPECTED


def test_file_without_a_header_takes_the_names_of_columns(tmp_path):
    (tmp_path / 'a').write_text(as_csv(RECORDS, ';', header=False), newline='')
    (tmp_path / 'b').write_text(as_csv(RECORDS, ';'), newline='')
    for name in 'ab':  # a header that is there is not text
        assert read(f'csv:{tmp_path}/{name}', columns=('id', 'title', 'text'))[0] == EXPECTED
    with pytest.raises(BadInput, match=r'a:1: has 3 cells\n *expected: 2: data.columns=id,text'):
        read(f'csv:{tmp_path}/a', columns=('id', 'text'))
    for name, field in (('a', 'text'), ('b', 'body')):
        with pytest.raises(BadInput, match=f"(?s){name}:1: is no header with the column '{field}'.*data.columns"):
            read(f'csv:{tmp_path}/{name}', text_field=field)


def test_quotation_marks_are_text_if_they_do_not_quote(tmp_path):
    (tmp_path / 'a').write_text('id\ttext\n1\t"Yes" she said.\n2\t"Open\n3\tinch 5\n')
    with pytest.raises(BadInput, match='a:3: begins a quoted cell without an end(.|\n)*data.quotes=False'):
        read(f'tsv:{tmp_path}/a')
    assert read(f'tsv:{tmp_path}/a', quotes=False)[0] == [['"Yes" she said.'], ['"Open'], ['inch 5']]


def test_bad_records_are_skipped_and_named_by_line(tmp_path):
    text = 'id,text\n1,one\n2,"two\nlines"\n3,three,more\n4,"four" or five\n6,six\n'
    (tmp_path / 'a').write_text(text)
    found, stats = read(f'csv:{tmp_path}/a')
    assert found == [['one'], ['two', 'lines'], ['six']] and stats.records == 5
    assert [bad[:2] for bad in stats.bad] == [
        [f'{tmp_path}/a:5', 'has 3 cells'],
        [f'{tmp_path}/a:6', "is not CSV (',' expected after '\"')"],
    ]


def test_csv_and_json_lines_of_the_same_articles_give_the_same_corpus(tmp_path):
    rng = np.random.default_rng(0)
    words = ['house', 'Grüße', '"so"', 'a,b', 'x;y', '世界', 'the', 'cat.', 'sat.\n', '\n\n', "it's"]
    records = [
        {'id': str(i), 'title': f'Title {i}', 'body': ' '.join(rng.choice(words, rng.integers(1, 60)))}
        for i in range(300)
    ]
    (tmp_path / 'articles.csv').write_text(as_csv(records), newline='')
    (tmp_path / 'articles.tsv').write_text(as_csv(records, '\t', quoting=csv.QUOTE_ALL), encoding='utf-16', newline='')
    write_jsonl(tmp_path / 'articles.jsonl', records)
    found = []
    for kind in ('jsonl', 'csv', 'tsv'):
        data = config.Data(
            source=f'{kind}:{tmp_path}/articles.{kind}',
            corpus=str(tmp_path / kind),
            template=r'{title}\n\n{body}',
            group_field='id',
        )
        prepare(data, TOKENIZER, progress=False)
        files, manifest = contents(data.corpus)
        found.append(({name: file for name, file in files.items() if name != 'sources.json'}, manifest['content_hash']))
    assert found[0] == found[1] == found[2]


def test_large_file_is_divided_only_between_records(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    letters = list('ab"\n, ;') + ['""', '",', '\n"', ',"', 'é']
    for trial in range(12):
        records = [{'id': str(i), 'text': ''.join(rng.choice(letters, rng.integers(1, 40)))} for i in range(60)]
        options = {'quoting': [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC][trial % 3]}
        text = as_csv(records, end=['\n', '\r\n'][trial % 2], **options)
        (tmp_path / 'a').write_text('\ufeff' * (trial % 5 == 0) + text, newline='')
        whole = read(f'csv:{tmp_path}/a')[0]
        for size in (40, 300):
            with monkeypatch.context() as patch:
                patch.setattr(chunks, '_MIN_CHUNK', size)
                planned = plan_source(f'csv:{tmp_path}/a', 0)
                assert len(planned.chunks) > 1 and read(f'csv:{tmp_path}/a')[0] == whole, (trial, size)
                ranges = [part for chunk in planned.chunks for part in chunk.ranges]
                assert [part.stop for part in ranges[:-1]] == [part.start for part in ranges[1:]]


def test_line_of_a_bad_record_counts_from_the_start_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 100)
    rows = [f'{i},"text\n{i}"' for i in range(100)]
    rows[70] = '70,a,b'
    (tmp_path / 'a').write_text('\n'.join(['id,text', *rows]) + '\n')
    stats = read(f'csv:{tmp_path}/a')[1]
    assert len(plan_source(f'csv:{tmp_path}/a', 0).chunks) > 5
    assert stats.bad[0][0] == f'{tmp_path}/a:{2 + 2 * 70}'


@pytest.mark.processes
def test_corpus_is_the_same_with_any_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 2000)
    records = [{'id': str(i), 'text': f'"Text" {i},\nwith a second line.\n'} for i in range(400)]
    (tmp_path / 'a').write_text(as_csv(records), newline='')
    found = []
    for workers in (1, 2):
        data = config.Data(source=f'csv:{tmp_path}/a', corpus=str(tmp_path / f'corpus-{workers}'))
        assert prepare(data, TOKENIZER, workers=workers, progress=False).documents == 400
        found.append(contents(data.corpus))
    assert found[0] == found[1]
