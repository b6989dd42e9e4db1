"""`launch` writes executable scripts and overwrites nothing."""

import json
import os
from pathlib import Path

import pytest

from bert_jax.__main__ import main

SCRIPTS = Path(__file__).parents[2] / 'launch'
NAMES = ['gke_jobset.yaml', 'local.py', 'slurm.sbatch', 'tpu_pod.sh']


def test_scripts_are_written_unchanged_and_executable(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / 'new' / 'launch'
    assert main(['bert-jax', 'launch', f'--output={output}', '--json']) == 0
    assert json.loads(capsys.readouterr().out) == {'written': [str(output / name) for name in NAMES]}
    assert sorted(path.name for path in output.iterdir()) == NAMES
    assert all((output / name).read_bytes() == (SCRIPTS / name).read_bytes() for name in NAMES)
    executable = [name for name in NAMES if os.access(output / name, os.X_OK)]
    assert executable == ['slurm.sbatch', 'tpu_pod.sh']


def test_existing_script_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / 'tpu_pod.sh').write_text('edited')
    assert main(['bert-jax', 'launch', f'--output={tmp_path}']) == 2
    assert 'already contains tpu_pod.sh' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['tpu_pod.sh']
    assert (tmp_path / 'tpu_pod.sh').read_text() == 'edited'


def test_file_as_output_directory_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / 'file').write_text('')
    assert main(['bert-jax', 'launch', f'--output={tmp_path}/file']) == 2
    assert 'file: is not a directory' in capsys.readouterr().err


def test_output_directory_is_required(capsys: pytest.CaptureFixture) -> None:
    assert main(['bert-jax', 'launch']) == 2
    assert '--output: is missing' in capsys.readouterr().err
