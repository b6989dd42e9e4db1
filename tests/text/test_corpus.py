"""A corpus holds every sentence exactly once and in order, and appears atomically."""

import concurrent.futures
import dataclasses
import json
import pathlib
import pickle

import numpy as np
import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.text import prepare as prepare_module
from bert_jax.text.checksums import block_digests
from bert_jax.text.corpus import load_corpus, verify
from bert_jax.text.prepare import prepare, tokenizer_preview
from bert_jax.text.splits import Split, SplitWriter

TOKENIZER = config.Tokenizer(vocab_size=300)
WORDS = 'alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron'.split()


def make_documents(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        [' '.join(rng.choice(WORDS, rng.integers(2, 9))) + f' {index}.' for _ in range(rng.integers(1, 6))]
        for index in range(count)
    ]


def write(path, documents):
    path.write_text('\n\n'.join('\n'.join(lines) for lines in documents) + '\n')
    return f'text:{path}'


def settings(tmp_path, documents, **changes):
    source = write(tmp_path / 'text.txt', documents)
    return config.Data(**{'source': source, 'corpus': str(tmp_path / 'corpus'), 'split_sentences': False} | changes)


def texts(corpus, split_name):
    """Reads the documents of a split by hand: lists of the ids of each sentence."""
    split = getattr(corpus, split_name)
    ids = split.gather(np.arange(split.num_tokens))
    sentences = [ids[a:b].tolist() for a, b in zip(split.sentences[:-1], split.sentences[1:], strict=True)]
    return [sentences[a:b] for a, b in zip(split.documents[:-1], split.documents[1:], strict=True)]


def test_corpus_contains_every_sentence_exactly_once(tmp_path):
    documents = make_documents(200)
    summary = prepare(settings(tmp_path, documents), TOKENIZER, progress=False)
    corpus = load_corpus(tmp_path / 'corpus')
    verify(corpus)
    expected = [corpus.tokenizer.encode_batch(lines) for lines in documents]
    train, validation = texts(corpus, 'train'), texts(corpus, 'validation')
    assert sorted(train + validation) == sorted(expected)
    assert 2 <= len(validation) <= 25 and not [document for document in validation if document in train]
    flat = [token for document in expected for sentence in document for token in sentence]
    assert (summary.documents, summary.tokens) == (200, len(flat))
    assert summary.sentences == sum(map(len, documents))
    assert summary.tokens_per_word == len(flat) / sum(len(line.split()) for lines in documents for line in lines)
    counts = sum(getattr(corpus, name).unigram_counts(corpus.tokenizer.vocab_size) for name in ('train', 'validation'))
    np.testing.assert_array_equal(counts, np.bincount(flat, minlength=corpus.tokenizer.vocab_size))


def test_corpus_reads_the_same_from_any_number_of_shards(tmp_path, monkeypatch):
    data = settings(tmp_path, make_documents(60))
    prepare(data, TOKENIZER, progress=False)
    whole = load_corpus(data.corpus)
    monkeypatch.setattr(prepare_module, 'TOKENS_PER_SHARD', 37)
    monkeypatch.setattr('bert_jax.text.encode._CHARACTERS_AT_ONCE', 100)
    monkeypatch.setattr('bert_jax.text.merge._TOKENS_AT_ONCE', 50)
    cut_data = dataclasses.replace(data, corpus=str(tmp_path / 'cut'))
    prepare(cut_data, TOKENIZER, progress=False)
    cut = load_corpus(cut_data.corpus)
    shards = sorted((tmp_path / 'cut' / 'train').glob('tokens-*.npy'))
    assert len(shards) > 10 and {len(np.load(path)) for path in shards[:-1]} == {37}
    assert texts(cut, 'train') == texts(whole, 'train') and texts(cut, 'validation') == texts(whole, 'validation')
    positions = np.random.default_rng(0).integers(0, cut.train.num_tokens, (7, 3, 5))
    gathered = pickle.loads(pickle.dumps(cut)).train.gather(positions)
    assert gathered.dtype == np.int32
    np.testing.assert_array_equal(gathered, whole.train.gather(positions))
    assert len(pickle.dumps(whole.train)) < 1000


def test_duplicates_are_dropped_from_both_splits(tmp_path):
    documents = make_documents(40)
    validation = write(tmp_path / 'validation.txt', documents[:5])
    data = settings(tmp_path, documents + documents[10:20], validation_source=validation)
    summary = prepare(data, TOKENIZER, progress=False)
    assert summary.dropped == {'duplicate_document': 15}
    assert (summary.splits['train']['documents'], summary.splits['validation']['documents']) == (35, 5)


