"""Several processes on one machine are one run: same losses, stopped together, and one failure ends all."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from bert_jax.pretrained.load import load_pretrained
from tests.support.commands import run
from tests.support.configs import as_flags, prepared
from tests.support.processes import ROOT, Running, command, environment, free_port
from tests.support.runs import metrics

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures('one_device')]


@pytest.fixture(scope='module')
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp('local')
    changes = {'model__dropout_rate': 0.1, 'train__checkpoint_every': 10, 'train__examples': ()}
    changes['data__validation_fraction'] = 0.0  # nothing but the step is compiled
    return as_flags(prepared(directory, **changes))


def _launcher(processes: int, devices: int, *arguments: str) -> list[str]:
    launcher = [sys.executable, str(ROOT / 'launch' / 'local.py')]
    return [*launcher, f'--processes={processes}', f'--devices={devices}', '--grace=5', '--', *arguments]


def _launch(processes: int, devices: int, *arguments: str, status: int = 0) -> str:
    """Runs a command in several processes; returns their standard error."""
    launcher = _launcher(processes, devices, *arguments)
    done = subprocess.run(launcher, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize('redirected', ['> /dev/full 2>&1', '>&- 2>&-'])
def test_launcher_survives_unwritable_outputs(redirected: str) -> None:
    shell = f'{shlex.join(_launcher(1, 1, "trian"))} {redirected}'
    assert subprocess.run(['bash', '-c', shell], env=environment(), timeout=60).returncode == 2


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(settings: list[str], tmp_path: Path) -> None:
    assert run(['train', *settings, '--workdir=one'], tmp_path) == 0
    flags = [*settings, '--config.mesh.fsdp=2', '--devices=2', f'--workdir={tmp_path}/two']
    printed = _launch(2, 1, 'train', *flags)
    assert 'Process 1 on ' in printed and '2 x ' in printed
    expected, actual = metrics(tmp_path / 'one'), metrics(tmp_path / 'two')
    assert actual.keys() == expected.keys()
    for step, values in expected.items():
        assert actual[step]['loss'] == pytest.approx(values['loss'], rel=2e-5), step


@pytest.mark.slow
def test_exact_sums_give_same_bits_in_one_process_and_in_two(settings: list[str], tmp_path: Path) -> None:
    exact = ['--config.train.reduction=exact', '--config.train.steps=3', '--config.optimizer.warmup_steps=1']
    assert run(['train', *settings, *exact, '--workdir=one'], tmp_path) == 0
    _launch(2, 2, 'train', *settings, *exact, '--config.mesh.fsdp=2', f'--workdir={tmp_path}/two')
    one, two = (nnx.state(load_pretrained(f'{tmp_path}/{name}').model) for name in ('one', 'two'))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    # Several processes may start from a workdir, and may shard its tensors.
    begin = [*settings, f'--config.init={tmp_path}/one', '--config.train.steps=1', '--config.optimizer.warmup_steps=0']
    assert run(['train', *begin, '--workdir=alone'], tmp_path) == 0
    _launch(2, 1, 'train', *begin, '--config.mesh.tensor=2', f'--workdir={tmp_path}/split')
    alone, split = (metrics(tmp_path / name)[1]['loss'] for name in ('alone', 'split'))
    assert split == pytest.approx(alone, rel=2e-5)


def _is_alive(process: str) -> bool:
    """Returns whether a process is running; a zombie is not."""
    status = Path(f'/proc/{process}/status')
    return status.exists() and '\nState:\tZ' not in status.read_text()


@pytest.mark.slow
def test_stopped_run_resumes_and_killed_launcher_leaves_no_process(settings: list[str], tmp_path: Path) -> None:
    """A signal stops all processes at the same step; if its launcher is killed, a run saves and ends."""
    arguments = ['train', *settings, '--config.train.steps=100000', f'--workdir={tmp_path}']
    with Running(_launcher(2, 1, *arguments), environment()) as stopped:
        stopped.wait_until_logged(tmp_path, num_lines=3)
        stopped.process.terminate()
        assert stopped.wait() == 75 and 'saved step' in stopped.text, stopped.text
    saved = max(int(path.name) for path in (tmp_path / 'checkpoints').iterdir())
    with Running(_launcher(2, 1, *arguments), environment()) as killed:
        assert killed.wait_for(f'Resuming {tmp_path} from step {saved}'), killed.text
        killed.wait_until_logged(tmp_path, num_lines=saved + 3)
        children = Path(f'/proc/{killed.process.pid}/task/{killed.process.pid}/children').read_text().split()
        assert len(children) == 2
        killed.process.kill()
        deadline = time.monotonic() + 100
        while any(map(_is_alive, children)):
            assert time.monotonic() < deadline, 'processes are left behind'
            time.sleep(0.1)
    checkpoints = [int(path.parent.name) for path in tmp_path.glob('checkpoints/*/manifest.json')]
    assert max(checkpoints) > saved


def test_process_whose_peers_do_not_arrive_stops_in_time(tmp_path: Path) -> None:
    variables = {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{free_port()}', 'JAX_NUM_PROCESSES': 2, 'JAX_PROCESS_ID': 0}
    flags = [f'--config={ROOT}/configs/demo.py', '--join_timeout=2', f'--workdir={tmp_path}/run']
    with Running(command('train', *flags), environment(**variables)) as alone:
        assert alone.wait() == 2
    assert alone.text.startswith('bert_jax: process 0 of 2: did not find the others within 2 s'), alone.text
    assert not (tmp_path / 'run').exists()


def test_processes_with_different_configs_all_stop_and_name_field(settings: list[str], tmp_path: Path) -> None:
    script = tmp_path / 'config.py'
    script.write_text(
        'import os, bert_jax.config\n\n'
        'def get_config():\n'
        "    config = bert_jax.config.bert('tiny')\n"
        "    config.train.seed = int(os.environ['JAX_PROCESS_ID'])\n"
        '    return config\n'
    )
    printed = _launch(2, 1, 'train', f'--config={script}', *settings[1:], f'--workdir={tmp_path}/run', status=2)
    assert 'not all processes have the same train.seed (process 1)' in printed
    assert not (tmp_path / 'run').exists()


def test_failing_process_ends_all_with_its_status(tmp_path: Path) -> None:
    printed = _launch(2, 1, 'train', f'--config={ROOT}/configs/demo.py', '--config.train.steps=none', status=2)
    assert 'steps' in printed
