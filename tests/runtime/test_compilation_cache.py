"""Compiled programs are kept where nobody else can write, and a second start uses them in silence."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from bert_jax.runtime import compilation_cache

# What a command may never load: it takes seconds, and none of them is needed.
_FOREIGN = ('torch', 'tensorflow', 'tensorflow_datasets', 'transformers', 'matplotlib', 'apache_beam', 'pandas')
_REPORT = """
import json, sys
from bert_jax.__main__ import main
commands = json.loads(sys.argv[1])
status = max(main(['bert_jax', *command]) for command in commands)
names = ('jax', 'flax', 'orbax', *{foreign!r})
print(json.dumps([status, [name for name in names if name in sys.modules]]), file=sys.stderr)
"""


def _run(directory: pathlib.Path, *commands: list[str], **environment: str) -> tuple[int, list[str], str]:
    """(largest status, the large packages that were loaded, standard error before that) of commands in a process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(('JAX_COMPILATION', 'XLA_FLAGS'))}
    done = subprocess.run(
        [sys.executable, '-c', _REPORT.format(foreign=_FOREIGN), json.dumps(commands)],
        env=kept | {'XDG_CACHE_HOME': str(directory), 'PYTHONPATH': os.pathsep.join(sys.path)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    *said, last = done.stderr.splitlines()
    return *json.loads(last), '\n'.join(said)


@pytest.mark.processes
def test_help_loads_no_large_package(tmp_path: pathlib.Path) -> None:
    assert _run(tmp_path, ['--help'], *([name, '--help'] for name in ('train', 'plan', 'report')))[:2] == (0, [])


@pytest.mark.processes
def test_a_second_start_uses_the_kept_programs_and_loads_nothing_foreign(tmp_path: pathlib.Path) -> None:
    small = ('num_layers=1', 'hidden_size=16', 'num_heads=2', 'intermediate_size=32')
    command = [
        'bench', '--config=configs/bert.py:tiny', '--seconds=0', '--config.train.global_batch_size=2',
        '--config.data.sequence_length=16', '--config.tokenizer.vocab_size=128', '--config.data.corpus=none/here',
        *(f'--config.model.{field}' for field in small),
    ]  # fmt: skip
    always = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    first = _run(tmp_path, command, **always)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*-cache')}
    second = _run(tmp_path, command, **always)
    assert kept and {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*-cache')} == kept
    assert all(path.parent.stat().st_mode & 0o777 == 0o700 for path in kept)
    assert first == second == (0, ['jax', 'flax', 'orbax'], '')  # nothing was said about processors, nor else


def test_programs_are_not_taken_from_where_others_can_write(tmp_path: pathlib.Path) -> None:
    mine = compilation_cache.private_directory(tmp_path / 'a' / 'b')
    assert mine.stat().st_mode & 0o777 == 0o700
    assert compilation_cache.private_directory(mine) == mine
    mine.chmod(0o770)
    with pytest.raises(PermissionError, match='written by others'):
        compilation_cache.private_directory(mine)
    link = tmp_path / 'a' / 'link'
    mine.chmod(0o700)
    link.symlink_to(mine)
    with pytest.raises(PermissionError, match='link'):
        compilation_cache.private_directory(link)


def test_only_the_programs_used_last_are_kept(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation_cache, '_MOST_BYTES', 250)
    for age, name in enumerate(['new', 'middle', 'old']):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    compilation_cache.private_directory(tmp_path / 'x' / 'y')
    compilation_cache._remove_oldest(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {'new', 'middle'}
