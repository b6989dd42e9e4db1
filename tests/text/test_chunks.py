"""However a file is divided into ranges, each document is read exactly once."""

import bz2
import functools
import gzip
import json
import lzma
import sys
import tracemalloc

import numpy as np
import pyarrow
import pytest
import zstandard
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from pyarrow import parquet

from bert_jax.errors import BadInput
from bert_jax.text import chunks
from bert_jax.text.chunks import Chunk, FileRange
from bert_jax.text.documents import read_chunk
from bert_jax.text.sources.files import find_files
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.plan import plan_source
from bert_jax.text.stats import Stats

READING = ReadOptions(split_sentences=False)
TEXT = 'Grüße\n你好 x\n\n\na\n \t\u3000\nb\r\nc\r\n\r\n\n\nd e\n\nlast 世界'


def read(kind, file_ranges, stats=None):
    return [document.sentences for document in read_chunk(Chunk(kind, 0, file_ranges, 0), READING, stats or Stats())]


def ranges(path, borders):
    size = path.stat().st_size
    return [FileRange(str(path), a, b) for a, b in zip([0, *borders], [*borders, size], strict=True)]


@pytest.mark.parametrize('end', ['', '\n', '\n\n'])
def test_text_split_at_any_offset_yields_the_same_documents(tmp_path, end):
    (tmp_path / 'a').write_bytes((TEXT + end).encode())
    whole = read('text', [FileRange(str(tmp_path / 'a'))])
    assert whole == [['Grüße', '你好 x'], ['a'], ['b', 'c'], ['d e'], ['last 世界']]
    size = (tmp_path / 'a').stat().st_size
    rng = np.random.default_rng(0)
    cuts = [[i] for i in range(size + 1)] + [sorted(rng.integers(0, size, 4).tolist()) for _ in range(200)]
    for borders in [*cuts, list(range(size))]:
        assert [d for part in ranges(tmp_path / 'a', borders) for d in read('text', [part])] == whole, borders


def test_json_lines_split_at_any_offset_yield_the_same_documents(tmp_path):
    lines = [json.dumps({'text': text}, ensure_ascii=False) for text in ('Grüße', 'a\nb', '世界')]
    (tmp_path / 'a').write_text('\n'.join([lines[0], '', *lines[1:]]) + '\n')
    for i in range((tmp_path / 'a').stat().st_size + 1):
        assert [d for part in ranges(tmp_path / 'a', [i]) for d in read('jsonl', [part])] == [
            ['Grüße'],
            ['a', 'b'],
            ['世界'],
        ]


def test_text_without_lines_keeps_every_character_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, 'MAX_LINE_LENGTH', 10)
    monkeypatch.setattr(chunks, 'MAX_DOCUMENT_LENGTH', 25)
    monkeypatch.setattr('bert_jax.text.sources.lines._BLOCK_BYTES', 10)
    rng = np.random.default_rng(1)
    for alphabet in ('aé世\n', 'aé世🙂', 'ab\n\n'):
        text = ''.join(rng.choice(list(alphabet), 300))
        (tmp_path / 'a').write_text(text)
        size = (tmp_path / 'a').stat().st_size
        for start in range(0, size, 3):
            borders = list(range(start, size, 40))
            stats = Stats()
            documents = [d for part in ranges(tmp_path / 'a', borders) for d in read('text', [part], stats)]
            assert ''.join(line for document in documents for line in document) == text.replace('\n', '')
            assert max(len(line.encode()) for document in documents for line in document) <= 10
            assert max(sum(map(len, document)) for document in documents) <= 25 + 10
            assert stats.counts['long_line_split'] > 0 or '\n' in alphabet


def test_long_lines_are_split_and_long_records_are_bad(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, 'MAX_LINE_LENGTH', 1000)
    monkeypatch.setattr(chunks, 'MAX_RECORD_BYTES', 3000)
    monkeypatch.setattr('bert_jax.text.sources.lines._BLOCK_BYTES', 300)
    (tmp_path / 'a').write_text('x' * 2500 + '\n' + 'y' * 1000 + '\n\nz')
    stats = Stats()
    assert [list(map(len, d)) for d in read('text', [FileRange(str(tmp_path / 'a'))], stats)] == [
        [1000, 1000, 500, 1000],
        [1],
    ]
    assert +stats.counts == {'long_line_split': 2}
    records = [{'text': 'a'}, {'text': 'b' * 2990}, {'text': 'c' * 2500}, {'text': 'd'}]
    (tmp_path / 'b').write_text(''.join(json.dumps(record) + '\n' for record in records))
    stats = Stats()
    lengths = [list(map(len, d)) for d in read('jsonl', [FileRange(str(tmp_path / 'b'))], stats)]
    assert lengths == [[1], [1000, 1000, 500], [1]]
    assert stats.bad[0][:2] == [f'{tmp_path}/b:2', 'is longer than 0 MiB'] and stats.counts['bad_record_skipped'] == 1


class Store(AbstractFileSystem):
    """An object store, {name: content}, that records the requested ranges."""

    protocol = 's3'
    cachable = False
    objects: dict[str, bytes] = {}
    requests: list[tuple[int, int]] = []

    def info(self, path, **_):
        return {'name': path, 'size': len(self.objects[self._strip_protocol(path)]), 'type': 'file'}

    def exists(self, path, **_):
        return self._strip_protocol(path) in self.objects

    def _open(self, path, mode='rb', **_):
        return StoredFile(self, path, mode, block_size=1 << 14)


