"""No file becomes a corpus of noise: other formats are named, and invalid UTF-8 is counted per file."""

import bz2
import codecs
import dataclasses
import gzip
import io
import json
import lzma
import sqlite3
import tarfile
import zipfile

import numpy as np
import pyarrow
import pytest
import zstandard
from pyarrow import orc, parquet

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.text.prepare import prepare

TOKENIZER = config.Tokenizer(vocab_size=200)
GERMAN = 'Für Österreich müssen größere Bücher übersetzt werden, während Käufer zögern.\n\n'


def german(count, start=0):
    return ''.join(f'{i} {GERMAN}' for i in range(start, start + count))


def settings(tmp_path, source, **changes):
    return config.Data(source=source, corpus=str(tmp_path / 'corpus'), pairing='none', **changes)


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('a.txt', GERMAN)
    return file.getvalue()


def tarred():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        archive.addfile(tarfile.TarInfo('a.txt'))
    return file.getvalue()


def written(write):
    file = io.BytesIO()
    write(pyarrow.table({'text': [GERMAN]}), file)
    return file.getvalue()


def database(tmp_path):
    with sqlite3.connect(tmp_path / 'database') as connection:
        connection.execute('create table texts (text)')
    connection.close()
    return (tmp_path / 'database').read_bytes()


def arrow_file(table, file):
    with pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


FORMATS = {
    'UTF-16 .LE, no byte order mark': GERMAN.encode('utf-16-le'),
    'UTF-16 .BE, no byte order mark': GERMAN.encode('utf-16-be'),
    'parquet': written(parquet.write_table),
    'gzip': gzip.compress(GERMAN.encode()),
    'zstandard': zstandard.compress(GERMAN.encode()),
    'bzip2': bz2.compress(GERMAN.encode()),
    'xz': lzma.compress(GERMAN.encode()),
    'zip': zipped(),
    'tar': tarred(),
    'PDF': b'%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj\n',
    'Arrow': written(arrow_file),
    'ORC': written(orc.write_table),
    'Feather': b'FEA1\0\0\0\0',
    'NumPy': b'\x93NUMPY\x01\x00',
}


@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize('kind, suffix', [('text', '.txt'), ('jsonl', '.gz'), ('text', '.zst')])
def test_other_file_format_is_rejected_before_anything_is_written(tmp_path, name, kind, suffix):
    pack = {'.gz': gzip.compress, '.zst': zstandard.compress}.get(suffix, bytes)
    good = {'text': GERMAN, 'jsonl': json.dumps({'text': GERMAN})}[kind].encode()
    (tmp_path / f'a{suffix}').write_bytes(pack(good))
    (tmp_path / f'b{suffix}').write_bytes(pack(FORMATS[name]))
    with pytest.raises(BadInput, match=f'(?s)b{suffix}: is .*{name}'):
        prepare(settings(tmp_path, f'{kind}:{tmp_path}/[ab]{suffix}'), TOKENIZER, progress=False)
    assert not (tmp_path / 'corpus').exists() and not (tmp_path / '.corpus.partial').exists()


def test_suffix_or_source_kind_that_contradicts_the_file_is_rejected(tmp_path):
    (tmp_path / 'plain.gz').write_text(GERMAN)
    (tmp_path / 'other.zst').write_bytes(gzip.compress(GERMAN.encode()))
    (tmp_path / 'table').write_bytes(gzip.compress(GERMAN.encode()))
    (tmp_path / 'database.txt').write_bytes(database(tmp_path))
    for source, found in (
        ('text:plain.gz', 'is not compressed'),
        ('text:other.zst', 'is compressed with gzip'),
        ('parquet:table', 'is compressed with gzip'),
        ('text:database.txt', 'is an SQLite database'),
    ):
        kind, _, name = source.partition(':')
        with pytest.raises(BadInput, match=f'{name}: {found}'):
            prepare(settings(tmp_path, f'{kind}:{tmp_path}/{name}'), TOKENIZER, progress=False)


