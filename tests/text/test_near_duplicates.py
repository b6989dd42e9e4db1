"""Near copies are found and dropped: few are missed, nothing else goes, and held-out text stays held out."""

import dataclasses
import json
import pathlib
from collections import Counter

import numpy as np
import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.text import chunks, encode, merge
from bert_jax.text.corpus import load_corpus
from bert_jax.text.near_duplicates import comparison, files, sketches
from bert_jax.text.near_duplicates.clusters import Clusters
from bert_jax.text.near_duplicates.comparison import candidate_pairs, estimate_similarity
from bert_jax.text.near_duplicates.settings import Bands, NearDuplicates, recall
from bert_jax.text.near_duplicates.sketches import band_keys, sketch
from bert_jax.text.prepare import prepare
from tests.support.near_copies import changed, plant, random_words
from tests.support.processes import start_prepare
from tests.support.texts import contents, write_jsonl

TOKENIZER = config.Tokenizer(vocab_size=300)


def similarity(first, second):
    """The Jaccard similarity of the multisets of the words of two texts."""
    a, b = Counter(first), Counter(second)
    return (a & b).total() / (a | b).total()


def prepared(source, directory, **settings):
    data = config.Data(**{'source': source, 'corpus': str(directory), 'validation_fraction': 0.1} | settings)
    summary = prepare(data, TOKENIZER, progress=False)
    return summary, data


def documents_of(data):
    """Returns {split: [text of each document, without blanks]} of a corpus."""
    corpus, found = load_corpus(data.corpus), {}
    for name in ('train', 'validation'):
        split = getattr(corpus, name)
        ends = split.sentences[split.documents]
        texts = [
            corpus.tokenizer.decode(split.gather(np.arange(*pair))) for pair in zip(ends[:-1], ends[1:], strict=True)
        ]
        found[name] = [text.replace(' ', '') for text in texts]
    return found


def squeezed(document):
    return ''.join(document).replace(' ', '')


# --- Sketches. ---


def test_sketches_estimate_the_similarity_of_words_and_shingles():
    rng = np.random.default_rng(0)
    words = [random_words(rng, 300) for _ in range(200)]
    for share in (0.0, 0.05, 0.11, 0.3):
        copies = [changed(rng, each, share) for each in words]
        first, second = (sketch([' '.join(each) for each in texts], 0) for texts in (words, copies))
        exact = [similarity(a, b) for a, b in zip(words, copies, strict=True)]
        errors = estimate_similarity(first.words, second.words) - exact
        assert abs(errors.mean()) < 0.04 and errors.std() < 0.06
        runs = [[{tuple(each[i : i + 5]) for i in range(len(each) - 4)} for each in texts] for texts in (words, copies)]
        exact = [len(a & b) / len(a | b) for a, b in zip(*runs, strict=True)]
        errors = estimate_similarity(first.shingles, second.shingles) - exact
        assert abs(errors.mean()) < 0.04 and errors.std() < 0.06


def test_case_punctuation_and_line_breaks_do_not_matter():
    same = [
        'The cat -- a tabby -- sat; on the "mat".',
        'the CAT a tabby\nsat on the mat',
        '«The cat…» a tabby sat on the mat！',
    ]
    found = sketch(same, 0)
    assert (found.words == found.words[0]).all() and (found.shingles == found.shingles[0]).all()
    assert found.num_words.tolist() == [8, 8, 8]
    assert sketch(['日本語の文。', 'ภาษา', 'Ärger straße', '', '!?'], 0).num_words.tolist() == [5, 4, 2, 0, 0]


def test_sketch_does_not_depend_on_neighbours_and_merges_by_minimum(monkeypatch):
    rng = np.random.default_rng(0)
    texts = [' '.join(random_words(rng, count)) for count in (1, 3, 0, 5, 80, 2000)] + ['Σίσυφος ΟΔΟΣ', 'İstanbul']
    together = sketch(texts, 0)
    monkeypatch.setattr(sketches, '_CHARACTERS_AT_ONCE', 100)
    assert all(np.array_equal(a, b) for a, b in zip(sketch(texts, 0), together, strict=True))
    for i, text in enumerate(texts):
        assert np.array_equal(sketch([text], 0).words[0], together.words[i])
    halves = sketch(['a b c d e f g', 'h i j k l m', 'a b c d e f g h i j k l m'], 0)
    assert np.array_equal(halves.words[:2].min(axis=0), halves.words[2])
    assert sketch(texts, 80).index.tolist() == [4, 5]