class StoredFile(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        self.fs.requests.append((start, end))
        return self.fs.objects[self.path][start:end]


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(Store, 'objects', {})
    monkeypatch.setattr(Store, 'requests', [])
    monkeypatch.setitem(sys.modules['fsspec.registry']._registry, 's3', Store)
    monkeypatch.setenv('EPATH_USE_TF', 'false')
    return Store


def test_large_remote_file_is_read_by_ranges(store, monkeypatch):
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 300_000)
    monkeypatch.setattr(chunks, '_BUFFER_BYTES', 1 << 14)
    monkeypatch.setattr('bert_jax.text.sources.lines._BLOCK_BYTES', 50_000)
    texts = [f'text {i} ' + 'x' * (1 + i % 200) for i in range(20_000)]
    store.objects = {'bucket/a.txt': '\n\n'.join(texts).encode()}
    size = len(store.objects['bucket/a.txt'])
    planned = plan_source('text:s3://bucket/a.txt', 0)
    assert len(planned.chunks) == -(-size // 300_000) > 5
    found = []
    for chunk in planned.chunks:
        store.requests.clear()
        found += [document for [document] in read('text', chunk.ranges)]
        assert sum(stop - start for start, stop in store.requests) < 450_000
    assert found == texts


PACKS = [
    ('a.gz', gzip.compress),
    ('a.zst', zstandard.compress),
    ('a.bz2', bz2.compress),
    ('a.xz', functools.partial(lzma.compress, preset=0)),  # with a dictionary of 256 KiB
    ('a', bytes),
]


@pytest.mark.parametrize('name, pack', PACKS)
def test_remote_file_is_streamed_compressed_or_not(store, monkeypatch, name, pack):
    monkeypatch.setattr('bert_jax.text.sources.compression._BLOCK_BYTES', 1 << 16)
    monkeypatch.setattr('bert_jax.text.sources.lines._BLOCK_BYTES', 1 << 16)
    noise = np.random.default_rng(0).integers(97, 107, (30_000, 100)).astype(np.uint8)
    store.objects = {f'bucket/{name}': pack(b'\n\n'.join(line.tobytes() for line in noise))}
    [chunk] = plan_source(f'text:s3://bucket/{name}', 0).chunks
    tracemalloc.start()
    documents = 0
    for document in read_chunk(chunk, READING, Stats()):
        assert document.sentences == [noise[documents].tobytes().decode()]
        documents += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert documents == 30_000 and peak < 1_500_000, peak  # the file has 3 MB


def test_chunks_cover_a_source_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 100)
    for name, size in (('a', 30), ('b', 40), ('c', 250), ('d', 10), ('e', 95)):
        (tmp_path / name).write_text('x' * size)
    planned = plan_source(f'text:{tmp_path}/*', 3)
    cut = [[(part.path[-1], part.start, part.stop) for part in chunk.ranges] for chunk in planned.chunks]
    assert cut == [
        [('a', 0, -1), ('b', 0, -1)],
        [('c', 0, 100)],
        [('c', 100, 200)],
        [('c', 200, 250), ('d', 0, -1)],
        [('e', 0, -1)],
    ]
    assert {chunk.source_index for chunk in planned.chunks} == {3} and len(planned.files) == 5
    texts = [f'row {i} ' + 'x' * 20 for i in range(40)]
    parquet.write_table(pyarrow.table({'text': texts}), tmp_path / 'p', row_group_size=7)
    planned = plan_source(f'parquet:{tmp_path}/p', 0)
    assert len(planned.chunks) > 3
    found = [sentences for chunk in planned.chunks for sentences in read('parquet', chunk.ranges)]
    assert found == [[text] for text in texts]


def test_bad_record_within_the_limit_is_skipped_and_its_line_reported(tmp_path):
    lines = [json.dumps({'text': f'text {i}'}) for i in range(1000)]
    lines[700] = 'no JSON'
    (tmp_path / 'a').write_text('\n'.join(lines))
    stats = Stats()
    documents = read('jsonl', ranges(tmp_path / 'a', [5000, 9000]), stats)
    assert len(documents) == 999 and stats.bad == [
        [f'{tmp_path}/a:701', 'is not JSON (column 1)', 'one JSON object per line']
    ]
    stats.check_bad_records(0.001)
    with pytest.raises(BadInput, match='a:701: is not JSON .*1 of 1,000 records is bad'):
        stats.check_bad_records(0.0009)
    (tmp_path / 'a').write_text('no JSON\n' * 150 + '\n'.join(lines))
    with pytest.raises(BadInput, match='a:1: is not JSON .*more than half') as raised:
        read('jsonl', [FileRange(str(tmp_path / 'a'))])
    assert not raised.value.fix  # no limit on bad records would help


def test_empty_and_missing_files_are_named(tmp_path):
    (tmp_path / 'a').write_text('')
    with pytest.raises(BadInput, match='a: is empty'):
        plan_source(f'text:{tmp_path}/a', 0)
    with pytest.raises(BadInput, match='gone: cannot be read .No such file'):
        read('text', [FileRange(str(tmp_path / 'gone'))])


def test_paths_with_brackets_are_found_by_their_literal_names(tmp_path):
    for name in ('exp[1]/part[2].txt', 'exp[1]/other.txt', 'a1/x.txt', 'a[1]/y.txt'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('text\n')

    def found(pattern: str) -> list[str]:
        return [path.name for path in find_files(f'{tmp_path}/{pattern}')]

    assert found('exp[1]/part[2].txt') == ['part[2].txt']
    assert found('exp[1]/*.txt') == ['other.txt', 'part[2].txt']
    assert found('a[1]/*.txt') == ['x.txt']  # a pattern with matches stays a pattern
    assert found('b[1]/*.txt') == found('exp[1]/none.txt') == []
