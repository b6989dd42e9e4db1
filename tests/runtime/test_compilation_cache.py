"""Compiled programs are cached where nobody else can write, and a second start uses them."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from bert_jax.runtime import compilation_cache

_PROGRAM = """
import jax
from bert_jax.runtime.compilation_cache import enable_compilation_cache
enable_compilation_cache()
print(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((64, 64))))
"""


def _run(directory: pathlib.Path) -> tuple[str, str]:
    """Runs a program; returns its standard output and standard error."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(('JAX_COMPILATION', 'XLA_FLAGS'))
    }
    own = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', 'XDG_CACHE_HOME': str(directory)}
    done = subprocess.run(
        [sys.executable, '-c', _PROGRAM],
        env=inherited | own | {'PYTHONPATH': os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, done.stderr


@pytest.mark.processes
def test_second_start_uses_cached_programs_and_prints_nothing(tmp_path: pathlib.Path) -> None:
    first = _run(tmp_path)
    cached = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*-cache')}
    second = _run(tmp_path)
    assert cached and {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*-cache')} == cached
    assert all(path.parent.stat().st_mode & 0o777 == 0o700 for path in cached)
    assert first == second == ('262144.0\n', '')  # for example no warning about processors


def test_cache_that_others_can_write_to_is_rejected(tmp_path: pathlib.Path) -> None:
    mine = compilation_cache.private_directory(tmp_path / 'a' / 'b' / 'c', tmp_path)
    levels = [mine, mine.parent, mine.parent.parent]
    assert {level.stat().st_mode & 0o777 for level in levels} == {0o700}
    assert compilation_cache.private_directory(mine, tmp_path) == mine
    for level in levels:
        level.chmod(0o770)
        with pytest.raises(PermissionError, match=f'{level} is writable by others'):
            compilation_cache.private_directory(mine, tmp_path)
        level.chmod(0o700)
    tmp_path.chmod(0o770)  # the home directory itself is not checked
    assert compilation_cache.private_directory(mine, tmp_path) == mine
    link = tmp_path / 'a' / 'link'
    link.symlink_to(mine)
    with pytest.raises(PermissionError, match='link'):
        compilation_cache.private_directory(link / 'd', tmp_path)


def test_cache_may_be_a_link_to_a_missing_directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = {}
    monkeypatch.setattr(compilation_cache.jax.config, 'update', updates.__setitem__)
    monkeypatch.setattr(type(jax.config), 'jax_compilation_cache_dir', None, raising=False)
    (tmp_path / 'cache').symlink_to(tmp_path / 'scratch' / 'mine')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    compilation_cache.enable_compilation_cache()
    directory = pathlib.Path(updates['jax_compilation_cache_dir'])
    assert directory.is_dir() and directory.is_relative_to(tmp_path / 'scratch' / 'mine' / 'bert_jax' / 'programs')


def test_least_recently_used_programs_are_deleted(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation_cache, '_MAX_BYTES', 250)
    for age, name in enumerate(['new', 'middle', 'old']):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    compilation_cache.private_directory(tmp_path / 'x' / 'y', tmp_path)
    compilation_cache._remove_oldest(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {'new', 'middle'}
