"""Processes find their run and their devices from the launcher's environment, and share results."""

import types

import numpy as np
import pytest

from bert_jax import console
from bert_jax.errors import BadInput
from bert_jax.runtime import processes
from bert_jax.runtime.processes import (
    ProcessInfo,
    bind_address,
    find_process_info,
    share_of_devices,
    tasks_per_node,
    visible_gpus,
)

# What `srun` sets for the tasks of a step, here of 2 nodes with 4 tasks each.
SRUN = {
    'SLURM_JOB_ID': '7',
    'SLURM_STEP_ID': '0',
    'SLURM_STEP_NODELIST': 'node[1-2]',
    'SLURM_STEP_NUM_TASKS': '8',
    'SLURM_STEP_TASKS_PER_NODE': '4(x2)',
    'SLURM_NTASKS': '8',
    'SLURM_PROCID': '6',
    'SLURM_LOCALID': '2',
    'SLURM_NODEID': '1',
}


def test_srun_task_finds_its_rank_and_its_gpus() -> None:
    assert find_process_info(SRUN, num_gpus=4) == ProcessInfo(None, 8, 6, (2,))
    assert find_process_info(SRUN, num_gpus=8) == ProcessInfo(None, 8, 6, (4, 5))
    assert find_process_info(SRUN, num_gpus=1) == ProcessInfo(None, 8, 6, (0,))  # the scheduler shows each task its own
    alone_on_its_node = SRUN | {'SLURM_STEP_TASKS_PER_NODE': '1(x8)', 'SLURM_LOCALID': '0', 'SLURM_NODEID': '6'}
    assert find_process_info(alone_on_its_node, num_gpus=4) == ProcessInfo(None, 8, 6, (0, 1, 2, 3))


@pytest.mark.parametrize('num_tasks, num_devices', [(1, 8), (2, 8), (4, 4), (8, 8), (1, 1), (3, 6)])
def test_tasks_of_a_node_share_devices_without_gap_or_overlap(num_tasks: int, num_devices: int) -> None:
    taken = [share_of_devices(task, num_tasks, num_devices) for task in range(num_tasks)]
    assert sorted(device for share in taken for device in share) == list(range(num_devices))


def test_command_in_an_allocation_without_srun_runs_alone() -> None:
    batch_script = {name: value for name, value in SRUN.items() if not name.startswith('SLURM_STEP')}
    assert find_process_info(batch_script | {'SLURM_PROCID': '0', 'SLURM_LOCALID': '0'}, num_gpus=4) is None
    interactive = SRUN | {'SLURM_STEP_ID': '4294967290', 'SLURM_STEP_NUM_TASKS': '1'}
    assert find_process_info(interactive, num_gpus=4) is None
    assert find_process_info({}, num_gpus=0) is None
    assert find_process_info(SRUN, num_gpus=4, distributed=False) is None


def test_explicit_variables_override_slurm_and_must_be_complete() -> None:
    explicit = {'JAX_COORDINATOR_ADDRESS': 'host:1234', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '1'}
    assert find_process_info(SRUN | explicit, num_gpus=4) == ProcessInfo('host:1234', 2, 1, None)
    assert find_process_info(explicit | {'JAX_LOCAL_DEVICE_IDS': '3'}, num_gpus=4) == ProcessInfo(
        'host:1234', 2, 1, (3,)
    )
    with pytest.raises(BadInput, match='JAX_PROCESS_ID'):
        find_process_info({'JAX_COORDINATOR_ADDRESS': 'host:1234', 'JAX_NUM_PROCESSES': '2'}, num_gpus=0)
    with pytest.raises(BadInput, match="process '2' of '2'"):
        find_process_info(explicit | {'JAX_PROCESS_ID': '2'}, num_gpus=0)


def test_slurm_and_cuda_lists_are_parsed() -> None:
    assert tasks_per_node('2(x3),1') == [2, 2, 2, 1]
    assert tasks_per_node('4') == [4]
    assert visible_gpus({'CUDA_VISIBLE_DEVICES': '2,5'}) == 2
    assert visible_gpus({'CUDA_VISIBLE_DEVICES': ''}) == visible_gpus({'CUDA_VISIBLE_DEVICES': '-1'}) == 0


def test_coordinator_listens_only_on_the_address_others_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('JAX_COORDINATOR_BIND_ADDRESS', raising=False)

    def bound(coordinator: str | None, process: int = 0) -> str | None:
        return bind_address(ProcessInfo(coordinator, 2, process, None))

    assert bound('127.0.0.1:1234') == bound('localhost:1234').replace('[::1]', '127.0.0.1') == '127.0.0.1:1234'
    assert bound('127.0.0.1:1234', process=1) is None  # only process 0 listens
    assert bound('192.0.2.1:1234') is None  # an address that another machine has, or a service in front of this one
    assert bound('no-such-host.invalid:1234') is None and bound(None) is None
    # Other processes could not connect to a name that /etc/hosts resolves to the loopback address.
    monkeypatch.setattr('socket.getaddrinfo', lambda *_, **__: [(2, 1, 6, '', ('127.0.1.1', 0))])
    assert bound('node7:1234') is None
    monkeypatch.setenv('JAX_COORDINATOR_BIND_ADDRESS', '10.0.0.1:5')
    assert bound('127.0.0.1:1234') is None


def test_action_of_a_single_process_returns_or_raises() -> None:
    assert processes.run_on_process_zero(lambda: [7, None]) == [7, None]
    with pytest.raises(BadInput, match='broken'):
        processes.run_on_process_zero(lambda: _raise('broken'))


@pytest.mark.parametrize('rank', [0, 1])
def test_all_processes_wait_for_process_zero_and_share_its_result(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def wait_at_barrier(name: str, timeout_in_ms: int) -> None:
        assert name not in events and timeout_in_ms > 24 * 3600 * 1000
        events.append(name)

    def process_allgather(mine: np.ndarray) -> np.ndarray:
        assert events and events[-1].startswith('bert_jax/')  # a collective gives up after 30 s: nobody waits in it
        return np.stack([mine, mine])

    def act(value: object) -> object:
        events.append('acts')
        return value

    client = types.SimpleNamespace(wait_at_barrier=wait_at_barrier)
    monkeypatch.setattr(console, 'distributed_state', lambda: types.SimpleNamespace(client=client, process_id=rank))
    monkeypatch.setattr('jax.process_count', lambda: 2)
    monkeypatch.setattr('jax.process_index', lambda: rank)
    monkeypatch.setattr('jax.experimental.multihost_utils.process_allgather', process_allgather)
    outcome = processes.run_on_process_zero(lambda: act({'step': 20}))
    assert events[:-1] == ['acts'] * (rank == 0) and outcome == ({'step': 20} if rank == 0 else None)
    if rank == 0:
        with pytest.raises(BadInput, match='broken'):
            processes.run_on_process_zero(lambda: _raise('broken'))


def _raise(found: str) -> None:
    raise BadInput('disk', found, 'a disk')
