"""A run on records needs no corpus and no `prepare`, and resumes like any other."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import bert_jax.config
from bert_jax.data.streams import open_streams
from bert_jax.errors import BadInput
from bert_jax.evaluation.evaluate import evaluate
from bert_jax.pretrain import pretrain
from bert_jax.text import prepare
from bert_jax.text.tokenizer import WordPiece, load_configured_tokenizer, load_tokenizer
from bert_jax.text.wordpiece import bert_backend
from tests.support.records import make_records, write_records, write_vocabulary
from tests.support.runs import metric_lines

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]


@pytest.fixture(scope='module')
def config(one_device, tmp_path_factory) -> bert_jax.config.Config:
    directory = tmp_path_factory.mktemp('records')
    write_records(directory / 'part-0', make_records(0, 60)[0])
    write_records(directory / 'part-1', make_records(1, 60)[0])
    fields = bert_jax.config.bert('tiny')
    fields.data.update(source=f'tfrecord:{directory}/part-*', validation_fraction=0.2)
    fields.tokenizer.path = str(write_vocabulary(directory / 'vocab.txt'))
    fields.model.update(hidden_size=16, num_heads=2, intermediate_size=32, num_layers=1)
    fields.train.update(steps=8, global_batch_size=16, log_every=1, checkpoint_every=4, examples=())
    fields.optimizer.warmup_steps = 0
    return bert_jax.config.resolve(fields)


@pytest.mark.slow
def test_run_on_records_resumes_bit_for_bit_and_is_evaluated(config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    workdir = tmp_path / 'run'
    assert pretrain(config, str(workdir)).finished
    whole = metric_lines(workdir)
    shutil.rmtree(workdir / 'checkpoints' / '8')
    shutil.rmtree(tmp_path / 'cache')  # a missing index is rebuilt
    assert pretrain(config, str(workdir)).resumed_from == 4
    assert metric_lines(workdir) == whole
    result = evaluate(str(workdir))
    assert result['step'] == 8 and 0 < result['nsp_loss'] < 3
    assert abs(result['mlm_loss'] - np.log(1000)) < 1  # random tokens: nothing to learn
    assert 5 < result['unigram_entropy'] < np.log(1000)
    tokenizer = load_tokenizer(workdir / 'tokenizer', lowercase=True, strip_accents=False)
    assert tokenizer.vocab_size == 1000
    assert json.loads((workdir / 'config.json').read_text())['config']['data']['sequence_length'] == 32


def test_prepare_rejects_records_which_need_no_preparation(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = bert_jax.config.Data(source='tfrecord:part-*')
    for command in (prepare.prepare, prepare.tokenizer_preview):
        with pytest.raises(BadInput, match='(?s)need no preparation.*python -m bert_jax train'):
            command(data, bert_jax.config.Tokenizer())
    assert not list(tmp_path.iterdir())


def test_run_on_records_keeps_its_saved_tokenizer(config, tmp_path: Path, capsys) -> None:
    """Earlier versions read every vocabulary with lowercase=True and strip_accents=False, without composing accents."""
    tokens = load_configured_tokenizer(config.tokenizer).tokens
    ids = {token: index for index, token in enumerate(tokens)}
    before = WordPiece(bert_backend(ids, lowercase=True, strip_accents=False, compose=False))
    before.save(tmp_path / 'tokenizer')
    for settings in ({}, {'lowercase': True, 'strip_accents': False}):  # from a new command; from config.json
        resumed = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, **settings))
        assert open_streams(resumed).of_workdir(str(tmp_path)).tokenizer.hash == before.hash
        assert open_streams(resumed).of_workdir(str(tmp_path / 'new')).tokenizer.hash != before.hash
    other = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, lowercase=False))
    assert open_streams(other).of_workdir(str(tmp_path)).tokenizer.hash != before.hash
