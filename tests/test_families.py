"""A run of every family by its commands: prepared, trained, resumed, evaluated, reported, measured, swept."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.commands import run
from tests.support.configs import as_flags, tiny_run
from tests.support.processes import bert_jax
from tests.support.runs import assert_same_run, metrics
from tests.support.texts import write_text

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]

FAMILIES = {
    'modernbert': {
        'model.num_layers': 5,
        'model.local_attention': 8,
        'model.mlp_dropout': 0.1,
        'optimizer.name': 'stableadamw',
        'train.ema': 0.5,
    },
    'eurobert': {'model.num_layers': 2, 'model.num_key_value_heads': 1, 'model.attention_dropout': 0.1},
}
GRIDS = {'modernbert': {'model.local_attention': [4, 8]}, 'eurobert': {'model.rope_theta': [1e4, 2e4]}}
BASE = """\
import bert_jax.config

def get_config():
    return bert_jax.config.defaults({family!r})
"""
SWEEP = """\
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({content}, allow_dotted_keys=True)
"""


class Planned(NamedTuple):
    """A run of 12 steps: its family, its directory with text.txt and the config file base.py, and its fields."""

    family: str
    directory: Path
    fields: dict[str, object]

    @property
    def flags(self) -> list[str]:
        return as_flags(self.fields, f'{self.directory}/base.py')


@pytest.fixture(scope='module', params=['modernbert', pytest.param('eurobert', marks=pytest.mark.slow)])
def planned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Planned:
    directory = tmp_path_factory.mktemp(request.param)
    write_text(directory / 'text.txt')
    (directory / 'base.py').write_text(BASE.format(family=request.param))
    fields = tiny_run(directory, data__packing=True, train__checkpoint_every=6) | FAMILIES[request.param]
    fields |= {'data.masking.rate': 0.3, 'optimizer.peak_learning_rate': 0.01}
    return Planned(request.param, directory, fields)


@pytest.fixture(scope='module')
def finished(one_device: None, planned: Planned) -> Path:
    """Returns the workdir of an uninterrupted run."""
    assert run(['prepare', *planned.flags], planned.directory) == 0
    assert run(['train', *planned.flags, f'--workdir={planned.directory}/run'], planned.directory) == 0
    return planned.directory / 'run'


def test_run_learns_and_resumes_bit_for_bit(finished: Path, tmp_path: Path) -> None:
    losses = [values['loss'] for values in metrics(finished).values() if 'loss' in values]
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.1
    shutil.copytree(finished, tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '12')
    assert run(['train', f'--workdir={tmp_path}/run'], tmp_path) == 0
    assert_same_run(tmp_path / 'run', finished)


def test_run_is_evaluated_and_reported(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(['evaluate', f'--workdir={finished}', '--sample=8', '--json'], tmp_path) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated['step'] == 12 and evaluated['nsp_loss'] is None
    logged = metrics(finished)[12]  # of the same weights: the moving average of ModernBERT, the parameters of EuroBERT
    assert evaluated['mlm_loss'] == pytest.approx(logged['validation/mlm_loss'], rel=1e-4)
    assert 0 < evaluated['mlm_loss'] < 10 and 0 < evaluated['unigram_entropy'] < 10
    assert run(['report', f'--workdir={finished}'], tmp_path) == 0
    page = (finished / 'report.html').read_text()
    assert 'MLM' in page and 'NSP' not in page


def test_doctor_finds_no_error(planned: Planned, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(['doctor', *planned.flags, '--json'], tmp_path)
    problems = json.loads(capsys.readouterr().out)['problems']
    assert not [problem for problem in problems if problem['level'] == 'error']


@pytest.mark.slow
def test_bench_measures_the_step(
    planned: Planned, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(['bench', *planned.flags, '--seconds=0', '--json'], tmp_path) == 0
    assert json.loads(capsys.readouterr().out)['step_seconds'] > 0


@pytest.mark.slow
@pytest.mark.processes
def test_sweep_runs_every_value_of_a_field_of_the_family(planned: Planned, finished: Path) -> None:
    directory, grid = planned.directory, GRIDS[planned.family]
    fixed = {name: value for name, value in planned.fields.items() if name not in grid}
    content = {'base': f'{directory}/base.py', 'fixed': fixed, 'grid': grid}
    (directory / 'sweep.py').write_text(SWEEP.format(content=content))
    done = bert_jax('sweep', f'--config={directory}/sweep.py', f'--workdir={directory}/sweep', '--json')
    assert [one['status'] for one in json.loads(done.stdout)['runs']] == ['finished'] * 2
