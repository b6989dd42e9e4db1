"""Several processes as one program: how they find each other, share devices, and agree.

A process joins a multi-process run if its launcher says so in the environment: with `JAX_COORDINATOR_ADDRESS`,
`JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (`launch/local.py`, a Kubernetes JobSet), or as one of several `srun` tasks.
Open MPI and TPU pods are detected only with `--distributed`. Any other process runs by itself and waits for no other,
even inside a SLURM allocation.
"""

import collections
import dataclasses
import glob
import hashlib
import ipaddress
import itertools
import json
import os
import pathlib
import re
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bert_jax import console
from bert_jax.errors import BadInput
from bert_jax.files import json_digest
from bert_jax.runtime.devices import NVIDIA_DEVICES

_A_WEEK_MS = 7 * 24 * 3600 * 1000
_barrier_ids = itertools.count()
_ENVIRONMENT = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """The position of this process in its run.

    Attributes:
      coordinator: HOST:PORT of process 0; None if jax finds it by itself.
      num_processes, process_id: None if jax finds them by itself.
      local_devices: indices of the visible GPUs that this process takes; None for all.
    """

    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    local_devices: tuple[int, ...] | None


def find_process_info(
    environment: Mapping[str, str], num_gpus: int, distributed: bool | None = None
) -> ProcessInfo | None:
    """Reads from the environment what the launcher set for this process; None for a single-process run.

    Args:
      num_gpus: GPUs that this process sees.
      distributed: True also detects Open MPI and TPU pods; False forces a single process; None follows the environment.

    Raises:
      BadInput: if the environment is incomplete or inconsistent.
    """
    if distributed is False:
        return None
    present = [name for name in _ENVIRONMENT if environment.get(name)]
    if present:
        if len(present) < len(_ENVIRONMENT):
            missing = ', '.join(name for name in _ENVIRONMENT if name not in present)
            raise BadInput('environment', f'has {", ".join(present)} but not {missing}', 'all three or none')
        address, count, rank = (environment[name] for name in _ENVIRONMENT)
        if not (count.isdigit() and rank.isdigit() and int(rank) < int(count)):
            found = f'says process {rank!r} of {count!r}'
            raise BadInput('environment', found, 'JAX_PROCESS_ID from 0 to JAX_NUM_PROCESSES - 1')
        ids = environment.get('JAX_LOCAL_DEVICE_IDS', '')
        local = tuple(int(name) for name in ids.split(',')) if ids else None
        return ProcessInfo(address, int(count), int(rank), local)
    if int(environment.get('SLURM_STEP_NUM_TASKS', '1')) > 1:  # set by srun for its tasks; a batch script has none
        tasks_here = tasks_per_node(environment['SLURM_STEP_TASKS_PER_NODE'])[int(environment['SLURM_NODEID'])]
        local = share_of_devices(int(environment['SLURM_LOCALID']), tasks_here, num_gpus)
        return ProcessInfo(None, int(environment['SLURM_STEP_NUM_TASKS']), int(environment['SLURM_PROCID']), local)
    return ProcessInfo(None, None, None, None) if distributed else None


def tasks_per_node(text: str) -> list[int]:
    """Expands SLURM's short form: '2(x3),1' is [2, 2, 2, 1]."""
    counts = []
    for count, repeats in re.findall(r'(\d+)(?:\(x(\d+)\))?', text):
        counts += [int(count)] * int(repeats or 1)
    return counts


def share_of_devices(local_id: int, num_tasks: int, num_devices: int) -> tuple[int, ...]:
    """Returns the devices of one of the tasks on a node: an equal share of the node's devices.

    A single task takes all devices. So does a task that sees fewer devices than there are tasks, because the scheduler
    then shows each task only its own.
    """
    if num_tasks == 1 or num_devices < num_tasks:
        return tuple(range(num_devices))
    per_task = num_devices // num_tasks
    return tuple(range(local_id * per_task, (local_id + 1) * per_task))