def test_byte_order_mark_and_signature_lookalikes_are_text(tmp_path):
    for name, text in (('a', codecs.BOM_UTF8.decode() + 'one'), ('b', 'PAR1 ORC BZh'), ('c', 'ORC'), ('d', '{x')):
        (tmp_path / name).write_text(text)
    summary = prepare(settings(tmp_path, f'text:{tmp_path}/[a-d]', validation_fraction=0.0), TOKENIZER, progress=False)
    assert summary.documents == 4 and not summary.dropped


@pytest.mark.parametrize('encoding', ['windows-1252', 'utf-8', 'mac-roman', 'gb18030', 'shift-jis', 'koi8-r'])
@pytest.mark.parametrize('kind', ['text', 'jsonl', 'parquet'])
def test_other_encoding_is_rejected_unless_bad_text_allows_it(tmp_path, kind, encoding, capsys):
    text = {'gb18030': '我们在学习中文。\n\n', 'shift-jis': 'これは本です。\n\n', 'koi8-r': 'Это книга о языке.\n\n'}
    lines = [f'{i} {text.get(encoding, GERMAN)}'.strip() for i in range(400)]
    for name, codec in (('good', 'utf-8'), ('bad', encoding)):
        encoded = [line.encode(codec) for line in (lines if name == 'bad' else german(400).split('\n\n'))]
        if kind == 'text':
            (tmp_path / name).write_bytes(b'\n\n'.join(encoded))
        elif kind == 'jsonl':
            (tmp_path / name).write_bytes(b''.join(b'{"text": "%s"}\n' % line for line in encoded))
        else:
            parquet.write_table(pyarrow.table({'text': pyarrow.array(encoded, pyarrow.binary())}), tmp_path / name)
    data = settings(tmp_path, f'{kind}:{tmp_path}/[bg]*d')
    if encoding == 'utf-8':
        assert 'invalid_bytes' not in prepare(data, TOKENIZER, progress=False).dropped
        return
    with pytest.raises(BadInput, match=r'(?s)bad: holds .* bytes that are not UTF-8 .*iconv.*data.bad_text'):
        prepare(data, TOKENIZER, progress=False)
    assert not (tmp_path / 'corpus').exists()
    summary = prepare(dataclasses.replace(data, bad_text=0.99), TOKENIZER)
    assert summary.dropped['invalid_bytes'] > 400 and f'{tmp_path}/bad: replaced ' in capsys.readouterr().err


def test_one_bad_file_is_named_but_a_few_bad_bytes_are_allowed(tmp_path, capsys):
    for index in range(50, 70):
        (tmp_path / f'good-{index:03d}').write_text(german(50, 100 * index))
    (tmp_path / 'good-050').write_bytes(german(20).encode().replace(b'\xc3\xb6', b'\xf6', 2))
    summary = prepare(settings(tmp_path, f'text:{tmp_path}/good-*'), TOKENIZER)
    assert summary.dropped['invalid_bytes'] == 2
    assert 'good-050: replaced 2 bytes that are not UTF-8' in capsys.readouterr().err
    (tmp_path / 'good-050').write_bytes(german(20).encode('windows-1252'))
    data = dataclasses.replace(settings(tmp_path, f'text:{tmp_path}/good-*'), corpus=str(tmp_path / 'other'))
    with pytest.raises(BadInput, match='good-050: holds 200 bytes'):
        prepare(data, TOKENIZER, progress=False)


def test_binary_noise_is_rejected_early(tmp_path):
    (tmp_path / 'a').write_bytes(np.random.default_rng(0).bytes(1 << 20))
    with pytest.raises(BadInput, match='a: holds .* bytes that are not UTF-8'):
        prepare(settings(tmp_path, f'text:{tmp_path}/a', bad_text=0.9), TOKENIZER, progress=False)
