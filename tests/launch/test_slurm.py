"""A run of two tasks on a real SLURM: preempted, requeued, finished. `make test-slurm` runs this; not `make test`.

SLURM and munge come from the system's packages (Debian: apt-get install slurm-wlm munge). The cluster is this machine,
started for the test with its own configuration and key, and stopped after it.
"""

import getpass
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bert_jax.runtime.processes import ProcessInfo
from tests.support.configs import as_flags, prepared, tiny_run
from tests.support.processes import ROOT
from tests.support.texts import write_text

pytestmark = pytest.mark.slurm

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=120 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""


@pytest.fixture(scope='module')
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which SLURM's commands reach a cluster of this one machine."""
    missing = [name for name in ('munged', 'slurmctld', 'slurmd', 'srun', 'sbatch') if shutil.which(name) is None]
    if missing:
        pytest.fail(f'{", ".join(missing)} not found: apt-get install slurm-wlm munge')
    directory = tmp_path_factory.mktemp('slurm')
    for name in ('state', 'spool'):
        (directory / name).mkdir()
    directory.chmod(0o755)
    key = directory / 'munge.key'
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    configuration = directory / 'slurm.conf'
    host = socket.gethostname().partition('.')[0]
    configuration.write_text(_CONFIGURATION.format(host=host, user=getpass.getuser(), directory=directory))
    environment = os.environ | {'SLURM_CONF': str(configuration)}
    munged = ['munged', '--foreground', '--force', f'--key-file={key}', f'--socket={directory}/munge.socket']
    munged += [f'--{name}-file={directory}/munged.{name}' for name in ('pid', 'log', 'seed')]
    daemons = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in (munged, ['slurmctld', '-D'], ['slurmd', '-D'])
    ]
    try:
        _wait_for(lambda: 'idle' in _output(environment, 'sinfo', '--noheader', '--format=%T'), 60, 'an idle node')
        yield environment
    finally:
        _output(environment, 'scancel', f'--user={getpass.getuser()}')  # of a test that failed
        try:
            _wait_for(lambda: not _output(environment, 'squeue', '--noheader'), 120, 'empty queue')
        finally:
            for daemon in reversed(daemons):
                daemon.send_signal(signal.SIGTERM)
            for daemon in reversed(daemons):
                daemon.wait(timeout=30)