def visible_gpus(environment: Mapping[str, str]) -> int:
    """Returns the number of NVIDIA devices that this process may use."""
    visible = environment.get('CUDA_VISIBLE_DEVICES')
    if visible is None:
        return len(glob.glob(NVIDIA_DEVICES))
    return len([name for name in visible.split(',') if name and name != '-1'])


def initialize(distributed: bool | None = None, timeout_s: int = 300, watchdog_s: float = 0) -> None:
    """Joins the run that the launcher's environment describes, if any; call this before the first use of a device.

    Args:
      timeout_s: how long to wait for the other processes.
      watchdog_s: seconds after which the watchdog ends a run with a silent process. jax's own heartbeat times out
        later, to end what the watchdog could not (0: no watchdog, and jax's default).

    Raises:
      BadInput: if the other processes do not join within `timeout_s` seconds.
    """
    process = find_process_info(os.environ, visible_gpus(os.environ), distributed)
    if process is None:
        return
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.config.update('jax_enable_preemption_service', False)  # its notice is SIGTERM, which `stopping` handles
    # jax ends the process with a stack trace at its own timeout, so this timer fires first.
    timer = threading.Timer(timeout_s, _exit_without_peers, (process, timeout_s))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            process.coordinator,
            process.num_processes,
            process.process_id,
            list(process.local_devices) if process.local_devices is not None else None,
            initialization_timeout=timeout_s + 60,
            heartbeat_timeout_seconds=int(2 * watchdog_s) + 30 if watchdog_s else 100,  # the watchdog ends first
            coordinator_bind_address=bind_address(process),
        )
    except (RuntimeError, ValueError) as error:
        raise _peers_missing(process, timeout_s, f' ({str(error).splitlines()[0]})') from error
    finally:
        timer.cancel()


def _peers_missing(process: ProcessInfo, timeout_s: int, reason: str = '') -> BadInput:
    who = 'this process' if process.process_id is None else f'process {process.process_id} of {process.num_processes}'
    return BadInput(
        who,
        f'did not find the others within {timeout_s} s{reason}',
        f'all processes started, and {process.coordinator or "the address of process 0"} reachable from each',
        'look at the log of the missing process; --join_timeout=SECONDS waits longer',
    )


def _exit_without_peers(process: ProcessInfo, timeout_s: int) -> None:
    """Ends the process from a thread, with the status of bad input: the main thread is waiting inside jax."""
    error = _peers_missing(process, timeout_s)
    console.fail(f'bert_jax: {error}', error.as_json())
    os._exit(2)


