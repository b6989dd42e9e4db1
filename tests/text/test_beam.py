"""Beam's local runner writes the same corpus as a single process."""

import dataclasses

import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.text import chunks
from bert_jax.text.prepare import prepare
from tests.support.near_copies import plant
from tests.support.texts import contents, make_documents, write_documents, write_jsonl

pytest.importorskip('apache_beam')
pytestmark = pytest.mark.filterwarnings('default')  # warnings of Beam itself
TOKENIZER = config.Tokenizer(vocab_size=200)


def test_beam_writes_the_same_corpus_and_names_a_bad_file(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 1000)
    source = write_documents(tmp_path / 'a', make_documents(200))
    data = config.Data(source=source, corpus=str(tmp_path / 'single'), boilerplate_documents=4, redact=('email',))
    prepare(data, TOKENIZER, progress=False)
    with_beam = dataclasses.replace(data, corpus=str(tmp_path / 'beam'))
    prepare(with_beam, TOKENIZER, beam=['--runner=DirectRunner'], progress=False)
    assert contents(with_beam.corpus) == contents(data.corpus)
    source = write_jsonl(tmp_path / 'b', make_documents(200))
    (tmp_path / 'b').write_text((tmp_path / 'b').read_text().replace('"text"', '"body"'))
    with pytest.raises(BadInput, match="b:1: has no field 'text'"):
        bad = dataclasses.replace(data, source=source, corpus=str(tmp_path / 'bad'))
        prepare(bad, TOKENIZER, beam=['--runner=DirectRunner'], progress=False)


def test_beam_finds_the_same_near_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 20_000)
    documents, _ = plant(120, 40)
    settings = {'near_duplicates': 0.8, 'near_duplicate_unit': 'paragraph', 'split_sentences': False}
    data = config.Data(source=write_jsonl(tmp_path / 'a', documents), corpus=str(tmp_path / 'single'), **settings)
    summary = prepare(data, TOKENIZER, progress=False)
    assert summary.dropped['near_duplicate_document'] >= 38
    with_beam = dataclasses.replace(data, corpus=str(tmp_path / 'beam'))
    processes = ['--direct_running_mode=multi_processing', '--direct_num_workers=2']
    prepare(with_beam, TOKENIZER, beam=['--runner=DirectRunner', *processes], progress=False)
    assert contents(with_beam.corpus) == contents(data.corpus)
