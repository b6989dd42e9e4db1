"""Several processes on one machine are one run: the same losses, one stop for all, one failure ends all."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from bert_jax.pretrained.load import load_pretrained
from tests.test_pretrain import ROOT, bert_jax, write_text


@pytest.fixture(scope='module')
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp('local')
    write_text(directory / 'text.txt')
    values = {
        'data.source': f'text:{directory}/text.txt',
        'data.corpus': directory / 'corpus',
        'data.validation_fraction': 0.0,
        'model.num_layers': 1,
        'data.sequence_length': 32,
        'tokenizer.vocab_size': 500,
        'model.hidden_size': 32,
        'model.intermediate_size': 64,
        'model.dropout_rate': 0.1,
        'train.steps': 12,
        'train.global_batch_size': 16,
        'train.log_every': 5,
        'train.checkpoint_every': 10,
        'optimizer.name': 'adamw',
        'optimizer.warmup_steps': 10,
    }
    flags = [f'--config={ROOT}/configs/demo.py', *(f'--config.{name}={value}' for name, value in values.items())]
    bert_jax('prepare', *flags)
    return flags


def _command(processes: int, devices: int, *arguments: str) -> list[str]:
    launcher = [sys.executable, str(ROOT / 'launch' / 'local.py')]
    return [*launcher, f'--processes={processes}', f'--devices={devices}', '--grace=5', '--', *arguments]


def _environment() -> dict[str, str]:
    return os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}


def _launch(processes: int, devices: int, *arguments: str) -> subprocess.CompletedProcess:
    command = _command(processes, devices, *arguments)
    return subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=300)


def _metrics(workdir: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    steps = {}
    for line in lines:
        steps.setdefault(line['step'], {}).update(line)
    return steps


def test_two_and_four_processes_have_the_losses_of_one(settings: list[str], tmp_path: Path) -> None:
    bert_jax('train', *settings, f'--workdir={tmp_path}/one')
    expected = _metrics(tmp_path / 'one')
    for processes, devices, mesh in ((2, 2, '--config.mesh.fsdp=2'), (4, 1, '--config.mesh.tensor=2')):
        workdir = tmp_path / str(processes)
        total = processes * devices
        done = _launch(processes, devices, 'train', *settings, mesh, f'--devices={total}', f'--workdir={workdir}')
        assert done.returncode == 0, done.stdout + done.stderr
        assert f'Process {processes - 1} on ' in done.stderr and f'Devices: {total} x' in done.stderr
        found = _metrics(workdir)
        assert found.keys() == expected.keys()
        for step, metrics in expected.items():
            assert found[step]['loss'] == pytest.approx(metrics['loss'], rel=2e-5), (processes, step)


def test_exact_sums_give_the_same_bits_in_one_process_and_in_two(settings: list[str], tmp_path: Path) -> None:
    exact = ['--config.train.reduction=exact', '--config.train.steps=3', '--config.optimizer.warmup_steps=1']
    bert_jax('train', *settings, *exact, f'--workdir={tmp_path}/one')
    done = _launch(2, 2, 'train', *settings, *exact, '--config.mesh.fsdp=2', f'--workdir={tmp_path}/two')
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (nnx.state(load_pretrained(f'{tmp_path}/{name}').model) for name in ('one', 'two'))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    # A workdir may be what several processes start from.
    begin = [f'--config.init={tmp_path}/one', '--config.train.steps=1', '--config.optimizer.warmup_steps=0']
    done = _launch(2, 1, 'train', *settings, *begin, f'--workdir={tmp_path}/next')
    assert done.returncode == 0, done.stdout + done.stderr
    assert _metrics(tmp_path / 'next')[1]['loss'] < 7


def test_a_signal_to_the_launcher_stops_all_at_the_same_step_and_the_same_command_goes_on(
    settings: list[str], tmp_path: Path
) -> None:
    arguments = ['train', *settings, '--config.train.steps=4000', f'--workdir={tmp_path}']
    command = _command(2, 1, *arguments)
    running = subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / 'metrics.jsonl').exists() or len(_metrics(tmp_path)) < 3:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 75, errors
    assert 'saved step' in errors
    [newest] = sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir())[-1:]
    soon = ['--config.train.stop_at=2000-01-01']
    again = _launch(2, 1, *arguments, *soon)
    assert again.returncode == 75, again.stderr
    assert f'Going on with {tmp_path} from step {newest}' in again.stderr


def _runs(process: str) -> bool:
    """Whether a process still does something; one that has ended may wait for its status to be read."""
    status = Path(f'/proc/{process}/status')
    return status.exists() and '\nState:\tZ' not in status.read_text()


def test_a_killed_launcher_leaves_no_process_behind_and_its_run_is_saved(settings: list[str], tmp_path: Path) -> None:
    command = _command(2, 1, 'train', *settings, '--config.train.steps=4000', f'--workdir={tmp_path}')
    with open(tmp_path / 'output', 'w') as output:
        running = subprocess.Popen(command, env=_environment(), stdout=output, stderr=output)
    deadline = time.monotonic() + 200
    try:
        while not (tmp_path / 'metrics.jsonl').exists():
            assert running.poll() is None and time.monotonic() < deadline, (tmp_path / 'output').read_text()
            time.sleep(0.2)
        children = Path(f'/proc/{running.pid}/task/{running.pid}/children').read_text().split()
    finally:
        running.kill()
        running.wait(timeout=30)
    assert len(children) == 2
    while any(map(_runs, children)):
        assert time.monotonic() < deadline + 100, 'processes are left behind'
        time.sleep(0.2)
    assert list((tmp_path / 'checkpoints').glob('*/manifest.json'))


def test_a_process_whose_peers_do_not_arrive_stops_in_time_with_a_message(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{listener.getsockname()[1]}'
    place = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0'}
    command = [sys.executable, '-m', 'bert_jax', 'train', f'--config={ROOT}/configs/demo.py', '--join_timeout=2']
    done = subprocess.run(
        [*command, f'--workdir={tmp_path}/run'], env=_environment() | place, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 2
    assert done.stderr.startswith('bert_jax: process 0 of 2: did not find the others within 2 s')
    assert not (tmp_path / 'run').exists()


def test_what_the_launcher_promised_is_checked(settings: list[str], tmp_path: Path) -> None:
    done = _launch(2, 1, 'train', *settings, '--devices=16', f'--workdir={tmp_path}/run')
    assert done.returncode == 2
    assert 'promises 16; there are 2: 1, 1 by process' in done.stderr
    assert not (tmp_path / 'run').exists()


def test_processes_with_different_configs_all_stop_and_name_the_field(settings: list[str], tmp_path: Path) -> None:
    script = tmp_path / 'config.py'
    script.write_text(
        'import os, bert_jax.config\n\n'
        'def get_config():\n'
        "    config = bert_jax.config.bert('tiny')\n"
        "    config.train.seed = int(os.environ['JAX_PROCESS_ID'])\n"
        '    return config\n'
    )
    flags = [f'--config={script}', *settings[1:]]
    done = _launch(2, 1, 'train', *flags, f'--workdir={tmp_path}/run')
    assert done.returncode == 2
    assert 'not all processes have the same train.seed (process 1)' in done.stderr
    assert not (tmp_path / 'run').exists()


def test_one_that_fails_ends_all_with_its_status(tmp_path: Path) -> None:
    done = _launch(2, 1, 'train', f'--config={ROOT}/configs/demo.py', '--config.train.steps=none')
    assert done.returncode == 2 and 'steps' in done.stderr
