"""The sweep command: one run finishes, one fails, one is interrupted; finished runs are not repeated."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bert_jax.runtime.lease import Lease
from tests.support.commands import run
from tests.support.configs import tiny_run
from tests.support.processes import ROOT, bert_jax, command, environment
from tests.support.texts import write_text

FILE = """\
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({content}, allow_dotted_keys=True)
"""


@pytest.fixture(scope='module')
def directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp('sweep')
    write_text(directory / 'text.txt')
    return directory


def write_sweep(directory: Path, runs: list[dict], base: str = f'{ROOT}/configs/demo.py', **fixed: object) -> list[str]:
    """Writes a sweep file; returns the flags of its sweep in directory/sweep."""
    values = tiny_run(directory, train__log_every=5, train__evaluate_every=1000, train__examples=()) | fixed
    values = {name: value for name, value in values.items() if not any(name in one for one in runs)}
    content = {'base': base, 'fixed': values, 'runs': runs}
    (directory / 'sweep.py').write_text(FILE.format(content=content))
    return [f'--config={directory}/sweep.py', f'--workdir={directory}/sweep']


SOUND, BROKEN = {'name': 'sound', 'train.steps': 10}, {'name': 'broken', 'train.steps': 11, 'mesh.data': 3}


@pytest.fixture(scope='module')
def swept(directory: Path) -> subprocess.CompletedProcess:
    """Runs a sweep of a valid run and one whose mesh needs more devices than there are, two at a time."""
    flags = [*write_sweep(directory, [SOUND, BROKEN], base='no/such.py'), f'--config.base={ROOT}/configs/demo.py']
    return bert_jax('sweep', *flags, '--jobs=2', '--json', check=1)


@pytest.mark.slow
@pytest.mark.processes
def test_failed_run_shows_its_log_and_does_not_stop_others(directory, swept):
    printed = json.loads(swept.stdout)
    sound, broken = printed['runs']
    assert (sound['status'], sound['rank'], sound['step']) == ('finished', 1, 10)
    assert (broken['status'], broken['rank'], broken['final_mlm_loss']) == ('failed (2)', None, None)
    assert any('config.mesh' in line for line in broken['log_tail'])
    assert 'config.mesh' in swept.stderr and 'Traceback' not in swept.stderr
    assert (directory / 'sweep' / 'sound' / 'metrics.jsonl').exists()
    assert (directory / 'corpus' / 'manifest.json').exists()
    validation = [
        json.loads(line) for line in (directory / 'sweep' / 'sound' / 'metrics.jsonl').read_text().splitlines()
    ]
    assert sound['final_mlm_loss'] == validation[-1]['validation/mlm_loss']
    [best] = printed['best']
    assert '--config.train.steps=10' in best['command'] and best['command'].endswith('/sound')
    assert printed['page'] == f'{directory}/sweep/sweep.html' and Path(printed['page']).exists()


@pytest.mark.slow
@pytest.mark.processes
def test_different_sweep_in_the_same_workdir_is_rejected(directory, swept, capsys):
    before = (directory / 'sweep' / 'sound' / 'train.log').read_bytes()
    flags = write_sweep(directory, [{'name': 'new'}, SOUND], **{'train.seed': 5})
    assert run(['sweep', *flags], directory) == 2
    assert 'sound: holds another run: train.seed (workdir: 0, requested: 5)' in capsys.readouterr().err
    assert not (directory / 'sweep' / 'new').exists()
    assert (directory / 'sweep' / 'sound' / 'train.log').read_bytes() == before


@pytest.mark.slow
@pytest.mark.processes
def test_interrupted_sweep_saves_and_keeps_finished_runs(directory, swept, capsys):
    before = (directory / 'sweep' / 'sound' / 'train.log').read_bytes()
    flags = write_sweep(
        directory, [SOUND, {'name': 'long', 'train.steps': 1_000_000}, {'name': 'later', 'train.steps': 12}]
    )
    sweep = subprocess.Popen(
        command('sweep', *flags), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics, deadline = directory / 'sweep' / 'long' / 'metrics.jsonl', time.monotonic() + 120
    while not metrics.exists() or not metrics.read_text():
        assert sweep.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    sweep.send_signal(signal.SIGTERM)
    out, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 75, err
    assert 'SIGTERM' in err and '3 runs, 1 already finished' in err
    rows = {line.split()[1]: line for line in out.splitlines() if line.endswith(('finished', '000000', 'started'))}
    assert 'stopped at step' in rows['long'] and 'not started' in rows['later']
    assert (directory / 'sweep' / 'sound' / 'train.log').read_bytes() == before
    assert not (directory / 'sweep' / 'later').exists()
    assert run(['sweep', *flags, '--jobs=0'], directory) == 0
    shown = capsys.readouterr()
    assert 'not started' in shown.out and 'runs/' not in shown.err


@pytest.mark.parametrize(
    'change, words',
    [
        (['--config.base=no/such.py'], 'no/such.py'),
        (['--config.num_drawz=3'], 'num_drawz'),
        (['--jobs=-1'], 'jobs'),
        (['--slurm='], 'sbatch is not found'),
    ],
)
def test_bad_input_exits_2_and_writes_nothing(directory, tmp_path, change, words, monkeypatch, capsys):
    monkeypatch.setenv('PATH', '/nowhere')
    flags = write_sweep(directory, [SOUND])[:1]
    assert run(['sweep', *flags, f'--workdir={tmp_path}/new', *change], tmp_path) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / 'new').exists()


def test_second_sweep_in_a_workdir_is_rejected_while_the_first_runs(directory, tmp_path, capsys):
    flags = write_sweep(directory, [SOUND])[:1]
    first = Lease(f'{tmp_path}/new')
    first.acquire()
    assert run(['sweep', *flags, f'--workdir={tmp_path}/new'], tmp_path) == 2
    assert f'is in use by process {os.getpid()}' in capsys.readouterr().err
    assert run(['sweep', *flags, f'--workdir={tmp_path}/new', '--jobs=0'], tmp_path) == 0  # only shows results
    assert 'not started' in capsys.readouterr().out
    assert not (tmp_path / 'new' / 'sound').exists() and not (directory / 'corpus').exists()
