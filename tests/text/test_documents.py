"""Sources yield the same documents whatever their container; errors name bad files but never quote their text."""

import bz2
import gzip
import json
import lzma
from collections import Counter

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from bert_jax.errors import BadInput
from bert_jax.text.documents import read_chunk
from bert_jax.text.sources import python_docs
from bert_jax.text.sources.compression import DECOMPRESSORS
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.plan import plan_source
from bert_jax.text.stats import Stats
from tests.support.texts import write_tfds

DOCUMENTS = [['Grüße aus Köln.', 'Zweiter Satz.'], ['你好 world.'], ['A third one.', 'Ends here.']]
SECRET = 'swordfish'
PACKS = [
    ('', bytes),
    ('.gz', gzip.compress),
    ('.zst', zstandard.compress),
    ('.bz2', bz2.compress),
    ('.xz', lzma.compress),
]


def read(source, split_sentences=False, stats=None, bad_records=0.0, **options):
    """Reads the sentences of all documents of a source."""
    stats = stats or Stats()
    options = ReadOptions(split_sentences=split_sentences, **options)
    planned = plan_source(str(source), 0, options)
    documents = [document.sentences for chunk in planned.chunks for document in read_chunk(chunk, options, stats)]
    stats.check_bad_records(bad_records)
    return documents


def as_text(documents):
    return '\n\n'.join('\n'.join(lines) for lines in documents).encode() + b'\n'


def as_jsonl(documents):
    return ''.join(json.dumps({'id': i, 'text': '\n'.join(d)}) + '\n' for i, d in enumerate(documents)).encode()


@pytest.mark.parametrize('kind, form', [('text', as_text), ('jsonl', as_jsonl)])
@pytest.mark.parametrize('suffix, pack', PACKS)
def test_every_container_yields_the_same_documents(tmp_path, kind, form, suffix, pack):
    (tmp_path / f'a{suffix}').write_bytes(pack(form(DOCUMENTS[:1])))
    (tmp_path / f'b{suffix}').write_bytes(pack(form(DOCUMENTS[1:])))
    assert read(f'{kind}:{tmp_path}/*{suffix}') == DOCUMENTS


def test_parquet_string_types_yield_the_same_documents(tmp_path):
    for name, kind in (('a', pyarrow.string()), ('b', pyarrow.large_string())):
        column = pyarrow.array(['\n'.join(lines) for lines in DOCUMENTS], kind)
        parquet.write_table(pyarrow.table({'text': column}), tmp_path / name)
    assert read(f'parquet:{tmp_path}/*') == DOCUMENTS * 2


def test_tfds_is_read_without_tensorflow(tmp_path, monkeypatch):
    tfds = write_tfds(tmp_path, DOCUMENTS)
    monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path))
    assert read('tfds:letters') == DOCUMENTS
    assert read('tfds:letters:1.0.0:train[1:]') == DOCUMENTS[1:]
    with pytest.raises(BadInput, match='label, text|text, label'):
        read('tfds:letters', text_field='body')
    with pytest.raises(BadInput, match='has no split'):
        read('tfds:letters:valid')


def test_invalid_bytes_are_replaced_and_counted(tmp_path):
    (tmp_path / 'a').write_bytes(b'\xef\xbb\xbfone\xff\r\nt\0wo\n \n\x0c\nthree')
    stats = Stats()
    assert read(f'text:{tmp_path}/a', stats=stats) == [['one\ufffd', 'two'], ['three']]
    assert +stats.counts == {'invalid_utf8_replaced': 1, 'invalid_bytes': 1, 'nul_bytes_removed': 1}
    assert stats.invalid == {f'{tmp_path}/a': [2, 12]}
    (tmp_path / 'b').write_text('{"text": "half \\ud800 pair"}\n{"text": " "}\n')
    stats = Stats()
    assert read(f'jsonl:{tmp_path}/b', stats=stats) == [['half \ufffd pair']]
    assert +stats.counts == {'invalid_utf8_replaced': 1, 'invalid_bytes': 1, 'empty_document': 1}


def test_lines_survive_any_read_block_size(tmp_path, monkeypatch):
    (tmp_path / 'a').write_bytes(as_text(DOCUMENTS * 3))
    for size in range(1, 12):
        monkeypatch.setattr('bert_jax.text.sources.lines._BLOCK_BYTES', size)
        assert read(f'text:{tmp_path}/a') == DOCUMENTS * 3


