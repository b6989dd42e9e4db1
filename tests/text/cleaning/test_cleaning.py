"""Cleaning is part of a corpus: it is counted, and its result is the same for any number of workers."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.evaluation.sample import read_held_out_windows
from bert_jax.text import chunks
from bert_jax.text.cleaning import boilerplate, languages
from bert_jax.text.cleaning.boilerplate import Boilerplate, find_boilerplate, line_digests, write_pairs
from bert_jax.text.corpus import load_corpus, verify
from bert_jax.text.documents import Document
from bert_jax.text.existing import corpus_settings
from bert_jax.text.prepare import Unfinished, prepare
from tests.support.texts import contents, make_documents, write_documents

TOKENIZER = config.Tokenizer(vocab_size=300)
GERMAN = 'Der Hund läuft schnell durch den Wald und über die Wiesen. Dann kommt er am Abend wieder nach Hause.'
ENGLISH = 'The dog runs through the forest and over the meadows. Then it comes back home late in the evening.'
FRENCH = 'Le chien court dans la forêt et sur les prés. Ensuite il rentre à la maison tard dans la soirée.'


def text_of(corpus: str) -> str:
    """Returns all text of a corpus, with one blank between tokens' words."""
    opened = load_corpus(corpus)
    splits = (opened.train, opened.validation)
    return '\n'.join(opened.tokenizer.decode(split.gather(np.arange(split.num_tokens))) for split in splits)


@pytest.fixture(scope='module')
def messy(tmp_path_factory):
    """Settings that use every kind of cleaning, and the contents of the corpus, prepared in one process."""
    directory = tmp_path_factory.mktemp('messy')
    rng = np.random.default_rng(0)
    documents = []
    for index, lines in enumerate(make_documents(400)):
        body = [f'{line} {ENGLISH} Number {index}.' for line in lines]
        if index % 5 == 0:
            body.insert(0, f'Page {rng.integers(100)} of 100.')  # 80 documents, with different numbers
        if index % 7 == 0:
            body.append('Copyright, all rights reserved by the owner.')
        if index % 11 == 0:
            phone = f'+49 30 {rng.integers(1_000_000, 9_999_999)}'
            body.append(f'{lines[0]}, call {phone} or write to user{index}@example.com today.')
        if index % 13 == 0:
            body = [f'{line}. {GERMAN}' for line in lines]
        if index % 17 == 0:
            body.append(f'{lines[0]} and here is some javascript code.')
        documents.append(body)
    data = config.Data(
        source=write_documents(directory / 'a.txt', documents),
        corpus=str(directory / 'corpus'),
        languages=('en',),
        quality_rules=('c4', 'gopher', '-gopher_word_count', '-gopher_duplicate_lines', '-gopher_duplicate_ngrams'),
        boilerplate_documents=20,
        redact=('email', 'phone'),
    )
    prepare(data, TOKENIZER, progress=False)
    return data, contents(data.corpus)


@pytest.mark.parametrize(
    'division', ['one process', pytest.param('three processes', marks=pytest.mark.processes), 'shards', 'small buffers']
)
def test_cleaned_corpus_is_identical_however_the_work_is_divided(messy, tmp_path, monkeypatch, division):
    data, expected = messy
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 5000)
    data = dataclasses.replace(data, corpus=str(tmp_path / 'corpus'))
    if division == 'shards':
        for shard_index in (2, 0):
            assert isinstance(prepare(data, TOKENIZER, shard=(shard_index, 3), progress=False), Unfinished)
        summary = prepare(data, TOKENIZER, shard=(1, 3), progress=False)
    else:
        if division == 'small buffers':
            monkeypatch.setattr(boilerplate, '_PAIRS_PER_RUN', 10)
            monkeypatch.setattr(boilerplate, '_PAIRS_AT_ONCE', 50)
        summary = prepare(data, TOKENIZER, workers=3 if division == 'three processes' else 1, progress=False)
    assert contents(data.corpus) == expected
    assert summary.dropped == expected[1]['dropped']
    assert summary.dropped_characters == expected[1]['dropped_characters']
    verify(load_corpus(data.corpus))


