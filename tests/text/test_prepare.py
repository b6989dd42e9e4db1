"""A corpus is the same byte for byte, however the work was divided and interrupted."""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.text import chunks, encode, job, merge
from bert_jax.text.chunks import Chunk, FileRange
from bert_jax.text.corpus import load_corpus, verify
from bert_jax.text.documents import read_chunk
from bert_jax.text.prepare import Unfinished, prepare
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.stats import Stats
from tests.support.processes import ROOT, start_prepare
from tests.support.texts import SYLLABLES, contents, make_documents, write_documents, write_jsonl, write_tfds

TOKENIZER = config.Tokenizer(vocab_size=200)


def read_split(corpus, name):
    """Reads the documents of a split, as tuples of texts."""
    split = getattr(corpus, name)
    lines = [
        corpus.tokenizer.decode(split.gather(np.arange(a, b)))
        for a, b in zip(split.sentences[:-1], split.sentences[1:], strict=True)
    ]
    return [tuple(lines[a:b]) for a, b in zip(split.documents[:-1], split.documents[1:], strict=True)]


def as_tuples(documents):
    return [tuple(lines) for lines in documents]


@pytest.fixture(scope='module')
def two_sources(tmp_path_factory):
    """Settings of a corpus of two sources, and its contents with one chunk per source."""
    directory = tmp_path_factory.mktemp('two')
    first = write_documents(directory / 'a.txt', make_documents(300))
    second = write_jsonl(directory / 'b.jsonl', make_documents(200, seed=1) + make_documents(50))
    data = config.Data(
        source=((first, 1.0), (second, 2.5)),
        corpus=str(directory / 'corpus'),
        split_sentences=False,
        deduplicate_lines=True,
        validation_fraction=0.1,
    )
    prepare(data, TOKENIZER, progress=False)
    return data, contents(data.corpus)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of about 1,000 bytes."""
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 1000)


@pytest.mark.parametrize(
    'division', ['one process', pytest.param('three processes', marks=pytest.mark.processes), 'shards', 'small buffers']
)
def test_corpus_is_identical_however_the_work_is_divided(two_sources, tmp_path, monkeypatch, small_chunks, division):
    data, expected = two_sources
    data = dataclasses.replace(data, corpus=str(tmp_path / 'corpus'))
    if division == 'shards':
        left = []
        for shard_index in (2, 0, 3):
            unfinished = prepare(data, TOKENIZER, shard=(shard_index, 4), progress=False)
            assert isinstance(unfinished, Unfinished) and unfinished.pieces > 20
            left.append(unfinished.pieces_left)
        assert left == sorted(left, reverse=True) and left[-1] > 0 and not (tmp_path / 'corpus').exists()
        summary = prepare(data, TOKENIZER, shard=(1, 4), progress=False)
        assert prepare(data, TOKENIZER, shard=(2, 4), progress=False).reused
    else:
        if division == 'small buffers':
            for module, name, value in (
                (encode, '_CHARACTERS_AT_ONCE', 50),
                (encode, '_MAX_CACHED_WORDS', 10),
                (encode, '_MAX_CACHED_LENGTH', 2),
                (merge, '_MAX_BUCKET_BYTES', 500),
                (merge, '_RECORDS_AT_ONCE', 7),
                (merge, '_TOKENS_AT_ONCE', 20),
            ):
                monkeypatch.setattr(module, name, value)
        summary = prepare(data, TOKENIZER, workers=3 if division == 'three processes' else 1, progress=False)
    assert contents(data.corpus) == expected
    assert summary.dropped == expected[1]['dropped'] and summary.dropped['duplicate_document'] > 50
    assert [path.name for path in tmp_path.iterdir()] == ['corpus']
    verify(load_corpus(data.corpus))


def test_first_of_equal_documents_and_lines_is_kept(two_sources):
    data, _ = two_sources
    corpus = load_corpus(data.corpus)
    documents, lines, expected = set(), set(), []
    dropped = {'duplicate_document': 0, 'duplicate_line': 0, 'document_of_duplicate_lines': 0}
    for document in as_tuples(make_documents(300) + make_documents(200, seed=1) + make_documents(50)):
        if document in documents:
            dropped['duplicate_document'] += 1
            continue
        documents.add(document)
        kept = []
        for line in document:
            dropped['duplicate_line'] += line in lines
            kept += [line] if line not in lines else []
            lines.add(line)
        expected += [tuple(kept)] if kept else []
        dropped['document_of_duplicate_lines'] += not kept
    assert expected == sorted({*read_split(corpus, 'train'), *read_split(corpus, 'validation')}, key=expected.index)
    assert {name: corpus.manifest['dropped'][name] for name in dropped} == dropped


def test_weights_repeat_and_thin_documents(tmp_path):
    def documents(letter):
        return [(f'{letter} ' * (i + 1)).strip() for i in range(100)]

    weights = {'b': 1.0, 'd': 2.0, 'f': 0.5, 'g': 2.25}
    sources = tuple(
        (write_documents(tmp_path / x, [[line] for line in documents(x)]), weight) for x, weight in weights.items()
    )
    data = config.Data(source=sources, corpus=str(tmp_path / 'corpus'), validation_fraction=0.2)
    summary = prepare(data, TOKENIZER, progress=False)
    corpus = load_corpus(data.corpus)
    train, validation = read_split(corpus, 'train'), read_split(corpus, 'validation')
    for letter, weight in weights.items():
        held_out = [line for (line,) in validation if line[0] == letter]
        counts = {line: train.count((line,)) for line in documents(letter) if line not in held_out}
        assert len({*held_out}) == len(held_out)
        assert {*counts.values()} == {int(weight), int(weight) + (weight % 1 > 0)}
        assert abs(sum(counts.values()) / len(counts) - weight) < 0.2
    assert 30 < summary.dropped['thinned_by_weight'] < 70
    whole = [line for (line,) in train if line[0] == 'd']
    assert whole[: len(whole) // 2] == whole[len(whole) // 2 :]  # the repetition follows the whole source


def test_group_is_never_in_both_splits(tmp_path):
    documents = [[f'{word} {i}'] for i, word in enumerate(SYLLABLES * 5)]
    groups = [None if i < 10 else f'book {i % 37}' for i in range(len(documents))]
    source = write_jsonl(tmp_path / 'a', documents, groups)
    data = config.Data(source=source, corpus=str(tmp_path / 'corpus'), group_field='book', validation_fraction=0.2)
    prepare(data, TOKENIZER, progress=False)
    corpus = load_corpus(data.corpus)
    found = {name: {line[0].split()[1] for line in read_split(corpus, name)} for name in ('train', 'validation')}
    books = {name: {groups[int(index)] for index in indices} - {None} for name, indices in found.items()}
    assert not books['train'] & books['validation'] and len(books['train'] | books['validation']) == 37
    assert 2 <= len(books['validation']) <= 15
    with pytest.raises(BadInput, match="has no field 'book'; no record can be used"):
        other = dataclasses.replace(data, source=write_jsonl(tmp_path / 'b', [['x']]), corpus=str(tmp_path / 'other'))
        prepare(other, TOKENIZER, progress=False)
    with pytest.raises(BadInput, match='text files have no fields'):
        config.resolve({'data': {'source': 'text:a', 'group_field': 'book'}})


def test_only_unfinished_chunks_are_encoded_again(two_sources, tmp_path, monkeypatch, small_chunks):
    data, expected = two_sources
    data = dataclasses.replace(data, corpus=str(tmp_path / 'corpus'))
    prepare(data, TOKENIZER, shard=(0, 2), progress=False)
    [partial] = (tmp_path / '.corpus.partial').iterdir()
    finished = sorted(path.name for path in (partial / 'chunks').iterdir())
    (partial / 'chunks' / finished[1] / 'chunk.json').unlink()
    tokens = partial / 'chunks' / finished[2] / 'tokens.bin'
    tokens.write_bytes(tokens.read_bytes()[:-2])
    damaged = partial / 'chunks' / finished[3] / 'tokens.bin'
    damaged.write_bytes(bytes(damaged.stat().st_size))
    written = []
    monkeypatch.setattr(
        job, 'write_chunk', lambda *args, **named: (written.append(args[3].name), encode.write_chunk(*args, **named))
    )
    with pytest.raises(BadInput, match='(?s)00006.*MiB 0 has another checksum.*same command'):
        prepare(data, TOKENIZER, progress=False)
    assert not {*written} & {*finished} - {*finished[1:3]} and {*finished[1:3]} < {*written}
    written.clear()
    prepare(data, TOKENIZER, progress=False)
    assert written == [finished[3]]
    assert contents(data.corpus) == expected


def test_changed_source_files_are_detected(tmp_path):
    source = write_documents(tmp_path / 'a', make_documents(20))
    data = config.Data(source=source, corpus=str(tmp_path / 'corpus'))
    prepare(data, TOKENIZER, progress=False)
    os.utime(tmp_path / 'a', (0, 0))
    with pytest.raises(BadInput, match='(?s)changed since: .*a was modified.*rm -r'):
        prepare(data, TOKENIZER, progress=False)
    write_documents(tmp_path / 'a', make_documents(21))
    with pytest.raises(BadInput, match='(?s)changed since: .*a had [0-9,]+ bytes and now has'):
        prepare(data, TOKENIZER, progress=False)
    (tmp_path / 'a').unlink()
    assert prepare(data, TOKENIZER, progress=False).reused  # a corpus does not need its text


def test_changed_text_restarts_a_job_but_not_a_shard(tmp_path, small_chunks):
    source = write_documents(tmp_path / 'a', make_documents(100))
    data = config.Data(source=source, corpus=str(tmp_path / 'corpus'))
    prepare(data, TOKENIZER, shard=(0, 2), progress=False)
    write_documents(tmp_path / 'a', make_documents(101, seed=2))
    with pytest.raises(BadInput, match='(?s)shards with other files.*rm -r'):
        prepare(data, TOKENIZER, shard=(1, 2), progress=False)
    prepare(data, TOKENIZER, progress=False)
    assert sum(map(len, (read_split(load_corpus(data.corpus), name) for name in ('train', 'validation')))) == len(
        {*as_tuples(make_documents(101, seed=2))}
    )


def test_too_many_bad_records_fail_unless_the_limit_is_raised(tmp_path, capsys):
    write_jsonl(tmp_path / 'a', make_documents(100))
    lines = (tmp_path / 'a').read_text().splitlines()
    (tmp_path / 'a').write_text('\n'.join([*lines[:50], '{"text": 3}', '{', *lines[50:]]))
    data = config.Data(source=f'jsonl:{tmp_path}/a', corpus=str(tmp_path / 'corpus'))
    with pytest.raises(BadInput, match=f"{tmp_path}/a:51: field 'text' is of type int; 2 of 102 records are bad"):
        prepare(data, TOKENIZER, progress=False)
    summary = prepare(dataclasses.replace(data, bad_records=0.02), TOKENIZER)
    assert summary.dropped['bad_record_skipped'] == 2
    assert f'skipped a bad record: {tmp_path}/a:52 is not JSON' in capsys.readouterr().err


@pytest.mark.processes
def test_killed_job_and_full_disk_resume_to_the_same_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 20_000)
    documents = make_documents(8000)
    source = write_documents(tmp_path / 'a', documents)
    flags = [f'--config.data.source={source}', '--config.tokenizer.vocab_size=300']
    flags += ['--config.tokenizer.sample_bytes=20000', '--workers=2']
    corpus, partial = tmp_path / 'corpus', tmp_path / '.corpus.partial'
    process = start_prepare(*flags, f'--config.data.corpus={corpus}')
    deadline = time.monotonic() + 60
    while not list(partial.glob('*/chunks/0*')):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in partial.glob('*/chunks/0*')}
    limit = 8000  # bytes, less than a chunk needs
    process = start_prepare(*flags, f'--config.data.corpus={corpus}', largest_file=limit)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2 and 'cannot be written: File too large' in err and 'Traceback' not in err, err
    assert not corpus.exists() and finished == {path: path.stat().st_mtime_ns for path in finished}
    process = start_prepare(*flags, f'--config.data.corpus={corpus}', '--json')
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert summary['documents'] == len({*as_tuples(documents)}) and not partial.exists()
    other = config.Data(source=source, corpus=str(tmp_path / 'other'))
    prepare(other, config.Tokenizer(vocab_size=300, sample_bytes=20_000), progress=False)
    assert contents(corpus) == contents(tmp_path / 'other')


SHARD = """if True:
    import sys
    from bert_jax import config
    from bert_jax.text import chunks
    from bert_jax.text.prepare import prepare

    chunks._RECORDS_PER_CHUNK = 7
    data = config.Data(source='tfds:letters', corpus=sys.argv[1])
    shard = (int(sys.argv[2]), 2)
    prepare(data, config.Tokenizer(vocab_size=200), shard=shard, progress=False)
    assert 'tensorflow' not in sys.modules
