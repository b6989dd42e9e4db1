"""Datasets of Hugging Face: saved directories, parquet shards, and the hub, read without the library `datasets`."""

import json
import sys

import pyarrow
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet

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
TEXTS = [f'text {i} Grüße\nsecond line' for i in range(300)]


def read(source, **options):
    stats, options = Stats(), ReadOptions(split_sentences=False, **options)
    planned = plan_source(source, 0, options)
    return [document.text for chunk in planned.chunks for document in read_chunk(chunk, options, stats)]


def save_to_disk(directory, texts, num_files=2, batch=40):
    """Writes the layout of `datasets.save_to_disk`: Arrow streams, and state.json that names them."""
    directory.mkdir(parents=True)
    names = [f'data-{index:05d}-of-{num_files:05d}.arrow' for index in range(num_files)]
    for index, name in enumerate(names):
        part = texts[index * len(texts) // num_files : (index + 1) * len(texts) // num_files]
        table = pyarrow.table({'text': part, 'nested': [{'body': text, 'size': 1} for text in part]})
        with pyarrow.ipc.new_stream(directory / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=batch)
    (directory / 'state.json').write_text(json.dumps({'_data_files': [{'filename': name} for name in names]}))
    (directory / 'dataset_info.json').write_text('{}')


def test_saved_dataset_is_read_by_split(tmp_path):
    save_to_disk(tmp_path / 'one', TEXTS)
    assert read(f'hf:{tmp_path}/one') == TEXTS == read(f'hf:{tmp_path}/one', text_field='nested.body')
    save_to_disk(tmp_path / 'all' / 'train', TEXTS[:200])
    save_to_disk(tmp_path / 'all' / 'test', TEXTS[200:])
    (tmp_path / 'all' / 'dataset_dict.json').write_text('{"splits": ["train", "test"]}')
    assert read(f'hf:{tmp_path}/all') == TEXTS[:200] == read(f'hf:{tmp_path}/all:train')
    assert read(f'hf:{tmp_path}/all:test') == TEXTS[200:]
    with pytest.raises(BadInput, match="has no 'valid'\n *expected: train, test"):
        read(f'hf:{tmp_path}/all:valid')
    with pytest.raises(BadInput, match="has no column 'body'(.|\n)*one of: text, nested.body"):
        read(f'hf:{tmp_path}/one', text_field='body')


def test_damaged_state_of_a_saved_dataset_is_an_error(tmp_path):
    save_to_disk(tmp_path / 'a', TEXTS)
    with pytest.raises(BadInput, match='has no splits'):
        read(f'hf:{tmp_path}/a:train')
    for content, found in (('{', 'is not JSON'), ('{}', 'lists no names'), ('{"_data_files": ["../x"]}', 'lists no')):
        (tmp_path / 'a' / 'state.json').write_text(content)
        with pytest.raises(BadInput, match=f'state.json: {found}'):
            read(f'hf:{tmp_path}/a')


def test_large_arrow_file_is_divided_by_batches(tmp_path, monkeypatch):
    save_to_disk(tmp_path / 'a', TEXTS, num_files=1, batch=7)
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 2000)
    planned = plan_source(f'hf:{tmp_path}/a', 0)
    assert len(planned.chunks) > 4 and {chunk.kind for chunk in planned.chunks} == {'arrow'}
    assert read(f'hf:{tmp_path}/a') == TEXTS
    path = tmp_path / 'a' / 'data-00000-of-00001.arrow'
    whole = path.stat().st_size
    for size in (whole - 8, whole - 1, whole // 2, 30):  # the first ends between batches
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(BadInput, match='arrow: cannot be read as an Arrow file'):
            read(f'hf:{tmp_path}/a')


def test_saved_dataset_parquet_and_json_lines_give_the_same_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 4000)
    save_to_disk(tmp_path / 'saved', TEXTS)
    (tmp_path / 'shards').mkdir()
    for index in range(3):
        table = pyarrow.table({'text': TEXTS[100 * index : 100 * index + 100]})
        parquet.write_table(table, tmp_path / 'shards' / f'train-0000{index}-of-00003.parquet')
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in TEXTS))
    sources = {'saved': f'hf:{tmp_path}/saved', 'shards': f'hf:{tmp_path}/shards', 'lines': f'jsonl:{tmp_path}/a.jsonl'}
    found = []
    for name, source in sources.items():
        data = config.Data(source=source, corpus=str(tmp_path / f'{name}-corpus'))
        prepare(data, TOKENIZER, progress=False)
        files = contents(data.corpus)[0]
        found.append({name: file for name, file in files.items() if name != 'sources.json'})
    assert found[0] == found[1] == found[2]