def test_text_without_blank_lines_is_cut_to_bound_memory(tmp_path, monkeypatch):
    monkeypatch.setattr('bert_jax.text.chunks.MAX_DOCUMENT_LENGTH', 10)
    (tmp_path / 'a').write_text('12345\n67890\nabc\n')
    stats = Stats()
    assert read(f'text:{tmp_path}/a', stats=stats) == [['12345', '67890'], ['abc']]
    assert +stats.counts == {'long_document_cut': 1}


@pytest.mark.parametrize(
    'source, content, where',
    [
        ('text', b'', 'bad'),
        ('text', f'{SECRET}'.encode('utf-16-le'), 'bad'),
        ('csv', f'{SECRET},{SECRET}\n'.encode(), 'bad:1'),
        ('csv', f'id,text\n1,{SECRET},x\n'.encode(), 'bad:2'),
        ('csv', f'id,text\n1,"{SECRET}\n'.encode(), 'bad:2'),
        ('jsonl', f'{{"text": "fine"}}\n{{"text": "{SECRET}\n'.encode(), 'bad:2'),
        ('jsonl', f'{{"body": "{SECRET}"}}\n'.encode(), 'bad:1'),
        ('jsonl', f'"{SECRET}"\n'.encode(), 'bad:1'),
        ('jsonl', b'{"text": 3}\n', 'bad:1'),
        ('parquet', SECRET.encode(), 'bad'),
    ],
)
def test_error_names_the_bad_file_but_never_its_text(tmp_path, source, content, where):
    (tmp_path / 'bad').write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read(f'{source}:{tmp_path}/bad')
    assert caught.value.where.endswith(where)
    assert SECRET not in str(caught.getrepr(chain=True, showlocals=False).reprcrash)
    assert SECRET not in str(caught.value) and caught.value.__suppress_context__ | (caught.value.__context__ is None)


@pytest.mark.parametrize('suffix, pack', PACKS[1:])
@pytest.mark.parametrize('fraction', [0.2, 0.6, 0.99])
def test_truncated_archive_is_an_error(tmp_path, suffix, pack, fraction):
    whole = pack(''.join(f'line {i * i % 7919}\n' for i in range(5000)).encode())
    (tmp_path / f'a{suffix}').write_bytes(whole[: int(fraction * len(whole))])
    with pytest.raises(BadInput, match='truncated or damaged'):
        read(f'text:{tmp_path}/a{suffix}')


def test_all_frames_of_a_concatenated_archive_are_read(tmp_path):
    for suffix, pack in PACKS[1:]:
        (tmp_path / f'a{suffix}').write_bytes(pack(b'one\n') + pack(b'two\n'))
        assert read(f'text:{tmp_path}/a{suffix}') == [['one', 'two']]


@pytest.mark.parametrize('suffix, pack', PACKS[1:])
def test_damage_after_the_first_frame_is_an_error(tmp_path, suffix, pack):
    frame = pack(b'two\n' * 100)
    for damaged in (frame[:1] + b'?' + frame[2:], frame[:-1], b'garbage'):
        (tmp_path / f'a{suffix}').write_bytes(pack(b'one\n') + damaged)
        with pytest.raises(BadInput, match='truncated or damaged'):
            read(f'text:{tmp_path}/a{suffix}')


def test_frames_of_any_length_and_padding_of_xz_are_read(tmp_path, monkeypatch):
    text = ''.join(f'line {i * i % 7919}\n' for i in range(3000)).encode()
    for block in (1, 64, 1 << 20):
        monkeypatch.setattr('bert_jax.text.sources.compression._COMPRESSED_BYTES', block)
        monkeypatch.setattr('bert_jax.text.sources.compression._BLOCK_BYTES', max(block, 64))
        for suffix, pack, between in (('.bz2', bz2.compress, b''), ('.xz', lzma.compress, bytes(400))):
            path = tmp_path / f'a{suffix}'
            path.write_bytes(pack(text) + between + pack(b'') + pack(text) + between)
            with path.open('rb') as file:
                assert b''.join(DECOMPRESSORS[suffix](str(path), file)) == 2 * text


