"""Text files become documents: per file or at blank lines, with wrapped lines joined; hints suggest settings."""

import dataclasses
import gzip

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.evaluation.sample import read_held_out_windows
from bert_jax.text import chunks
from bert_jax.text.corpus import load_corpus
from bert_jax.text.documents import read_chunk
from bert_jax.text.prepare import prepare
from bert_jax.text.sources.lines import iter_lines, join_wrapped
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.plan import plan_source
from bert_jax.text.stats import Stats
from tests.support.texts import make_documents, write_documents

TOKENIZER = config.Tokenizer(vocab_size=200)
WRAPPED = 'the cat sat on the mat and looked at the dog which\nslept by the fire until the evening came and rain\nfell.'


def read(source, **options):
    """Reads the lines of all documents of a source; returns (lines per document, counts)."""
    stats, options = Stats(), ReadOptions(split_sentences=False, **options)
    planned = plan_source(source, 0, options)
    found = [document.lines for chunk in planned.chunks for document in read_chunk(chunk, options, stats)]
    return found, dict(+stats.counts)


def test_documents_are_files_or_separated_by_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 10)  # a file that is one document is never divided
    (tmp_path / 'a').write_text('one\ntwo\n\n\nthree\n\n' * 5)
    (tmp_path / 'b.gz').write_bytes(gzip.compress(b'four\n\nfive'))
    assert read(f'text:{tmp_path}/*')[0] == [['one', 'two'], ['three']] * 5 + [['four'], ['five']]
    assert read(f'text:{tmp_path}/*', documents='file')[0] == [['one', 'two', 'three'] * 5, ['four', 'five']]


def test_wrapped_lines_are_joined_within_paragraphs(tmp_path):
    (tmp_path / 'a').write_text(f'{WRAPPED}\n \n{WRAPPED}')
    joined = WRAPPED.replace('\n', ' ')
    assert read(f'text:{tmp_path}/a', join_lines=True)[0] == [[joined], [joined]]
    assert read(f'text:{tmp_path}/a', join_lines=True, documents='file')[0] == [[joined, joined]]
    parquet.write_table(pyarrow.table({'text': [f'{WRAPPED}\n\n{WRAPPED}']}), tmp_path / 'b')
    assert read(f'parquet:{tmp_path}/b', join_lines=True)[0] == [[joined, joined]]
    assert list(join_wrapped(['我们在', '学习', '한국어', '문장', 'a', '世'])) == ['我们在学习 한국어 문장 a 世']


def test_lines_of_a_long_text_match_splitlines(monkeypatch):
    rng, ends = np.random.default_rng(0), ['\n', '\r\n', '\r', '\u2028', 'a', 'b', 'c', 'd ']
    for longest in (1, 2, 3, 7, 50):
        monkeypatch.setattr(chunks, 'MAX_LINE_LENGTH', longest)
        for _ in range(100):
            text = ''.join(rng.choice(ends, 40))
            counts = Stats().counts
            lines = list(iter_lines(text, counts))
            assert ''.join(lines) == ''.join(text.splitlines()) and max(map(len, lines)) <= longest + 1
            if longest == 50:
                assert lines == text.splitlines() and not counts


def test_default_values_of_new_settings_do_not_change_a_corpus(tmp_path):
    source = write_documents(tmp_path / 'a', make_documents(60))
    data = config.Data(source=source, corpus=str(tmp_path / 'corpus'), validation_fraction=0.3)
    prepare(data, TOKENIZER, progress=False)
    assert not {'data.documents', 'data.join_lines'} & load_corpus(data.corpus).manifest['settings'].keys()
    with pytest.raises(BadInput, match='(?s)made with other settings.*expected: data.join_lines=True'):
        prepare(dataclasses.replace(data, join_lines=True), TOKENIZER, progress=False)
    joined = dataclasses.replace(data, join_lines=True, corpus=str(tmp_path / 'joined'))
    prepare(joined, TOKENIZER, progress=False)
    assert prepare(joined, TOKENIZER, progress=False).reused
    assert read_held_out_windows(dataclasses.replace(data, join_lines=True), 5) == read_held_out_windows(data, 5)


def test_empty_files_are_skipped_but_some_text_is_required(tmp_path):
    source = write_documents(tmp_path / 'a', make_documents(60))
    (tmp_path / 'b').touch()
    (tmp_path / 'c').write_text(' \n\n')
    data = config.Data(source=f'{source.removesuffix("a")}[abc]', corpus=str(tmp_path / 'corpus'))
    assert prepare(data, TOKENIZER, progress=False).dropped['empty_file'] == 2
    for names, where in (('b', 'b: is empty'), ('c', 'holds no text')):
        with pytest.raises(BadInput, match=where):
            other = dataclasses.replace(data, source=f'text:{tmp_path}/[{names}]', corpus=str(tmp_path / 'other'))
            prepare(other, TOKENIZER, progress=False)