def test_what_is_dropped_is_counted_by_reason(messy):
    data, (files, manifest) = messy
    dropped, text = manifest['dropped'], text_of(data.corpus)
    assert dropped['boilerplate_line'] > 100 and 'page' not in text and 'copyright' not in text
    languages = manifest['languages']
    assert dropped['other_language'] == sum(languages.values()) - languages['en'] >= languages['de'] > 20
    assert 'hund' not in text
    assert dropped['c4_javascript'] > 10 and 'javascript' not in text
    assert 0 < dropped['phone_number_replaced'] == dropped['email_replaced'] and '@' not in text and '+' not in text
    assert {*manifest['dropped_characters']} <= {*dropped}
    assert manifest['dropped_characters']['c4_javascript'] > 40 * dropped['c4_javascript']
    kept = sum(split['documents'] for split in manifest['splits'].values())
    lost = sum(dropped.get(name, 0) for name in ('other_language', 'duplicate_document', 'document_of_dropped_lines'))
    assert kept + lost + sum(dropped[name] for name in dropped if name.startswith('gopher')) == 400
    assert manifest['settings']['data.boilerplate_documents'] == 20
    assert 'boilerplate.npy' in files


def test_held_out_windows_are_of_cleaned_documents(messy):
    data, _ = messy
    windows = read_held_out_windows(data, 50)
    text = ' '.join(window.text for window in windows)
    assert windows and 'dog' in text and not any(word in text for word in ('Copyright', 'Hund', '@', 'javascript'))


def test_settings_at_their_defaults_leave_the_identity_of_a_corpus_alone():
    fields = {'languages', 'quality_rules', 'boilerplate_documents', 'redact'}
    settings = corpus_settings(config.Data(), TOKENIZER, None)
    assert not fields & {name.removeprefix('data.') for name in settings}
    for field, value in (('languages', ('en',)), ('redact', ('email',)), ('boilerplate_documents', 9)):
        assert corpus_settings(config.Data(**{field: value}), TOKENIZER, None) != settings


def test_corpus_with_other_rules_is_not_reused(tmp_path):
    data = config.Data(source=write_documents(tmp_path / 'a', make_documents(30)), corpus=str(tmp_path / 'corpus'))
    prepare(data, TOKENIZER, progress=False)
    with pytest.raises(BadInput, match="(?s)other settings.*data.quality_rules=\\['c4_policy'\\]"):
        prepare(dataclasses.replace(data, quality_rules=('c4_policy',)), TOKENIZER, progress=False)