def test_nested_fields_and_templates_of_records(tmp_path):
    records = [
        {'id': 7, 'meta': {'title': 'Grüße', 'year': 1998}, 'body': 'One.\nTwo.'},
        {'id': 8, 'meta': None, 'body': 'Three.'},
    ]
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / 'a.parquet')
    for source in (f'jsonl:{tmp_path}/a.jsonl', f'parquet:{tmp_path}/a.parquet'):
        assert read(source, text_field='meta.title') == [['Grüße']]
        found = read(source, template=r'{meta.title} ({meta.year}){{}}\n\n{body}')
        assert found == [['Grüße (1998){}', 'One.', 'Two.'], ['(){}', 'Three.']]
        with pytest.raises(BadInput, match="meta.body'"):
            read(source, text_field='meta.body')
        with pytest.raises(BadInput, match="'meta' is of type"):
            read(source, template='{meta}')
    with pytest.raises(BadInput, match='--config.data.text_field=NAME, one of: meta.title, meta.year'):
        read(f'jsonl:{tmp_path}/a.jsonl', text_field='meta.body')


def test_directory_stands_for_its_files(tmp_path):
    (tmp_path / 'more').mkdir()
    (tmp_path / 'a.txt').write_text('one')
    (tmp_path / 'more' / 'b.jsonl.gz').write_bytes(gzip.compress(b'{"text": "two"}'))
    (tmp_path / '.hidden').write_text('three')
    assert read(f'text:{tmp_path}') == [['one'], ['{"text": "two"}']]
    assert read(f'jsonl:{tmp_path}') == read(f'jsonl:{tmp_path}/') == [['two']]
    with pytest.raises(BadInput, match=r'contains no file whose name ends in \.parquet'):
        read(f'parquet:{tmp_path}')


def test_suffixes_are_recognized_in_any_case(tmp_path):
    (tmp_path / 'A.CSV').write_text('text\none\n')
    (tmp_path / 'b.csv.GZ').write_bytes(gzip.compress(b'text\ntwo\n'))
    (tmp_path / 'c.TXT.Xz').write_bytes(lzma.compress(b'three'))
    assert read(f'csv:{tmp_path}') == [['one'], ['two']]
    assert read(f'text:{tmp_path}/c.*') == [['three']]
    (tmp_path / 'd.GZ').write_text('not compressed')
    with pytest.raises(BadInput, match=r'not compressed.*\n.*expected: a \.gz file'):
        read(f'text:{tmp_path}/d.GZ')


def test_empty_glob_and_missing_column_are_errors(tmp_path):
    with pytest.raises(BadInput, match='no file matches'):
        read(f'text:{tmp_path}/*.txt')
    parquet.write_table(pyarrow.table({'body': ['x']}), tmp_path / 'a')
    with pytest.raises(BadInput, match='body'):
        read(f'parquet:{tmp_path}/a')


def test_docstrings_yield_prose_without_code(tmp_path):
    (tmp_path / 'm.py').write_text(
        '"""Module words.\n\n    >>> 1 + 1\n    2\n\nAfter it::\n\n    x = 1\n\nA line\nand its end.\n"""\n'
        'raise SystemError("imported!")\n'
        'if True:\n    def f(a):\n        r"""Takes one.\n\n        Args:\n'
        '          a: what it\n            takes.\n          b: other.\n        """\n'
    )
    paragraphs = list(python_docs.read_paragraphs(tmp_path / 'm.py', Counter()))
    assert paragraphs[:4] == ['Module words.', 'After it::', 'A line and its end.', 'Takes one.']
    assert paragraphs[4:] == ['Args:', 'a: what it takes.', 'b: other.']
    (tmp_path / 'm.py').write_text('def (')
    counts = Counter()
    assert not list(python_docs.read_paragraphs(tmp_path / 'm.py', counts)) and counts == {'unparsable_module': 1}


def test_python_docs_contains_only_required_packages():
    names = [name for name, _ in python_docs.find_modules()]
    assert names == sorted(set(names))
    packages = {name.partition('.')[0] for name in names}
    assert {'argparse', 'jax', 'numpy', 'optax'} <= packages
    assert not {'pip', 'pytest', 'ruff', 'torch', 'transformers', 'bert_jax', 'test', 'idlelib'} & packages