def test_errors_for_directories_and_columns_suggest_a_fix(tmp_path):
    (tmp_path / 'a.txt').write_text('one')
    table = pyarrow.table({'text': [['a', 'b']], 'pair': [{'a': 'b'}], 'size': [1], 'title': ['x'], 'body': ['y']})
    parquet.write_table(table, tmp_path / 'table')
    for column, found in (('text', 'list<'), ('pair', 'struct<'), ('size', 'int64')):
        with pytest.raises(BadInput, match=f"(?s)column '{column}' is of type {found}.*text_field=NAME.*title, body"):
            plan_source(f'parquet:{tmp_path}/table', 0, ReadOptions(column))
    with pytest.raises(
        BadInput, match="(?s)no column 'content'.*--config.data.text_field=NAME, one of: pair.a, title, body"
    ):
        plan_source(f'parquet:{tmp_path}/table', 0, ReadOptions('content'))
    (tmp_path / 'lines').write_text('{"title": "x", "body": "y"}\n')
    with pytest.raises(BadInput, match='--config.data.text_field=NAME, one of: title, body'):
        read(f'jsonl:{tmp_path}/lines')
    (tmp_path / 'array').write_text('[{"text": "x"},\n{"text": "y"}]')
    with pytest.raises(BadInput, match='jq -c'):
        read(f'jsonl:{tmp_path}/array')


@pytest.mark.parametrize(
    'text, hint',
    [
        (f'{WRAPPED}\n\n' * 30, 'looks wrapped at 50 characters: --config.data.join_lines=True'),
        ('{"text": "one"}\n{"text": "two"}\n', 'looks like JSON lines'),
        ('<!DOCTYPE html>\n<p>one\n', 'looks like HTML or XML: the source html:GLOB reads'),
        ('a short line.\nand a line that is quite a lot longer than it.\n' * 30, None),
    ],
)
def test_hints_describe_what_the_text_looks_like(tmp_path, capsys, text, hint):
    (tmp_path / 'a').write_text(text)
    data = config.Data(source=f'text:{tmp_path}/a', corpus=str(tmp_path / 'corpus'), pairing='none')
    prepare(data, TOKENIZER)
    printed = capsys.readouterr().err
    assert f'hint: {tmp_path}/a {hint}' in printed if hint else 'hint' not in printed


def test_large_parquet_pages_give_a_hint(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('bert_jax.text.hints._LARGE_PAGE', 1 << 17)
    for name, length in (('long', 1000), ('short', 10)):
        parquet.write_table(pyarrow.table({'text': [f'{i} ' * length for i in range(300)]}), tmp_path / name)
        data = config.Data(source=f'parquet:{tmp_path}/{name}', corpus=str(tmp_path / f'{name}-corpus'))
        prepare(data, TOKENIZER)
        assert ('hint' in capsys.readouterr().err) == (name == 'long')


def test_many_small_files_suggest_one_document_per_file(tmp_path, capsys):
    for index, document in enumerate(make_documents(30)):
        (tmp_path / f'{index}.txt').write_text('\n\n'.join(f'{index} {line} {i}' for i, line in enumerate(document)))
    (tmp_path / 'empty.txt').write_text('')
    data = config.Data(source=f'text:{tmp_path}/*.txt', corpus=str(tmp_path / 'corpus'))
    prepare(data, TOKENIZER)
    assert 'hint: 30 files became' in capsys.readouterr().err
    data = dataclasses.replace(data, documents='file', corpus=str(tmp_path / 'other'))
    assert prepare(data, TOKENIZER).documents == 30 and 'hint' not in capsys.readouterr().err


def test_several_sources_can_be_set_as_a_string():
    as_string = "(('text:a.txt',1.0), ('text:b.txt',2))"
    assert config.resolve({'data': {'source': as_string}}).data.source == (('text:a.txt', 1.0), ('text:b.txt', 2))
    for bad in ("(('text:a.txt',1.0)", "('text:a.txt', 1.0)", '(print(1))'):
        with pytest.raises(BadInput, match='config.data.source: is '):
            config.resolve({'data': {'source': bad}})
    with pytest.raises(BadInput, match="'file', and no source is of text files"):
        config.resolve({'data': {'source': 'jsonl:a', 'documents': 'file'}})
