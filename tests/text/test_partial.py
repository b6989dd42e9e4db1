"""Several processes can prepare one corpus, with one identity at a time; leftovers are reported and removed."""

import dataclasses
import json
import os
import signal
import time

import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.text import chunks
from bert_jax.text.corpus import load_corpus, verify
from bert_jax.text.existing import corpus_settings
from bert_jax.text.partial import open_job
from bert_jax.text.prepare import prepare
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.plan import plan_source
from tests.support.processes import start_prepare
from tests.support.texts import contents, make_documents, write_documents

TOKENIZER = config.Tokenizer(vocab_size=200)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Settings of a corpus with many chunks."""
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 1000)
    source = write_documents(tmp_path / 'a.txt', make_documents(200))
    return config.Data(source=source, corpus=str(tmp_path / 'corpus'), split_sentences=False)


def opened(data, tmp_path, *, progress=False):
    """Opens the job of another process that prepares `data`."""
    sources, settings = [plan_source(data.source, 0)], corpus_settings(data, TOKENIZER, None)
    return open_job(
        tmp_path / 'corpus', ReadOptions.from_config(data), sources, settings, alone=True, progress=progress
    )


def partials(tmp_path):
    return sorted((tmp_path / '.corpus.partial').glob('*'))


def test_other_settings_wait_for_a_running_job_and_remove_its_leftovers(data, tmp_path, capsys):
    other = dataclasses.replace(data, deduplicate_lines=True)
    with pytest.raises(KeyboardInterrupt), opened(data, tmp_path) as job:
        job.sample(0, 1000)
        with pytest.raises(BadInput, match=f'(?s)other settings .in {job.directory}.*--config.data.corpus=DIRECTORY'):
            prepare(other, TOKENIZER, progress=False)
        assert partials(tmp_path) == [job.directory]
        raise KeyboardInterrupt
    assert partials(tmp_path) == [job.directory]
    prepare(other, TOKENIZER)
    assert (
        f'Removing {job.directory} (0.00 MiB): unfinished work of a `prepare` with other settings'
        in capsys.readouterr().err
    )
    assert not (tmp_path / '.corpus.partial').exists()
    assert load_corpus(data.corpus).manifest['settings']['data.deduplicate_lines'] is True


def test_leftovers_of_an_older_version_are_removed(data, tmp_path):
    (tmp_path / '.corpus.partial' / 'chunks').mkdir(parents=True)
    (tmp_path / '.corpus.partial' / 'job.json').write_text(json.dumps({'version': 3}))
    with pytest.raises(BadInput, match=r'(?s)holds shards with other version.*rm -r .*\.corpus\.partial'):
        prepare(data, TOKENIZER, shard=(0, 2), progress=False)
    prepare(data, TOKENIZER, progress=False)
    assert not (tmp_path / '.corpus.partial').exists()


def test_last_of_several_equal_jobs_removes_the_directory(data, tmp_path):
    with opened(data, tmp_path) as first, opened(data, tmp_path) as second:
        assert first.directory == second.directory
        prepare(data, TOKENIZER, progress=False)
        assert partials(tmp_path) == [first.directory] and first.chunk_stats(0).characters
    assert not (tmp_path / '.corpus.partial').exists()


def test_no_leftovers_are_reported_for_a_completed_corpus(data, tmp_path, capsys):
    with opened(data, tmp_path):  # another process that still works
        with pytest.raises(OSError), opened(data, tmp_path, progress=True):
            prepare(data, TOKENIZER, progress=False)
            raise OSError
    assert 'resumes' not in capsys.readouterr().err and not (tmp_path / '.corpus.partial').exists()


def test_failed_prepare_reports_its_leftovers_and_resumes(data, tmp_path, capsys):
    with pytest.raises(BadInput):
        prepare(dataclasses.replace(data, source=f'text:{tmp_path}/missing'), TOKENIZER)
    (tmp_path / 'noise').write_bytes(b'\xff one' * 3000)
    bad = dataclasses.replace(data, source=((data.source, 1.0), (f'text:{tmp_path}/noise', 1.0)))
    with pytest.raises(BadInput, match='noise: holds'):
        prepare(bad, TOKENIZER)
    [left] = partials(tmp_path)
    printed = capsys.readouterr().err
    assert f'Finished work is kept in {left} (0.0' in printed and 'the same command resumes from it' in printed
    prepare(dataclasses.replace(bad, bad_text=0.5), TOKENIZER, progress=False)
    assert not (tmp_path / '.corpus.partial').exists()


def test_prepare_that_fails_early_leaves_no_files(data, tmp_path, capsys):
    (tmp_path / 'a.txt').write_text('{')
    with pytest.raises(BadInput, match='no record can be used'):
        prepare(dataclasses.replace(data, source=f'jsonl:{tmp_path}/a.txt'), TOKENIZER)
    assert [path.name for path in tmp_path.iterdir()] == ['a.txt'] and 'resumes' not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.processes
def test_paused_process_blocks_other_settings_but_not_equal_jobs(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 20_000)
    source = write_documents(tmp_path / 'a', make_documents(3000))
    flags = [f'--config.data.source={source}', '--config.tokenizer.vocab_size=300', '--workers=1']
    flags += ['--config.tokenizer.sample_bytes=20000', f'--config.data.corpus={tmp_path}/corpus']
    stopped = start_prepare(*flags)
    deadline = time.monotonic() + 60
    while not list((tmp_path / '.corpus.partial').glob('*/chunks/0*')):
        assert stopped.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(stopped.pid, signal.SIGSTOP)
    data = config.Data(source=source, corpus=str(tmp_path / 'corpus'))
    tokenizer = config.Tokenizer(vocab_size=300, sample_bytes=20_000)
    with pytest.raises(BadInput, match='being prepared by another process with other settings'):
        prepare(data, dataclasses.replace(tokenizer, vocab_size=290), progress=False)
    equal = [start_prepare(*flags) for _ in range(2)]
    os.kill(stopped.pid, signal.SIGCONT)
    for process in (stopped, *equal):
        _, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
    verify(load_corpus(data.corpus))
    prepare(dataclasses.replace(data, corpus=str(tmp_path / 'other')), tokenizer, progress=False)
    assert contents(data.corpus) == contents(tmp_path / 'other')
    assert {path.name for path in tmp_path.iterdir()} == {'a', 'corpus', 'other'}
