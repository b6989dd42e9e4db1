"""`prepare` needs less than half a gigabyte of memory per process, whatever the form of the text."""

import bz2
import gzip
import lzma
import os
import subprocess
import sys

import numpy as np
import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from bert_jax.errors import BadInput
from bert_jax.text.chunks import FileRange
from bert_jax.text.sources import parquet as reader
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.stats import Stats
from bert_jax.text.tokenizer import SPECIAL_TOKENS
from tests.support.processes import ROOT

CEILING = 475  # MB, including 130 for the program and its libraries
PREPARE = """if True:
    import resource
    import sys
    from bert_jax import config
    from bert_jax.text.prepare import prepare

    source, corpus, vocabulary = sys.argv[1:]
    data = config.Data(source=source, corpus=corpus, pairing='none', validation_fraction=0.0, bad_records=0.9)
    prepare(data, config.Tokenizer(path=vocabulary), progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
WORDS = np.array([f'{a}{b} ' for a in 'bcdfghjk' for b in 'aeiou'])


def words(count, seed=0):
    return ''.join(np.random.default_rng(seed).choice(WORDS, count))


def tiny_documents(path):
    path.write_text('\n\n'.join(f'{i:x}' for i in range(700_000)))
    return f'text:{path}'


def tiny_lines(path):
    path.write_text('\n'.join(f'{i % 100}' for i in range(6_000_000)))
    return f'text:{path}'


def abbreviations(path):
    path.write_text('\n'.join('a. b. J. ' * 200 for _ in range(2000)))
    return f'text:{path}'


def long_rows(path):
    table = pyarrow.table({'text': [words(1_100_000, seed) for seed in range(30)]})
    parquet.write_table(table, path, write_batch_size=1)  # one page per row
    return f'parquet:{path}'


def repeated_row(path):
    value = pyarrow.array(['word ' * 200_000])
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 400, pyarrow.int32()), value)
    parquet.write_table(pyarrow.table({'text': column}), path, compression='zstd')
    assert path.stat().st_size < 2000
    return f'parquet:{path}'


def packed(pack, suffix):
    def write(path):
        path = path.with_suffix(suffix)
        path.write_bytes(pack(b'word ' * 30_000_000))
        assert path.stat().st_size < 500_000
        return f'text:{path}'

    return write


def long_record(path):
    path.write_text('{"text": "' + 'word \\n' * 9_000_000 + '"}\n')
    return f'jsonl:{path}'


def nested_record(path):
    path.write_text('{"text": "x", "more": [' + '[],' * 15_000_000 + '[]]}\n{"text": "one"}\n{"text": "two"}\n')
    return f'jsonl:{path}'


def large_csv(path):
    with path.open('w') as file:
        file.write('id,text\n')
        file.writelines(f'{i},"first ""quoted"" line\nsecond line"\n' for i in range(1_000_000))
    return f'csv:{path}'


def large_utf16(path):
    path.write_text('word ' * 10_000_000, 'utf-16')
    return f'text:{path}'


def large_batches(path):
    path.mkdir()
    table = pyarrow.table({'text': [words(200_000)] * 120})
    with pyarrow.ipc.new_stream(path / 'data.arrow', table.schema) as writer:
        writer.write_table(table, max_chunksize=60)  # batches of 36 MB
    return f'hf:{path}'


SOURCES = {
    'tiny documents': tiny_documents,
    'tiny lines': tiny_lines,
    'abbreviations': abbreviations,
    'long rows': long_rows,
    'repeated row': repeated_row,
    'large .gz': packed(gzip.compress, '.gz'),
    'large .zst': packed(zstandard.compress, '.zst'),
    'large .bz2': packed(bz2.compress, '.bz2'),
    'large .xz': packed(lzma.compress, '.xz'),
    'large csv': large_csv,
    'large UTF-16': large_utf16,
    'large batches': large_batches,
    'long record': long_record,
    'nested record': nested_record,
}


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize('name', SOURCES)
def test_memory_stays_below_the_ceiling(tmp_path, name):
    (tmp_path / 'vocab.txt').write_text('\n'.join([*SPECIAL_TOKENS, *'abcdefghij', 'word']))
    arguments = [SOURCES[name](tmp_path / 'source'), tmp_path / 'corpus', tmp_path / 'vocab.txt']
    command = [sys.executable, '-c', PREPARE, *map(str, arguments)]
    # Started by a shell, as a child of this process would inherit its peak memory.
    done = subprocess.run(
        ['sh', '-c', '"$0" "$@"; exit $?', *command],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < CEILING, done.stdout


def test_column_that_expands_more_than_text_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, '_SMALL_BYTES', 1 << 20)
    column = ['word ' * 100_000] * 20
    parquet.write_table(pyarrow.table({'text': column}), tmp_path / 'a', compression='zstd', use_dictionary=False)
    with pytest.raises(BadInput, match="a: column 'text' expands from [0-9,]+ to 10,0[0-9,]+ bytes"):
        list(reader.read(FileRange(str(tmp_path / 'a')), ReadOptions(), Stats()))