def _output(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout


def _wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f'no {what} within {seconds} s'
        time.sleep(0.2)


def _for_jobs(environment: dict[str, str]) -> dict[str, str]:
    return environment | {
        'PYTHON': sys.executable,
        'PYTHONPATH': str(ROOT),
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '',
    }


def _submit(environment: dict[str, str], directory: Path, flags: list[str], workdir: Path, *more: str) -> str:
    """Submits the launch script as two tasks on the only node; returns the job id."""
    environment = _for_jobs(environment)
    options = ['--parsable', '--partition=low', '--nodes=1', '--ntasks-per-node=2', f'--chdir={ROOT}']
    options += [f'--output={directory}/slurm-%j.out', *more]
    script = str(ROOT / 'launch' / 'slurm.sbatch')
    return _output(environment, 'sbatch', *options, script, *flags, f'--workdir={workdir}', '--devices=2').strip()


def _job(environment: dict[str, str], job_id: str) -> dict[str, str]:
    words = _output(environment, 'scontrol', 'show', 'job', job_id).split()
    return dict(word.partition('=')[::2] for word in words)


def _lines(workdir: Path) -> list[dict]:
    path = workdir / 'metrics.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _losses(workdir: Path) -> list[tuple[int, float]]:
    return [(line['step'], line['loss']) for line in _lines(workdir) if 'loss' in line]


@pytest.fixture(scope='module')
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Prepares a corpus; returns the flags of a small run on it."""
    directory = tmp_path_factory.mktemp('corpus')
    changes = {'train__steps': 200, 'train__log_every': 5, 'train__checkpoint_every': 50, 'train__examples': ()}
    changes |= {'model__num_layers': 2, 'model__dropout_rate': 0.1, 'optimizer__warmup_steps': 10}
    return as_flags(prepared(directory, **changes))


def test_preempted_run_is_requeued_and_ends_with_uninterrupted_loss(
    cluster: dict[str, str], flags: list[str], tmp_path: Path
) -> None:
    def finished(job_id: str) -> bool:
        state = _job(cluster, job_id)['JobState']
        assert state in ('PENDING', 'RUNNING', 'COMPLETING', 'PREEMPTED', 'REQUEUED', 'COMPLETED'), _log(job_id)
        return state == 'COMPLETED'

    def _log(job_id: str) -> str:
        return (tmp_path / f'slurm-{job_id}.out').read_text()

    whole = _submit(cluster, tmp_path, flags, tmp_path / 'whole')
    _wait_for(lambda: finished(whole), 900, 'end of the uninterrupted run')

    broken = _submit(cluster, tmp_path, flags, tmp_path / 'broken')
    _wait_for(lambda: len(_losses(tmp_path / 'broken')) > 8, 600, 'step of the run to preempt')
    _output(cluster, 'sbatch', '--partition=high', '--ntasks=2', '--output=/dev/null', '--wrap=sleep 2')
    _wait_for(lambda: finished(broken), 900, 'end of the preempted run')
    assert int(_job(cluster, broken)['Restarts']) >= 1
    assert 'saved step' in _log(broken) and 'Resuming' in _log(broken)
    # The step at which it was stopped is logged too; all others are the same, bit for bit.
    assert set(_losses(tmp_path / 'whole')) <= set(_losses(tmp_path / 'broken'))
    assert _losses(tmp_path / 'whole')[-1][0] == 200


def test_array_chain_replaces_requeueing(cluster: dict[str, str], flags: list[str], tmp_path: Path) -> None:
    job_id = _submit(cluster, tmp_path, flags, tmp_path / 'chain', '--array=1-3%1', '--no-requeue')
    _wait_for(lambda: len(_losses(tmp_path / 'chain')) > 4, 600, 'step of the first job')
    _output(cluster, 'scancel', '--signal=USR1', '--batch', f'{job_id}_1')
    _wait_for(lambda: job_id not in _output(cluster, 'squeue', '--noheader', '--format=%F'), 900, 'end of the chain')
    logs = [path.read_text() for path in sorted(tmp_path.glob('slurm-*.out'), key=lambda path: path.stat().st_mtime)]
    assert len(logs) == 3
    assert 'saved step' in logs[0] and 'Resuming' in logs[1] and 'Nothing to do' in logs[2]
    assert _losses(tmp_path / 'chain')[-1][0] == 200


def test_command_without_srun_in_an_allocation_runs_alone(
    cluster: dict[str, str], flags: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, '-m', 'bert_jax', 'train', *flags, '--config.train.steps=10', '--devices=1']
    wrapped = shlex.join([*command, f'--workdir={tmp_path}/alone'])
    options = ['--parsable', '--ntasks=2', f'--output={tmp_path}/out', f'--wrap={wrapped}']
    job_id = _output(_for_jobs(cluster), 'sbatch', *options).strip()
    _wait_for(lambda: job_id not in _output(cluster, 'squeue', '--noheader', '--format=%F'), 600, 'end of the run')
    assert _losses(tmp_path / 'alone')[-1][0] == 10, (tmp_path / 'out').read_text()


def test_one_task_takes_all_gpus_and_several_share_them(cluster: dict[str, str], tmp_path: Path) -> None:
    """Uses the tasks of a real srun; the node's four GPUs are simulated."""
    tell = (
        'import os; from bert_jax.runtime.processes import find_process_info; '
        'print("process", find_process_info(os.environ, num_gpus=4))'
    )
    environment = _for_jobs(cluster)

    def process_infos(num_tasks: int) -> list[str]:
        printed = _output(environment, 'srun', f'--ntasks={num_tasks}', sys.executable, '-c', tell)
        return sorted(line for line in printed.splitlines() if line.startswith('process'))

    assert process_infos(1) == ['process None']  # alone: jax takes every GPU that it sees
    shared = [f'process {ProcessInfo(None, 2, task, share)}' for task, share in enumerate([(0, 1), (2, 3)])]
    assert process_infos(2) == shared


def test_sweep_is_an_array_whose_stopped_runs_are_requeued(cluster: dict[str, str], tmp_path: Path) -> None:
    write_text(tmp_path / 'text.txt')
    fixed = tiny_run(tmp_path, train__log_every=5, train__evaluate_every=1000, train__examples=())
    del fixed['train.steps']
    content = {
        'base': f'{ROOT}/configs/demo.py',
        'fixed': fixed,
        'runs': [{'name': 'short', 'train.steps': 20}, {'name': 'long', 'train.steps': 400}],
    }
    file = (
        f'from ml_collections import ConfigDict\nget_config = lambda: ConfigDict({content}, allow_dotted_keys=True)\n'
    )
    (tmp_path / 'sweep.py').write_text(file)
    environment = cluster | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}

    def sweep(*flags: str) -> subprocess.CompletedProcess:
        command = [sys.executable, '-m', 'bert_jax', 'sweep', f'--config={tmp_path}/sweep.py', *flags, '--json']
        command.append(f'--workdir={tmp_path}/sweep')
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)

    submitted = sweep('--slurm=--partition=low --ntasks=1')
    assert submitted.returncode == 0, submitted.stderr
    job_id = json.loads(submitted.stdout)['job']
    again = sweep('--slurm=')
    assert again.returncode == 2 and f'scancel {job_id}' in again.stderr

    def log() -> str:
        return ''.join(path.read_text() for path in [*tmp_path.glob('sweep/slurm-*'), *tmp_path.glob('sweep/*/*.log')])

    _wait_for(lambda: len(_losses(tmp_path / 'sweep' / 'long')) > 2, 600, f'step of the run to stop: {log()}')
    _output(cluster, 'scancel', '--signal=USR1', '--batch', f'{job_id}_1')
    _wait_for(lambda: job_id not in _output(cluster, 'squeue', '--noheader', '--format=%F'), 900, f'end: {log()}')
    printed = sweep('--jobs=0')
    assert printed.returncode == 0, printed.stderr
    results = {result['name']: result['status'] for result in json.loads(printed.stdout)['runs']}
    assert results == {'short': 'finished', 'long': 'finished'}, log()
    assert 'saved step' in log() and 'Resuming' in log()