def test_interrupted_preparation_reads_no_line_twice(messy, tmp_path, monkeypatch):
    data, expected = messy
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 5000)
    data = dataclasses.replace(data, corpus=str(tmp_path / 'corpus'))
    monkeypatch.setattr('bert_jax.text.job.find_boilerplate', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(data, TOKENIZER, progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 5000)
    monkeypatch.setattr('bert_jax.text.job.write_pairs', lambda *_: 1 / 0)
    prepare(data, TOKENIZER, progress=False)
    assert contents(data.corpus) == expected


def test_text_that_is_all_dropped_is_reported(tmp_path):
    source = write_documents(tmp_path / 'a', [['too short'], ['far too short']])
    data = config.Data(source=source, corpus=str(tmp_path / 'corpus'), quality_rules=('gopher',))
    with pytest.raises(BadInput, match=r'no text after cleaning \(left out: 2 documents \(gopher_word_count\)\)'):
        prepare(data, TOKENIZER, progress=False)
    write_documents(tmp_path / 'b', [['a b'], ['c d']])
    prepare(dataclasses.replace(data, source=f'text:{tmp_path}/b', quality_rules=()), TOKENIZER, progress=False)
    provided = config.Tokenizer(path=str(tmp_path / 'corpus' / 'tokenizer'))
    data = dataclasses.replace(data, corpus=str(tmp_path / 'other'))
    with pytest.raises(BadInput, match=r'no training documents \(left out: 2 documents \(gopher_word_count\)\)'):
        prepare(data, provided, progress=False)


# --- Boilerplate. ---


def find(documents, min_documents, directory, chunk_size=7):
    """Returns the function that tells which lines are boilerplate, after both passes over chunks of documents."""
    directories = []
    for start in range(0, len(documents), chunk_size):
        directories.append(directory / 'lines' / f'{start:05d}')
        of_chunk = [Document('\n'.join(lines)) for lines in documents[start : start + chunk_size]]
        write_pairs(of_chunk, directories[-1], min_documents)
    find_boilerplate(directories, min_documents, directory / 'boilerplate.npy', directory)
    found = Boilerplate(directory / 'boilerplate.npy')
    return lambda line: bool(found.are_in(line_digests(line))[0])


@pytest.mark.parametrize('at_once', [3, 1000])
def test_boilerplate_agrees_with_counting_in_memory(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(boilerplate, '_PAIRS_PER_RUN', at_once)
    monkeypatch.setattr(boilerplate, '_PAIRS_AT_ONCE', 2 * at_once)
    documents = make_documents(200)
    is_boilerplate = find(documents, 4, tmp_path)
    distinct = {tuple(lines) for lines in documents}
    counts = Counter(line for lines in distinct for line in {*lines})
    assert {is_boilerplate(line) for line in counts} == {False, True}
    assert all(is_boilerplate(line) == (count >= 4) for line, count in counts.items())


def test_frequent_line_takes_little_space(tmp_path):
    is_boilerplate = find(
        [['everywhere', f'line {chr(97 + i // 26)}{chr(97 + i % 26)}'] for i in range(500)], 3, tmp_path
    )
    assert is_boilerplate('everywhere') and not is_boilerplate('line aa')
    directory = tmp_path / 'one chunk' / 'lines' / '00000'
    write_pairs([Document(f'everywhere\n{i} {"x" * i}') for i in range(500)], directory, 3)
    assert len(np.load(directory / 'run-00000.npy')) == 500 + 3


def test_copies_and_repetitions_within_a_document_are_no_boilerplate(tmp_path):
    is_boilerplate = find(
        [['copied', 'text']] * 20 + [['repeated'] * 20, ['shared', 'a'], ['shared', 'b']], 2, tmp_path
    )
    assert [is_boilerplate(line) for line in ('copied', 'repeated', 'shared', 'a')] == [False, False, True, False]


def test_lines_that_differ_in_case_or_numbers_are_equal(tmp_path):
    is_boilerplate = find([['Page 1 of 20'], ['PAGE 13 of 7'], ['page one']], 2, tmp_path)
    assert is_boilerplate('page 999 OF 1') and not is_boilerplate('page one')


def test_no_boilerplate_is_found_in_different_documents(tmp_path):
    is_boilerplate = find([[str(chr(97 + i))] for i in range(9)], 2, tmp_path)
    assert not is_boilerplate('a')


# --- Languages. ---


def test_languages_are_kept_dropped_and_counted(tmp_path):
    texts = [f'{text} {i}' for text in (GERMAN, ENGLISH, FRENCH) for i in range(20)] + ['12 345']
    source = write_documents(tmp_path / 'a', [[text] for text in texts])
    data = config.Data(source=source, corpus=str(tmp_path / 'corpus'), languages=('en', 'de'))
    summary = prepare(data, TOKENIZER, progress=False)
    assert summary.languages == {'de': 20, 'en': 20, 'fr': 20, 'und': 1}
    assert summary.documents == 40 and summary.dropped == {'other_language': 21}
    text = text_of(data.corpus)
    assert 'hund' in text and 'dog' in text and 'chien' not in text
    data = dataclasses.replace(data, languages=('*',), corpus=str(tmp_path / 'all'))
    summary = prepare(data, TOKENIZER, progress=False)
    assert summary.documents == 61 and summary.languages['fr'] == 20 and summary.dropped == {}


def test_language_needs_the_extra_and_a_known_code(tmp_path, monkeypatch):
    data = config.Data(source=write_documents(tmp_path / 'a', [['a']]), corpus=str(tmp_path / 'c'), languages=('xx',))
    with pytest.raises(BadInput, match="names 'xx', which the model of py3langid does not know"):
        prepare(data, TOKENIZER, progress=False)
    monkeypatch.setattr(languages.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(BadInput, match=r'(?s)needs py3langid.*\.\[languages\]'):
        prepare(data, TOKENIZER, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ['a']


def test_manifest_is_json_with_sorted_reasons(messy):
    data, (_, manifest) = messy
    assert json.loads(json.dumps(manifest)) == manifest
    assert [*manifest['dropped']] == sorted(manifest['dropped'])