"""


@pytest.mark.processes
def test_shards_on_a_tfds_dataset_write_the_corpus_of_one_process(tmp_path):
    documents = make_documents(60)
    write_tfds(tmp_path / 'datasets', documents)
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'TFDS_DATA_DIR': str(tmp_path / 'datasets')}
    command = [sys.executable, '-c', SHARD, str(tmp_path / 'corpus')]
    hosts = [subprocess.Popen([*command, str(n)], env=environment, stderr=subprocess.PIPE, text=True) for n in range(2)]
    for host in hosts:
        _, err = host.communicate(timeout=300)
        assert host.returncode == 0, err
    corpus = load_corpus(tmp_path / 'corpus')
    alone = config.Data(source=write_jsonl(tmp_path / 'a.jsonl', documents), corpus=str(tmp_path / 'alone'))
    prepare(alone, TOKENIZER, progress=False)
    for name in ('train', 'validation'):
        assert read_split(corpus, name) == read_split(load_corpus(alone.corpus), name) != []


def test_full_disk_is_reported_while_saving_the_tokenizer(two_sources, tmp_path):
    data, _ = two_sources
    data, tokenizer = dataclasses.replace(data, corpus=str(tmp_path / 'corpus')), Path(data.corpus) / 'tokenizer'
    provided = dataclasses.replace(TOKENIZER, path=str(tokenizer))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tokenizer / 'tokenizer.json').stat().st_size - 1, limits[1]))
    try:
        with pytest.raises(BadInput, match='cannot be written: File too large'):
            prepare(data, provided, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / '.corpus.partial').exists()  # it held no finished work


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can become another user')
def test_missing_permission_names_the_file_or_directory():
    with tempfile.TemporaryDirectory() as name:  # other users cannot read pytest's directories
        directory = Path(name)
        directory.chmod(0o755)
        data = config.Data(source=write_documents(directory / 'a', make_documents(20)), corpus=str(directory / 'first'))
        prepare(data, TOKENIZER, progress=False)
        (directory / 'closed').mkdir(0o700)
        (directory / 'b').write_text('b')
        (directory / 'b').chmod(0o600)
        provided = dataclasses.replace(TOKENIZER, path=str(directory / 'first' / 'tokenizer'))
        os.seteuid(65534)
        try:
            for corpus in ('closed/corpus', 'new/corpus'):
                with pytest.raises(BadInput, match=f'{name}/{corpus}.*: cannot be .*Permission denied'):
                    prepare(dataclasses.replace(data, corpus=f'{name}/{corpus}'), provided, progress=False)
            with pytest.raises(BadInput, match='b: cannot be read .Permission denied'):
                list(read_chunk(Chunk('text', 0, (FileRange(f'{name}/b'),), 1), ReadOptions(), Stats()))
        finally:
            os.seteuid(0)
