"""Everything works for a user id without a name and a home directory, as in many containers."""

import pwd
from pathlib import Path

import jax
import pytest
from etils import epath

from bert_jax import files
from bert_jax.data import record_set
from bert_jax.errors import BadInput
from bert_jax.plan import program, targets
from bert_jax.runtime import caches, compilation_cache
from bert_jax.workdir import seal
from tests.support.configs import planned_run, prepared

PACKAGE = Path(__file__).parents[1] / 'bert_jax'


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise KeyError('uid not found: 12345')

    for name in ('HOME', 'USER', 'LOGNAME', 'LNAME', 'USERNAME', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, 'getpwuid', unknown)
    monkeypatch.setattr(pwd, 'getpwnam', unknown)


def test_file_sizes_and_times_need_no_named_owner(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    path.write_bytes(b'12345')
    with pytest.raises(KeyError):
        epath.Path(path).stat()  # the reason for `size_of` and `modified_at`
    assert files.size_of(epath.Path(path)) == files.size_of(str(path)) == 5
    assert files.modified_at(epath.Path(path)) == path.stat().st_mtime


def test_corpus_is_prepared_without_a_home_directory(tmp_path: Path) -> None:
    prepared(tmp_path)
    corpus = epath.Path(tmp_path / 'corpus')
    (corpus / 'manifest.json').unlink()
    seal.seal(corpus, seal.make_manifest(corpus, 1))
    assert seal.damage(corpus) == ''


def test_missing_cache_directory_is_skipped_or_requested(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match='set XDG_CACHE_HOME'):
        caches.cache_directory()
    monkeypatch.setattr(type(jax.config), 'jax_compilation_cache_dir', None, raising=False)
    compilation_cache.enable_compilation_cache()
    assert 'Compilation cache disabled' in capsys.readouterr().err
    assert program._cache_path(planned_run(), targets.parse_target('h200:1x1'), '') is None
    (tmp_path / 'records').write_bytes(b'')
    with pytest.raises(BadInput, match='export XDG_CACHE_HOME'):
        record_set._directory_of('records')
    assert [path.name for path in tmp_path.iterdir()] == ['records']  # no directory named `~`
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    assert caches.cache_directory() == tmp_path / 'cache'


def test_home_directory_and_owner_are_read_in_one_place() -> None:
    words = ('Path.home(', 'expanduser(', 'getpass', 'getlogin', '.stat().length', '.stat().mtime')
    found = {(path.name, word) for path in PACKAGE.rglob('*.py') for word in words if word in path.read_text()}
    assert found == {('caches.py', 'Path.home(')}
