"""A branch is the run that the parent would have been had its learning rate fallen from that step on."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from bert_jax.workdir.identity import load_config
from tests.support.commands import run
from tests.support.configs import as_flags, tiny_run
from tests.support.runs import assert_same_run, metric_lines
from tests.support.texts import write_text

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]

DECAY = {'schedule': 'wsd', 'decay': '1-sqrt', 'decay_steps': 4, 'final_fraction': 0.1}
FIRST = {'steps': 3, 'sequence_length': 16, 'schedule': 'linear'}
# With exact sums, gradients do not depend on how a program of another schedule is compiled.
EXACT = {'train.reduction': 'exact', 'train.exact_shards': 2}
# A run, and what it would have been with a decay of four steps after the sixth.
KINDS = {
    'single': ({'optimizer.schedule': 'constant'}, {f'optimizer.{key}': value for key, value in DECAY.items()}),
    'phases': (
        {'phases': (FIRST, {'steps': 7, 'schedule': 'constant'})},
        {'phases': (FIRST, {'steps': 7, **DECAY})},
    ),
}


class Runs(NamedTuple):
    """The directory of parent/, a run of ten steps, its branch/ after step 6, and decayed/, which decayed there."""

    directory: Path
    flags: list[str]


def _digests(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob('*') if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope='module', params=['single', pytest.param('phases', marks=pytest.mark.slow)])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, one_device: None) -> Runs:
    directory, (parent, decayed) = tmp_path_factory.mktemp(request.param), KINDS[request.param]
    write_text(directory / 'text.txt')
    changes = {'train__steps': 10, 'train__checkpoint_every': 2, 'train__keep_checkpoints': 9, 'train__examples': ()}
    fields = tiny_run(directory, model__dropout_rate=0.1, optimizer__peak_learning_rate=0.01, **changes) | EXACT
    assert run(['prepare', *as_flags(fields)], directory) == 0
    flags = as_flags(fields | parent)
    assert run(['train', *flags, '--workdir=parent'], directory) == 0
    assert run(['train', *as_flags(fields | decayed), '--workdir=decayed'], directory) == 0
    before = _digests(directory / 'parent')
    branch = ['--workdir=parent@6', '--tokens=2000', '--final_fraction=0.1', '--output=branch']
    assert run(['anneal', *branch], directory) == 0
    assert _digests(directory / 'parent') == before
    return Runs(directory, flags)


def test_branch_equals_the_run_that_decays_there_bit_for_bit(runs: Runs) -> None:
    assert_same_run(runs.directory / 'branch', runs.directory / 'decayed')
    assert json.loads((runs.directory / 'branch' / 'config.json').read_text())['branch']['step'] == 6


def test_learning_rate_falls_from_where_it_was(runs: Runs) -> None:
    rates = [line['learning_rate'] for line in metric_lines(runs.directory / 'branch') if 'learning_rate' in line]
    expected = [0.01 * (0.1 + 0.9 * (1 - np.sqrt(step / 4))) for step in range(4)]
    np.testing.assert_allclose(rates[-4:], expected, rtol=1e-6)
    parent = [line['learning_rate'] for line in metric_lines(runs.directory / 'parent') if 'learning_rate' in line]
    assert rates[:-4] == parent[:6]


def test_branch_resumes_bit_for_bit(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.directory / 'branch', tmp_path / 'branch')
    shutil.rmtree(tmp_path / 'branch' / 'checkpoints' / '10')
    assert run(['train', f'--workdir={tmp_path}/branch'], runs.directory) == 0
    assert_same_run(tmp_path / 'branch', runs.directory / 'branch')


def test_masking_may_change_from_the_branch_on(runs: Runs, tmp_path: Path) -> None:
    changes = ['--config.data.masking.rate=0.4', '--config.train.log_every=2']
    assert run(['anneal', '--workdir=parent@6', '--steps=1', f'--output={tmp_path}/b', *changes], runs.directory) == 0
    config = load_config(f'{tmp_path}/b')
    assert (config.data.masking.rate, config.train.log_every, config.train.steps) == (0.4, 2, 7)


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (['--workdir=parent@5', '--steps=2'], 'parent@5: does not exist\n  expected: one of 2, 4, 6, 8, 10'),
        (['--workdir=parent@99', '--steps=2'], 'comes after the end of the run, which has 10 steps'),
        (['--workdir=parent@6', '--steps=2', '--output=branch'], '--output=branch: exists'),
        (['--workdir=parent@6'], '--tokens and --steps: are both missing'),
        (['--workdir=parent@6', '--steps=2', '--tokens=100'], '--tokens and --steps: are both given'),
        (['--workdir=decayed@8', '--steps=2'], 'comes after the learning rate began to fall'),
        (['--workdir=parent@6', '--steps=2', '--config.train.seed=5'], 'config.train.seed: changes what the run was'),
        (['--workdir=nowhere@6', '--steps=2'], 'does not exist'),
    ],
)
def test_impossible_branch_is_rejected_before_anything_is_written(
    runs: Runs, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: str
) -> None:
    monkeypatch.setattr('jax.devices', lambda *_: pytest.fail('a device was used'))
    before = _digests(runs.directory)
    assert run(['anneal', '--output=none', *flags], runs.directory) == 2
    assert words in capsys.readouterr().err and not (runs.directory / 'none').exists()
    assert _digests(runs.directory) == before


def test_run_whose_learning_rate_always_falls_has_no_branch(runs: Runs, capsys: pytest.CaptureFixture) -> None:
    config = json.loads((runs.directory / 'parent' / 'config.json').read_text())
    for settings in (config['config']['optimizer'], *config['config']['phases']):
        settings['schedule'] = 'linear'
    shutil.copytree(runs.directory / 'parent', runs.directory / 'falling', dirs_exist_ok=True)
    (runs.directory / 'falling' / 'config.json').write_text(json.dumps(config))
    assert run(['anneal', '--workdir=falling@6', '--steps=2', '--output=none'], runs.directory) == 2
    assert "falls all the time (optimizer.schedule='linear')" in capsys.readouterr().err