def test_documents_keep_their_split_when_the_source_grows(tmp_path):
    documents = make_documents(1000)
    data = settings(tmp_path, documents, validation_fraction=0.1, pairing='none')
    prepare(data, TOKENIZER, progress=False)
    provided = dataclasses.replace(TOKENIZER, path=str(tmp_path / 'corpus' / 'tokenizer'))

    def assign(count):
        write(tmp_path / 'text.txt', documents[:count])
        data_of_count = dataclasses.replace(data, corpus=str(tmp_path / str(count)))
        prepare(data_of_count, provided, progress=False)
        corpus = load_corpus(data_of_count.corpus)
        train, validation = texts(corpus, 'train'), texts(corpus, 'validation')
        expected = corpus.tokenizer.encode_batch([line for lines in documents[:count] for line in lines])
        assert sorted(sentence for document in train + validation for sentence in document) == sorted(expected)
        return validation

    assert [len(assign(count)) for count in (1, 2, 3, 4, 5)] == [0, 0, 1, 2, 2]
    small, large = assign(300), assign(1000)
    assert small == large[: len(small)]
    assert 15 < len(small) < 50 and 70 < len(large) < 130


def test_corpus_is_reproducible_and_reused(tmp_path, capsys):
    data = settings(tmp_path, make_documents(50))
    first = prepare(data, TOKENIZER)
    assert not first.reused
    out, err = capsys.readouterr()
    assert not out and 'encoding:  1 chunk, 50 documents' in err
    (tmp_path / 'text.txt').rename(tmp_path / 'moved.txt')
    assert prepare(data, TOKENIZER, progress=False) == dataclasses.replace(first, reused=True)
    (tmp_path / 'moved.txt').rename(tmp_path / 'text.txt')
    other = dataclasses.replace(data, corpus=str(tmp_path / 'other'))
    prepare(other, dataclasses.replace(TOKENIZER, sample_bytes=10**6), progress=False)
    hashes = [
        json.loads((tmp_path / name / 'manifest.json').read_text())['content_hash'] for name in ('corpus', 'other')
    ]
    assert hashes[0] == hashes[1]
    with pytest.raises(
        BadInput, match='(?s)data.validation_fraction=0.05; tokenizer.vocab_size=300.*--config.data.corpus=DIRECTORY'
    ):
        prepare(dataclasses.replace(data, validation_fraction=0.5), config.Tokenizer(vocab_size=301), progress=False)


def test_tokenizer_trained_on_a_sample_encodes_like_a_provided_one(tmp_path):
    data = settings(tmp_path, make_documents(80))
    summary = prepare(data, dataclasses.replace(TOKENIZER, sample_bytes=2000), progress=False)
    provided = dataclasses.replace(TOKENIZER, path=str(tmp_path / 'corpus' / 'tokenizer'))
    again = prepare(dataclasses.replace(data, corpus=str(tmp_path / 'again')), provided, progress=False)
    assert (again.documents, again.tokens, again.splits) == (80, summary.tokens, summary.splits)
    assert texts(load_corpus(again.path), 'train') == texts(load_corpus(data.corpus), 'train')


@pytest.mark.parametrize(
    'documents, pairing, message', [([['a b']], 'nsp', 'only one training document'), ([['a']], 'none', '')]
)
def test_next_sentence_prediction_requires_two_documents(tmp_path, documents, pairing, message):
    data = settings(tmp_path, documents, pairing=pairing)
    if message:
        with pytest.raises(BadInput, match=message):
            prepare(data, TOKENIZER, progress=False)
        assert not (tmp_path / 'corpus').exists()
    else:
        prepare(data, TOKENIZER, progress=False)
        corpus = load_corpus(data.corpus)
        verify(corpus)
        assert corpus.validation.num_tokens == 0 and corpus.validation.gather(np.zeros((0,), np.int64)).shape == (0,)


def test_sentences_without_tokens_are_dropped(tmp_path):
    summary = prepare(settings(tmp_path, [['one two', '\u200b'], ['\u200b'], ['three']]), TOKENIZER, progress=False)
    assert summary.dropped == {'empty_sentence': 2, 'empty_document': 1}
    assert (summary.documents, summary.sentences) == (2, 2)