def test_sketches_and_keys_never_change():
    found = sketch(['the quick brown fox jumps over the lazy dog'], 0)
    assert found.words[0, :3].tolist() == [3297018405, 3344365589, 3319808052]
    assert found.shingles[0, :3].tolist() == [3354761399, 1962250445, 3254079876]
    assert band_keys(found.shingles, Bands(42, 3))[:2, 0].tolist() == [9702424818318229474, 9294420120269428560]


@pytest.mark.parametrize(('threshold', 'bands'), [(0.7, (64, 2)), (0.8, (42, 3)), (0.9, (25, 5)), (1.0, (8, 16))])
def test_bands_follow_from_the_threshold(threshold, bands):
    assert NearDuplicates(threshold).bands == bands
    assert recall(0.6, Bands(42, 3)) > 0.9999


# --- Comparison and clusters. ---


def test_every_text_of_a_bucket_is_compared_with_the_first_and_the_one_before():
    keys, texts = np.array([1, 1, 1, 1, 2, 3, 3], np.uint64), np.array([4, 6, 7, 9, 0, 1, 2])
    pairs = candidate_pairs(keys, texts).tolist()
    assert sorted(pairs) == [[1, 2], [4, 6], [4, 7], [4, 9], [6, 7], [7, 9]]
    assert candidate_pairs(keys[:0], texts[:0]).shape == (0, 2)


@pytest.mark.parametrize('block', [3, 1 << 18])
def test_clusters_are_those_of_a_search_in_memory(tmp_path, monkeypatch, block):
    monkeypatch.setattr('bert_jax.text.near_duplicates.clusters._LINKS_AT_ONCE', block)
    rng = np.random.default_rng(block)
    links = rng.integers(0, 400, (250, 2)).astype(np.uint64)
    chain = np.stack([np.arange(400, 499), np.arange(401, 500)], axis=1).astype(np.uint64)
    for name, part in (('a', links[:100]), ('b', links[100:]), ('c', rng.permutation(chain))):
        part.tofile(tmp_path / name)
    clusters = Clusters(tmp_path / 'scratch', 500, [tmp_path / name for name in 'abc'])
    labels = np.arange(500)
    for _ in range(500):
        for a, b in np.concatenate([links, chain]).astype(int):
            labels[labels == max(labels[a], labels[b])] = min(labels[a], labels[b])
    is_present, is_preferred = rng.random(500) < 0.8, rng.random(500) < 0.2
    clusters.add(0, is_present[:200], is_preferred[:200])
    clusters.add(200, is_present[200:], is_preferred[200:])
    stays = is_present & ~clusters.repeated(0, is_present, is_preferred)
    for label in {*labels.tolist()}:
        members = np.flatnonzero((labels == label) & is_present)
        best = members[is_preferred[members]][:1] if is_preferred[members].any() else members[:1]
        assert np.flatnonzero(stays & (labels == label)).tolist() == best.tolist()


# --- The whole of `prepare`. ---


@pytest.mark.slow
@pytest.mark.parametrize('share', [0.02, 0.05, 0.1])
def test_recall_and_precision_among_ten_thousand_documents(tmp_path, share):
    documents, copied = plant(10_000, 500, share)
    source = write_jsonl(tmp_path / 'a', documents)
    summary, data = prepared(source, tmp_path / 'corpus', near_duplicates=0.8, validation_fraction=0.0)
    stayed = {*documents_of(data)['train']}
    dropped = [i for i, document in enumerate(documents) if squeezed(document) not in stayed]
    found = len([i for i in dropped if i >= 9500])
    print(f'{share:.0%} changed: recall {found / 500:.3f}, precision {found / len(dropped):.3f}')
    assert summary.dropped['near_duplicate_document'] == len(dropped)
    assert found / 500 >= (0.95 if share <= 0.05 else 0.5) and found / len(dropped) >= 0.99