def bind_address(process: ProcessInfo) -> str | None:
    """Returns the address that process 0 listens on: the one that the others use, not every address of its machine.

    Returns:
      None to leave the choice to jax: for the other processes, if jax finds the coordinator by itself, if the
      environment sets JAX_COORDINATOR_BIND_ADDRESS, and if the coordinator's name resolves to an address that is not
      this machine's (a service in front of it) or is visible only on this machine (/etc/hosts).
    """
    if process.coordinator is None or process.process_id != 0 or os.environ.get('JAX_COORDINATOR_BIND_ADDRESS'):
        return None
    name, _, port = process.coordinator.rpartition(':')
    try:
        family, kind, _, _, address = socket.getaddrinfo(name.strip('[]'), 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except OSError:
        return None
    ip = ipaddress.ip_address(address[0])
    if ip.is_loopback and name not in ('localhost', address[0]):
        return None
    return f'[{ip}]:{port}' if ip.version == 6 else f'{ip}:{port}'


def run_on_process_zero(action: Callable[[], Any]) -> Any:
    """Calls `action` in process 0 only; every process returns its JSON value or raises its `BadInput`.

    The action may take arbitrarily long.
    """
    value = failure = None
    if is_process_zero():
        try:
            value = action()
        except BadInput as error:
            failure = error.args
    value, failure = _gather((value, failure))[0]
    if failure:
        raise BadInput(*failure)
    return value


def is_process_zero() -> bool:
    """Returns whether this is process 0, the only one that writes files."""
    return jax.process_index() == 0


def key_value_store() -> Any | None:
    """Returns the client of the key-value store that process 0 serves; None in a single-process run."""
    state = console.distributed_state()
    return state.client if state and jax.process_count() > 1 else None


def check_devices(promised: int | None) -> None:
    """Raises BadInput if the number of devices is not the one that `--devices` promised."""
    if promised is not None and jax.device_count() != promised:
        counts = _gather(jax.local_device_count())
        raise BadInput(
            '--devices',
            f'is {promised}, but jax found {jax.device_count()} (per process: {", ".join(map(str, counts))})',
            f'{promised} devices over all processes; {jax.process_count()} joined this run',
            'start every task with its devices, or correct --devices',
        )


def check_agreement(facts: dict[str, object]) -> None:
    """Raises BadInput in every process, naming the differences, if facts or code versions differ between processes."""
    if jax.process_count() == 1:
        return
    facts = facts | _code_version()
    digests = _gather({name: json_digest(value) for name, value in facts.items()})
    differing = {
        name: [rank for rank, theirs in enumerate(digests) if theirs.get(name) != digests[0].get(name)]
        for name in facts
    }
    differences = [f'{name} (process {", ".join(map(str, ranks))})' for name, ranks in differing.items() if ranks]
    if differences:
        raise BadInput(
            f'process {jax.process_index()} of {jax.process_count()}',
            f'not all processes have the same {"; ".join(differences)} as process 0',
            'one config, one corpus and one version of the code on all hosts',
        )


def _code_version() -> dict[str, object]:
    """Returns values that identify the version of this package and of jax."""
    sources = sorted(pathlib.Path(__file__).parents[1].rglob('*.py'))
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources]
    return {'code': contents, 'jax': jax.__version__}


class AnyProcessFlag:
    """A flag that is true once any process has set it.

    All processes get the same answer at the same step, a few steps late so that no process waits for it.
    """

    _STEPS_LATE = 2

    def __init__(self, mesh: Mesh):
        axes = PartitionSpec(mesh.axis_names)
        self._size, self._sharding = mesh.size, NamedSharding(mesh, axes)
        self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._pending: collections.deque[jax.Array] = collections.deque()

    def __call__(self, mine: bool) -> bool:
        """Returns the flag. Every process must call this equally often: once per step and per evaluation batch."""
        if jax.process_count() == 1:
            return mine
        flags = jax.make_array_from_callback((self._size,), self._sharding, lambda _: np.full(1, mine, np.int32))
        self._pending.append(self._max(flags))
        return len(self._pending) > self._STEPS_LATE and bool(self._pending.popleft())


def describe_hosts() -> str:
    """Returns one line per process: its host, its devices and their memory."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats() or {}
    limit = stats.get('bytes_limit')
    memory = f', {console.size(limit)} each' if limit else ''
    mine = f'{socket.gethostname()}: {len(devices)} x {devices[0].device_kind} ({devices[0].platform}){memory}'
    return '\n'.join(f'Process {rank} on {host}' for rank, host in enumerate(_gather(mine)))


def num_hosts() -> int:
    """Returns the number of hosts; every process must call this."""
    return len({*_gather(socket.gethostname())})


def min_over_processes(value: int) -> int:
    """Returns the minimum over all processes, each of which must call this."""
    return min(_gather(value))


def max_over_processes(value: int) -> int:
    """Returns the maximum over all processes, each of which must call this."""
    return max(_gather(value))


def _gather(value: object) -> list:
    """Returns the JSON values of all processes, by rank. All must call this; they wait for each other for up to a week.

    The barrier comes first because a collective times out after 30 s, and one process may arrive much later: while it
    opens its corpus, waits for the lease, or reads checkpoints.
    """
    store = key_value_store()
    if store is None:
        return [value]
    barrier = next(_barrier_ids)  # each barrier can be used once
    store.wait_at_barrier(f'bert_jax/barrier/{barrier}', timeout_in_ms=_A_WEEK_MS)
    mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(mine)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(mine)] = mine
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