def test_damaged_files_are_detected_and_named(tmp_path):
    data = settings(tmp_path, make_documents(50))
    prepare(data, TOKENIZER, progress=False)
    shard = tmp_path / 'corpus' / 'train' / 'tokens-00000.npy'
    sound = shard.read_bytes()
    shard.write_bytes(sound[:-2])
    with pytest.raises(BadInput, match='tokens-00000.npy: has'):
        load_corpus(data.corpus)
    shard.write_bytes(sound[:-1] + b'\xff')
    corpus = load_corpus(data.corpus)
    for read in (
        verify,
        lambda corpus: corpus.train.unigram_counts(300),
        lambda corpus: corpus.train.gather(np.zeros(1, int)),
    ):
        with pytest.raises(BadInput, match='tokens-00000.npy.*MiB 0 has another checksum'):
            read(corpus)
    shard.write_bytes(sound)
    unclosed = sound.replace(b'}  ', b'} (', 1)  # numpy passes it to Python's tokenizer, which raises other errors
    for header_damaged in (b'x' * len(sound), sound[:20] + b'x' + sound[21:], unclosed):
        shard.write_bytes(header_damaged)
        with pytest.raises(BadInput, match='tokens-00000.npy'):
            load_corpus(data.corpus).train.gather(np.zeros(1, int))
    shard.unlink()
    with pytest.raises(BadInput, match='is missing'):
        load_corpus(data.corpus)
    with pytest.raises(BadInput, match='python -m bert_jax prepare'):
        load_corpus(tmp_path / 'nowhere')
    (tmp_path / 'nowhere').mkdir()
    (tmp_path / 'nowhere' / 'thesis.tex').write_text('x')
    with pytest.raises(BadInput, match='is not a corpus'):
        prepare(dataclasses.replace(data, corpus=str(tmp_path / 'nowhere')), TOKENIZER, progress=False)


def test_tokenizer_preview_reports_the_rates_of_the_corpus(tmp_path):
    data = settings(tmp_path, make_documents(50))
    preview = tokenizer_preview(data, TOKENIZER, progress=False)
    assert not (tmp_path / 'corpus').exists()
    summary = prepare(data, TOKENIZER, progress=False)
    assert (preview['tokens_per_word'], preview['unknown_rate']) == (summary.tokens_per_word, summary.unknown_rate)
    assert all(''.join(pieces).replace('##', '') == word for word, pieces in preview['splits'].items())


def test_damaged_block_is_detected_on_first_read(tmp_path):
    ids = np.random.default_rng(0).integers(0, 1000, 1_500_000).astype(np.uint16)
    writer = SplitWriter(tmp_path / 'train', np.uint16, 1_000_000)
    writer.add(ids, np.full(1000, 1500), np.full(10, 100))
    writer.close()
    files = {path.name: {'blocks': list(block_digests(path))} for path in (tmp_path / 'train').iterdir()}
    assert [len(files[f'tokens-0000{n}.npy']['blocks']) for n in (0, 1)] == [2, 1]
    with (tmp_path / 'train' / 'tokens-00000.npy').open('r+b') as file:
        file.seek((1 << 20) + 5)
        byte = file.read(1)
        file.seek((1 << 20) + 5)
        file.write(bytes([byte[0] ^ 4]))
    split = Split(tmp_path / 'train', writer.counts, 1_000_000, files)
    first_bad = ((1 << 20) - 128) // 2  # the header takes 128 bytes
    sound = np.concatenate([np.arange(first_bad), np.arange(1_000_000, 1_500_000)])
    np.testing.assert_array_equal(split.gather(sound), ids[sound])
    for position in (first_bad, 999_999):
        with pytest.raises(BadInput, match='tokens-00000.npy.*MiB 1 has another checksum'):
            split.gather(np.array([3, position]))


def test_local_copy_is_made_once_verified_and_shared(tmp_path):
    data = settings(tmp_path, make_documents(50))
    prepare(data, TOKENIZER, progress=False)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:  # flock also works between open files of one process
        copies = list(threads.map(lambda _: load_corpus(data.corpus, str(tmp_path / 'local')), range(4)))
    assert len({copy.directory for copy in copies}) == 1 and copies[0].directory.startswith(str(tmp_path / 'local'))
    verify(copies[0])
    assert texts(copies[0], 'train') == texts(load_corpus(data.corpus), 'train')
    assert len([path for path in (tmp_path / 'local').iterdir() if path.is_dir()]) == 1
    stat = (pathlib.Path(copies[0].directory) / 'manifest.json').stat()
    load_corpus(data.corpus, str(tmp_path / 'local'))
    assert (pathlib.Path(copies[0].directory) / 'manifest.json').stat() == stat
    shard = tmp_path / 'corpus' / 'train' / 'tokens-00000.npy'
    shard.write_bytes(shard.read_bytes()[:-1] + b'x')
    with pytest.raises(BadInput, match='tokens-00000.npy.*MiB 0 has another checksum'):
        load_corpus(data.corpus, str(tmp_path / 'elsewhere'))
    (tmp_path / 'file').write_text('')
    with pytest.raises(BadInput, match='local_copy=.*file: cannot hold the copy'):
        load_corpus(data.corpus, str(tmp_path / 'file'))