@pytest.fixture(scope='module')
def planted(tmp_path_factory):
    """Two sources with copies across them, settings of a corpus of them, and its contents with one chunk per source."""
    directory = tmp_path_factory.mktemp('planted')
    documents, copied = plant(400, 100)
    documents = [*documents, *documents[5:9]]  # exact duplicates
    first, second = (
        write_jsonl(directory / name, part) for name, part in (('a', documents[:250]), ('b', documents[250:]))
    )
    settings = {'near_duplicates': 0.8, 'near_duplicate_unit': 'paragraph', 'split_sentences': False}
    summary, data = prepared(((first, 1.0), (second, 1.5)), directory / 'corpus', **settings)
    return documents, copied, summary, data, contents(data.corpus)


def test_first_of_near_copies_stays_unless_one_is_held_out(planted):
    documents, copied, summary, data, _ = planted
    found = documents_of(data)
    train, validation = ({*found[name]} for name in ('train', 'validation'))
    assert summary.dropped['near_duplicate_document'] >= 95 and summary.dropped['duplicate_document'] == 4
    assert len(validation) >= 20 and not train & validation
    stayed = {where: [] for where in ('train', 'validation')}
    for copy, original in enumerate(copied, 300):
        pair = [squeezed(documents[original]), squeezed(documents[copy])]
        if len({*pair} & (train | validation)) == 1:
            stayed['train' if {*pair} & train else 'validation'].append(pair[0] in train | validation)
    assert len(sum(stayed.values(), [])) >= 95
    assert all(stayed['train'])  # the first
    assert 0 < sum(stayed['validation']) < len(stayed['validation'])  # the one that is held out


@pytest.mark.parametrize(
    'division',
    ['small buffers', 'shards', *(pytest.param(f'{n} workers', marks=pytest.mark.processes) for n in (2, 4))],
)
def test_corpus_is_identical_however_the_search_is_divided(planted, tmp_path, monkeypatch, division):
    *_, data, expected = planted
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 20_000)
    data = dataclasses.replace(data, corpus=str(tmp_path / 'corpus'))
    if division == 'shards':
        for shard_index in (1, 2):
            prepare(data, TOKENIZER, shard=(shard_index, 3), progress=False)
        summary = prepare(data, TOKENIZER, shard=(0, 3), progress=False)
    else:
        if division == 'small buffers':
            for module, name, value in (
                (encode, '_CHARACTERS_AT_ONCE', 3000),
                (sketches, '_TEXTS_AT_ONCE', 3),
                (files, '_TEXTS_PER_BLOCK', 100),
                (comparison, '_MAX_BUCKET_BYTES', 20_000),
                (comparison, '_PAIRS_AT_ONCE', 5),
                (merge, '_RECORDS_AT_ONCE', 50),
            ):
                monkeypatch.setattr(module, name, value)
        workers = int(division[0]) if 'workers' in division else 1
        summary = prepare(data, TOKENIZER, workers=workers, progress=False)
    assert contents(data.corpus) == expected
    assert summary.dropped == expected[1]['dropped']


def test_long_documents_in_several_blocks_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, '_MAX_BLOCK', 500)
    monkeypatch.setattr(encode, '_CHARACTERS_AT_ONCE', 1200)
    documents, _ = plant(60, 30)
    source = write_jsonl(tmp_path / 'a', documents)
    summary, _ = prepared(source, tmp_path / 'corpus', near_duplicates=0.8)
    assert 29 <= summary.dropped['near_duplicate_document'] <= 30 and summary.documents >= 30