def test_folder_of_parquet_shards_is_read_by_split(tmp_path):
    for name, texts in (
        ('data/train-00000-of-00002', TEXTS[:9]),
        ('data/train-00001-of-00002', TEXTS[9:20]),
        ('data/test', TEXTS[20:30]),
    ):
        (tmp_path / 'data').mkdir(exist_ok=True)
        parquet.write_table(pyarrow.table({'text': texts}), tmp_path / f'{name}.parquet')
    (tmp_path / 'README.md').write_text('A card.')
    assert read(f'hf:{tmp_path}') == TEXTS[:20] and read(f'hf:{tmp_path}:test') == TEXTS[20:30]
    with pytest.raises(BadInput, match="no file is named after the split 'validation'"):
        read(f'hf:{tmp_path}:validation')
    with pytest.raises(BadInput, match='(?s)is not a directory.*hf:hub/'):
        read(f'hf:{tmp_path}/none')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(BadInput, match='holds no dataset'):
        read(f'hf:{tmp_path}/empty')


class Hub(MemoryFileSystem):
    """The hub in memory, with the interface of `huggingface_hub.HfFileSystem`."""

    protocol = 'hf'
    store = {}
    pseudo_dirs = ['']

    @classmethod
    def _strip_protocol(cls, path):
        return '/' + str(path).removeprefix('hf://').strip('/')


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Hub, 'store', {})
    monkeypatch.setattr(Hub, 'pseudo_dirs', [''])
    monkeypatch.setitem(sys.modules['fsspec.registry']._registry, 'hf', Hub)

    def write(path, texts):
        file = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.table({'text': texts}), file, row_group_size=5)
        Hub().pipe_file(f'datasets/{path}', file.getvalue().to_pybytes())

    return write


def test_dataset_on_the_hub_is_read_by_config_and_split(tmp_path, hub):
    converted = 'org/news@refs/convert/parquet'
    hub(f'{converted}/en/train/0000.parquet', TEXTS[:7])
    hub(f'{converted}/en/train/0001.parquet', TEXTS[7:10])
    hub(f'{converted}/en/test/0000.parquet', TEXTS[10:15])
    hub(f'{converted}/de/train/0000.parquet', TEXTS[15:20])
    assert read('hf:hub/org/news:en') == TEXTS[:10] == read('hf:hub/org/news:en:train')
    assert read('hf:hub/org/news:en:test') == TEXTS[10:15] and read('hf:hub/org/news:de') == TEXTS[15:20]
    with pytest.raises(BadInput, match="has no 'default'\n *expected: de, en\n *fix: .*source=hf:hub/org/news:de"):
        read('hf:hub/org/news')
    with pytest.raises(BadInput, match="has no 'valid'\n *expected: test, train\n"):
        read('hf:hub/org/news:en:valid')
    hub('org/one@refs/convert/parquet/default/train/0000.parquet', TEXTS[:50])
    hub('org/one@refs/convert/parquet/default/test/0000.parquet', TEXTS[50:60])
    assert read('hf:hub/org/one') == TEXTS[:50] and read('hf:hub/org/one:test') == TEXTS[50:60]
    data = config.Data(source='hf:hub/org/one', corpus=str(tmp_path / 'corpus'), pairing='none')
    prepare(data, TOKENIZER, progress=False)
    Hub.store.clear()  # a corpus is used without the network
    assert prepare(data, TOKENIZER, progress=False).reused


def test_dataset_that_the_hub_converts_in_part_is_read_from_its_own_files(hub):
    hub('org/big@refs/convert/parquet/default/partial-train/0000.parquet', TEXTS[:5])
    with pytest.raises(BadInput, match='(?s)only its first 5 GB.*hf download'):
        read('hf:hub/org/big')
    hub('org/big/data/train-00000-of-00002.parquet', TEXTS[:30])
    hub('org/big/data/train-00001-of-00002.parquet', TEXTS[30:60])
    hub('org/big/data/test-00000-of-00001.parquet', TEXTS[60:])
    assert read('hf:hub/org/big') == TEXTS[:60]
    directory = 'hf:hf://datasets/org/big/data'  # on any object store
    assert read(directory) == TEXTS[:60] and read(f'{directory}:test') == TEXTS[60:]
    with pytest.raises(BadInput, match='hf://datasets/org/none is not a directory'):
        read('hf:hf://datasets/org/none')


def test_unknown_dataset_on_the_hub_is_an_error(hub):
    with pytest.raises(BadInput, match='hf:hub/org/none: cannot be opened'):
        plan_source('hf:hub/org/none', 0)
    with pytest.raises(BadInput, match='NAME'):
        hub('org/news@refs/convert/parquet/en/train/0000.parquet', TEXTS[:7])
        plan_source('hf:hub/org/news:a:b:c', 0)
