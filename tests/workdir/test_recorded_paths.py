"""Relative paths in a workdir's config work from other directories, and after the whole tree has moved."""

import json
import shutil
from pathlib import Path

import pytest

from bert_jax.config.fields import identity_of
from bert_jax.errors import BadInput
from bert_jax.text.corpus import load_corpus
from bert_jax.text.tokenizer import load_saved_tokenizer
from bert_jax.workdir import identity
from bert_jax.workdir.recorded_paths import current_directory_from, resolve_recorded_paths
from tests.support.configs import as_config, prepared, tiny_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes a workdir in a project's runs/ from the project's directory."""
    project = tmp_path / 'pro[j]ect'
    project.mkdir()
    monkeypatch.chdir(project)
    config = as_config(prepared(Path('.')))
    assert not Path(config.data.corpus).is_absolute()
    identity.write('runs/one', config, load_saved_tokenizer(project / 'corpus' / 'tokenizer'), {})
    return project / 'runs' / 'one'


def test_relative_corpus_is_found_from_anywhere_and_after_a_move(run: Path, tmp_path: Path, monkeypatch) -> None:
    as_given = identity.load_config('runs/one')
    assert as_given.data.corpus == as_config(tiny_run(Path('.'))).data.corpus  # exists as it is
    hash_here = load_corpus(as_given.data.corpus).manifest['content_hash']
    elsewhere = tmp_path / 'a' / 'b'
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    for workdir in (str(run), '../../pro[j]ect/runs/one'):
        config = identity.load_config(workdir)
        assert load_corpus(config.data.corpus).manifest['content_hash'] == hash_here
        assert identity_of(config) == identity_of(as_given)
    shutil.move(run.parents[1], tmp_path / 'moved')
    config = identity.load_config(str(tmp_path / 'moved' / 'runs' / 'one'))
    assert load_corpus(config.data.corpus).manifest['content_hash'] == hash_here
    (tmp_path / 'link').symlink_to(tmp_path / 'moved' / 'runs' / 'one')
    assert load_corpus(identity.load_config(str(tmp_path / 'link')).data.corpus).manifest['content_hash'] == hash_here


def test_missing_corpus_of_an_old_workdir_says_where_to_run_the_command(run: Path, tmp_path: Path, monkeypatch) -> None:
    content = json.loads((run / 'config.json').read_text())
    del content['directory']  # as in workdirs of earlier versions
    (run / 'config.json').write_text(json.dumps(content))
    identity.check_corpus_exists(str(run), identity.load_config(str(run)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match='names the corpus ./corpus, ') as raised:
        identity.check_corpus_exists(str(run), identity.load_config(str(run)))
    assert 'from the directory in which `train` was started' in raised.value.fix


def test_path_that_exists_here_is_not_changed(run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'corpus').mkdir()
    assert Path(identity.load_config(str(run)).data.corpus) == Path('corpus')


def test_every_path_of_a_run_and_a_finetune_is_resolved(tmp_path: Path, monkeypatch) -> None:
    project, workdir = tmp_path / 'p', tmp_path / 'p' / 'run'
    workdir.mkdir(parents=True)
    for name in ('a.txt', 'b.txt', 'train.tsv', 'dev.tsv', 'vocab.txt', 'mood.tsv', 'mood', 'python-docs'):
        (project / name).write_text('x')
    monkeypatch.chdir(project)
    start = current_directory_from(str(workdir))
    monkeypatch.chdir(tmp_path)
    values = {
        'data': {
            'source': [['text:*.txt', 1.0], ['tfds:wiki', 1.0], ['python-docs', 1.0]],
            'validation_source': 'jsonl:',
            'corpus': 'no',
        },
        'tokenizer': {'path': 'vocab.txt'},
        'probe': {'sets': [['mood', 'tsv:mood.tsv']]},
        'task': {'directory': '', 'train': 'tsv:train.tsv', 'validation': ['tsv:dev.tsv', 'tsv:/abs'], 'predict': ''},
        'init': 'a.txt',
    }
    assert resolve_recorded_paths(str(workdir), start, values) == {
        'data': {'source': [[f'text:{project}/*.txt', 1.0], ['tfds:wiki', 1.0], ['python-docs', 1.0]]}
        | {'validation_source': 'jsonl:', 'corpus': 'no'},
        'tokenizer': {'path': f'{project}/vocab.txt'},
        'probe': {'sets': [['mood', f'tsv:{project}/mood.tsv']]},
        'task': {'directory': '', 'train': f'tsv:{project}/train.tsv'}
        | {'validation': [f'tsv:{project}/dev.tsv', 'tsv:/abs'], 'predict': ''},
        'init': 'a.txt',
    }
    for older_or_damaged in (None, '', 3, ['x'], {}):
        assert resolve_recorded_paths(str(workdir), older_or_damaged, values) == values
    assert (
        resolve_recorded_paths('gs://bucket/run', start, values) == values
        and current_directory_from('gs://bucket/run') == ''
    )
