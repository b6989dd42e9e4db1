"""Beam's local runner gives the corpus that this process alone gives."""

import dataclasses

import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.text import chunks
from bert_jax.text.prepare import prepare
from tests.support.texts import contents, make_documents, write_documents, write_jsonl

pytest.importorskip('apache_beam')
pytestmark = pytest.mark.filterwarnings('default')  # of another project
TOKENIZER = config.Tokenizer(vocab_size=200)


def test_beam_gives_the_same_bytes_and_names_a_bad_file(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 1000)
    data = config.Data(source=write_documents(tmp_path / 'a', make_documents(200)), corpus=str(tmp_path / 'alone'))
    prepare(data, TOKENIZER, progress=False)
    by_beam = dataclasses.replace(data, corpus=str(tmp_path / 'beam'))
    prepare(by_beam, TOKENIZER, beam=['--runner=DirectRunner'], progress=False)
    assert contents(by_beam.corpus) == contents(data.corpus)
    source = write_jsonl(tmp_path / 'b', make_documents(200))
    (tmp_path / 'b').write_text((tmp_path / 'b').read_text().replace('"text"', '"body"'))
    with pytest.raises(BadInput, match="b:1: has no field 'text'"):
        bad = dataclasses.replace(data, source=source, corpus=str(tmp_path / 'bad'))
        prepare(bad, TOKENIZER, beam=['--runner=DirectRunner'], progress=False)