@pytest.mark.parametrize('from_source', [False, True])
def test_no_near_copy_of_held_out_text_is_trained_on(tmp_path, from_source):
    documents, copied = plant(300, 100)
    originals, copies = documents[:200], documents[200:]
    held_out_source = write_jsonl(tmp_path / 'b', originals[:100]) if from_source else ''
    source = write_jsonl(tmp_path / 'a', copies + originals[100 * from_source :])
    _, data = prepared(source, tmp_path / 'corpus', near_duplicates=0.8, validation_source=held_out_source)
    found = documents_of(data)
    held_out = {*found['validation']}
    for copy, original in zip(copies, copied, strict=True):
        if squeezed(originals[original]) in held_out:
            assert squeezed(copy) not in found['train']
    if from_source:
        assert held_out == {squeezed(document) for document in originals[:100]}


def test_near_copies_of_paragraphs_go_and_short_lines_stay(tmp_path):
    rng = np.random.default_rng(0)
    notice = random_words(rng, 60)
    documents = [
        [' '.join(random_words(rng, 80)), 'Read more', ' '.join(changed(rng, notice, 0.04))] for _ in range(50)
    ]
    documents.append([' '.join(changed(rng, notice, 0.04))] * 2)
    source = write_jsonl(tmp_path / 'a', documents)
    settings = {'near_duplicates': 0.8, 'validation_fraction': 0.2, 'split_sentences': False}
    summary, _ = prepared(source, tmp_path / 'documents', **settings)
    assert 'near_duplicate_document' not in summary.dropped
    summary, data = prepared(source, tmp_path / 'paragraphs', near_duplicate_unit='paragraph', **settings)
    assert summary.dropped['near_duplicate_paragraph'] == 51 and summary.dropped['document_of_near_duplicates'] == 1
    assert summary.documents == 50 and summary.sentences == 101
    assert sum('readmore' in text for text in sum(documents_of(data).values(), [])) == 50


def test_interrupted_search_resumes(planted, tmp_path, monkeypatch):
    *_, data, expected = planted
    data = dataclasses.replace(data, corpus=str(tmp_path / 'corpus'))
    search, compared = comparison.links_of_bucket, []

    def stop_after(count):
        def counted(*arguments):
            compared.append(arguments[2:])
            if len(compared) > count:
                raise KeyboardInterrupt
            return search(*arguments)

        monkeypatch.setattr('bert_jax.text.job.links_of_bucket', counted)

    stop_after(30)
    with pytest.raises(KeyboardInterrupt):
        prepare(data, TOKENIZER, progress=False)
    first, compared[:] = compared[:30], []
    stop_after(1000)
    prepare(data, TOKENIZER, progress=False)
    assert len(first) + len(compared) == 2 * 42 and contents(data.corpus) == expected


@pytest.mark.processes
def test_search_that_is_killed_resumes_to_the_same_corpus(tmp_path):
    documents, _ = plant(300, 100)
    source = write_jsonl(tmp_path / 'a', documents)
    flags = [f'--config.data.source={source}', '--config.tokenizer.vocab_size=300', '--config.data.near_duplicates=0.8']
    corpus, partial = tmp_path / 'corpus', tmp_path / '.corpus.partial'
    process = start_prepare(*flags, f'--config.data.corpus={corpus}', '--workers=1')
    while len(list(partial.glob('*/links/documents-*'))) < 3 and process.poll() is None:
        pass
    process.kill()
    process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in partial.glob('*/links/documents-*')}
    process = start_prepare(*flags, f'--config.data.corpus={corpus}', '--workers=2', '--json')
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert json.loads(out)['dropped']['near_duplicate_document'] >= 95 and finished
    _, alone = prepared(source, tmp_path / 'alone', near_duplicates=0.8, validation_fraction=0.05)
    assert contents(corpus) == contents(pathlib.Path(alone.corpus))


def test_unusable_settings_are_rejected():
    with pytest.raises(BadInput, match='(?s)near_duplicates.*0.7 to 1'):
        config.resolve({'data': {'near_duplicates': 0.3}})
    with pytest.raises(BadInput, match='(?s)near_duplicate_unit.*near_duplicates is 0'):
        config.resolve({'data': {'near_duplicate_unit': 'paragraph'}})
