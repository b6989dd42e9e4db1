"""Missing packages and unsupported versions are reported at once, with the command that installs them."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import packaging
import pytest

from bert_jax.__main__ import main
from bert_jax.errors import BadInput
from bert_jax.runtime import versions

ROOT = Path(__file__).parents[2]


def test_installed_packages_are_supported() -> None:
    assert len(versions.requirements()) > 15
    versions.check(versions.requirements())


def test_beam_needs_only_its_own_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {'apache-beam': '2.60', 'tokenizers': '0.23.1', 'sentencepiece': '0.2.1', 'ml-collections': '1.1'}
    installed |= {
        'absl-py': '2.1',
        'etils': '1.10',
        'tqdm': '4.66',
        'zstandard': '0.23',
        'pyarrow': '20',
        'packaging': '24',
        'rensa': '0.5.0',
        'charset-normalizer': '3.4',
    }
    monkeypatch.setattr(versions, '_version', installed.get)
    parsed = []
    monkeypatch.setattr('bert_jax.__main__.parse', lambda command, arguments: parsed.append(arguments) or ({}, []))
    monkeypatch.setattr('bert_jax.__main__.COMMANDS', {'prepare': SimpleNamespace(run=lambda values, rest: 0)})
    assert main(['bert_jax', 'prepare', '--beam=--runner=DirectRunner']) == 0
    assert main(['bert_jax', 'prepare']) == 2
    del installed['apache-beam']
    assert main(['bert_jax', 'prepare', '--beam=--runner=DirectRunner']) == 2
    assert len(parsed) == 1


def test_error_lists_every_problem_and_the_command_to_install() -> None:
    with pytest.raises(BadInput) as caught:
        versions.check(['numpy>=2.0,<3', 'jax>=99,<100', 'no-such-package>=1', 'flax<0.1'])
    text = str(caught.value)
    assert f'jax {metadata.version("jax")}' in text and 'no-such-package is missing' in text and 'numpy' not in text
    assert "pip install 'jax>=99,<100' 'no-such-package>=1' 'flax<0.1'" in text


@pytest.mark.parametrize(
    ('allowed', 'versions_allowed'),
    [
        ('>=0.10,<0.13', ['0.10.0', '0.12.10']),
        ('==1.2', ['1.2', '1.2.0', '1.2+local']),
        ('>=1', ['1.2', '1.2.0', '1.2+local', '24.1', '24.2rc1']),
        ('', ['0.9.9', '0.10.0', '0.12.10', '0.13.0rc1', '1.2', '1.2.0', '1.2+local', '24.1', '24.2rc1']),
    ],
)
def test_version_ranges_are_read_as_pip_reads_them(monkeypatch, allowed: str, versions_allowed: list[str]) -> None:
    for version in ('0.9.9', '0.10.0', '0.12.10', '0.13.0rc1', '1.2', '1.2.0', '1.2+local', '24.1', '24.2rc1'):
        monkeypatch.setattr(versions, '_version', lambda name, version=version: version)
        if version in versions_allowed:
            versions.check([f'package[extra]{allowed}'])
        else:
            with pytest.raises(BadInput, match=f'package {re.escape(version)}'):
                versions.check([f'package[extra]{allowed}'])


@pytest.mark.processes
@pytest.mark.parametrize('has_packaging', [True, False])
def test_missing_package_is_reported_without_a_traceback(tmp_path: Path, has_packaging: bool) -> None:
    # Only packages in tmp_path are importable, so absl, which the command line imports first, is missing.
    if has_packaging:
        (tmp_path / 'packaging').symlink_to(Path(packaging.__file__).parent)
    done = subprocess.run(
        [sys.executable, '-S', '-m', 'bert_jax', 'train', '--workdir=x'],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 2 and 'Traceback' not in done.stderr and 'make install' in done.stderr
    for name in ('absl-py', 'jax') if has_packaging else ('packaging',):
        assert f'{name} is missing' in done.stderr
