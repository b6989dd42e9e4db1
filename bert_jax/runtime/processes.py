"""Several processes as one program: how they find each other, which devices each takes, and that they agree.

A process takes part in a run of several when its launcher says so in the environment: `JAX_COORDINATOR_ADDRESS`,
`JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (`launch/local.py`, a Kubernetes JobSet), or `srun` with more than one task.
Open MPI and TPU pods are joined when asked to (`--distributed`). Any other process is alone and waits for no one, also
inside an allocation of SLURM.
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
_meetings = itertools.count()
_ENVIRONMENT = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """Which of a run's processes this one is.

    Attributes:
      coordinator: HOST:PORT of process 0; None where jax finds it by itself.
      num_processes, process_id: None where jax finds them by itself.
      local_devices: which of the GPUs that are visible this process takes; None: all.
    """

    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    local_devices: tuple[int, ...] | None


def find_process_info(
    environment: Mapping[str, str], num_gpus: int, distributed: bool | None = None
) -> ProcessInfo | None:
    """What the launcher says of this process; None for a process that is alone.

    Args:
      num_gpus: that this process sees.
      distributed: True also asks Open MPI and TPU pods; False means alone; None goes by the environment.

    Raises:
      BadInput: for an environment that says only half of it.
    """
    if distributed is False:
        return None
    given = [name for name in _ENVIRONMENT if environment.get(name)]
    if given:
        if len(given) < len(_ENVIRONMENT):
            missing = ', '.join(name for name in _ENVIRONMENT if name not in given)
            raise BadInput('environment', f'has {", ".join(given)} but not {missing}', 'all three or none')
        address, count, number = (environment[name] for name in _ENVIRONMENT)
        if not (count.isdigit() and number.isdigit() and int(number) < int(count)):
            found = f'says process {number!r} of {count!r}'
            raise BadInput('environment', found, 'JAX_PROCESS_ID from 0 to JAX_NUM_PROCESSES - 1')
        ids = environment.get('JAX_LOCAL_DEVICE_IDS', '')
        local = tuple(int(name) for name in ids.split(',')) if ids else None
        return ProcessInfo(address, int(count), int(number), local)
    if int(environment.get('SLURM_STEP_NUM_TASKS', '1')) > 1:  # set by srun for its tasks; a batch script has none
        tasks_here = tasks_per_node(environment['SLURM_STEP_TASKS_PER_NODE'])[int(environment['SLURM_NODEID'])]
        local = share_of_devices(int(environment['SLURM_LOCALID']), tasks_here, num_gpus)
        return ProcessInfo(None, int(environment['SLURM_STEP_NUM_TASKS']), int(environment['SLURM_PROCID']), local)
    return ProcessInfo(None, None, None, None) if distributed else None


def tasks_per_node(text: str) -> list[int]:
    """SLURM's short form written out: '2(x3),1' is [2, 2, 2, 1]."""
    counts = []
    for count, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', text):
        counts += [int(count)] * int(times or 1)
    return counts


def share_of_devices(local_id: int, num_tasks: int, num_devices: int) -> tuple[int, ...]:
    """The devices of one task among those of its node: one task takes all, one per device one each.

    Where the scheduler shows each task its own devices only, there are fewer than tasks, or a task is alone: it takes
    all that it sees.
    """
    if num_tasks == 1 or num_devices < num_tasks:
        return tuple(range(num_devices))
    each = num_devices // num_tasks
    return tuple(range(local_id * each, (local_id + 1) * each))


def visible_gpus(environment: Mapping[str, str]) -> int:
    """NVIDIA devices that this process may use."""
    listed = environment.get('CUDA_VISIBLE_DEVICES')
    if listed is None:
        return len(glob.glob(NVIDIA_DEVICES))
    return len([name for name in listed.split(',') if name and name != '-1'])


def initialize(distributed: bool | None = None, timeout_s: int = 300, watchdog_s: float = 0) -> None:
    """Makes this process one of its run's, where a launcher says so; to be called before the first use of a device.

    Args:
      timeout_s: how long to wait for the others.
      watchdog_s: when the watchdog ends a run with a silent process; jax's own heartbeat comes after that, to end what
        the watchdog could not (0: no watchdog, jax's default).

    Raises:
      BadInput: when the others do not arrive within `timeout_s` seconds.
    """
    process = find_process_info(os.environ, visible_gpus(os.environ), distributed)
    if process is None:
        return
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.config.update('jax_enable_preemption_service', False)  # its notice is SIGTERM, which `stopping` hears itself
    # jax ends the process with a stack trace when its own time is over, so ours is over first.
    late = threading.Timer(timeout_s, _end_alone, (process, timeout_s))
    late.daemon = True
    late.start()
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
        raise _others_missing(process, timeout_s, f' ({str(error).splitlines()[0]})') from error
    finally:
        late.cancel()


def _others_missing(process: ProcessInfo, timeout_s: int, why: str = '') -> BadInput:
    who = 'this process' if process.process_id is None else f'process {process.process_id} of {process.num_processes}'
    return BadInput(
        who,
        f'did not find the others within {timeout_s} s{why}',
        f'all processes started, and {process.coordinator or "the address of process 0"} reachable from each',
        'look at the log of the process that is missing; --join_timeout waits longer',
    )


def _end_alone(process: ProcessInfo, timeout_s: int) -> None:
    """Ends the process from a thread, as bad input ends one: the main thread is inside jax, waiting."""
    error = _others_missing(process, timeout_s)
    console.fail(f'bert_jax: {error}', error.as_json())
    os._exit(2)


def bind_address(process: ProcessInfo) -> str | None:
    """Where process 0 listens: the one address by which the others know it, not all that its machine has.

    Returns:
      None to leave it to jax: for the other processes, where jax finds the coordinator by itself, where the environment
      says it (JAX_COORDINATOR_BIND_ADDRESS), and where the name leads to an address that is not this machine's or only
      its own (a service in front of it; /etc/hosts).
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
    found = ipaddress.ip_address(address[0])
    if found.is_loopback and name not in ('localhost', address[0]):
        return None
    return f'[{found}]:{port}' if found.version == 6 else f'{found}:{port}'


def run_on_process_zero(action: Callable[[], Any]) -> Any:
    """Process 0 performs an action, however long it takes; all return its JSON value or raise its `BadInput`."""
    value = refusal = None
    if is_process_zero():
        try:
            value = action()
        except BadInput as error:
            refusal = error.args
    value, refusal = _gather((value, refusal))[0]
    if refusal:
        raise BadInput(*refusal)
    return value


def is_process_zero() -> bool:
    """Whether this is process 0, which alone writes files."""
    return jax.process_index() == 0


def key_value_store() -> Any | None:
    """The client of the key-value store that process 0 serves to all processes; None when this process is alone."""
    state = console.distributed_state()
    return state.client if state and jax.process_count() > 1 else None


def check_devices(promised: int | None) -> None:
    """Raises BadInput when there are not as many devices as the launcher promised."""
    if promised is not None and jax.device_count() != promised:
        counts = _gather(jax.local_device_count())
        raise BadInput(
            '--devices',
            f'promises {promised}; there are {jax.device_count()}: ' + ', '.join(map(str, counts)) + ' by process',
            f'{promised} devices over {jax.process_count()} processes',
            'launch as many tasks, each with as many devices, as --devices counts',
        )


def check_agreement(facts: dict[str, object]) -> None:
    """Raises BadInput in every process, naming them, when facts or versions of the code differ between processes."""
    if jax.process_count() == 1:
        return
    facts = facts | _code_version()
    digests = _gather({name: json_digest(value) for name, value in facts.items()})
    differing = {
        name: [process for process, theirs in enumerate(digests) if theirs.get(name) != digests[0].get(name)]
        for name in facts
    }
    found = [f'{name} (process {", ".join(map(str, those))})' for name, those in differing.items() if those]
    if found:
        raise BadInput(
            f'process {jax.process_index()} of {jax.process_count()}',
            f'not all processes have the same {"; ".join(found)} as process 0',
            'one config, one corpus and one version of the code on all hosts',
        )


def _code_version() -> dict[str, object]:
    """What tells one version of this package, and of jax, from another."""
    sources = sorted(pathlib.Path(__file__).parents[1].rglob('*.py'))
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources]
    return {'code': contents, 'jax': jax.__version__}


class AnyProcessFlag:
    """Whether any process says yes: the same answer in all at the same step, some steps late so that none waits."""

    _STEPS_LATE = 2

    def __init__(self, mesh: Mesh):
        axes = PartitionSpec(mesh.axis_names)
        self._size, self._sharding = mesh.size, NamedSharding(mesh, axes)
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._asked: collections.deque[jax.Array] = collections.deque()

    def __call__(self, mine: bool) -> bool:
        """To be called equally often by every process: once a step, and once a batch of an evaluation."""
        if jax.process_count() == 1:
            return mine
        flags = jax.make_array_from_callback((self._size,), self._sharding, lambda _: np.full(1, mine, np.int32))
        self._asked.append(self._largest(flags))
        return len(self._asked) > self._STEPS_LATE and bool(self._asked.popleft())


def describe_hosts() -> str:
    """A line for each process: its host, its devices and their memory."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats() or {}
    limit = stats.get('bytes_limit')
    memory = f', {console.size(limit)} each' if limit else ''
    mine = f'{socket.gethostname()}: {len(devices)} x {devices[0].device_kind} ({devices[0].platform}){memory}'
    return '\n'.join(f'Process {number} on {host}' for number, host in enumerate(_gather(mine)))


def num_hosts() -> int:
    """On how many hosts the processes run; to be called by all."""
    return len({*_gather(socket.gethostname())})


def min_over_processes(value: int) -> int:
    """The smallest of all processes' values."""
    return min(_gather(value))


def max_over_processes(value: int) -> int:
    """The largest of all processes' values."""
    return max(_gather(value))


def _gather(value: object) -> list:
    """Every process's JSON value, by process; to be called by all, which wait for each other for up to a week.

    A collective gives up after 30 s. One process may take longer to come here: to open its corpus, to wait for the
    lease, to read checkpoints.
    """
    store = key_value_store()
    if store is None:
        return [value]
    meeting = next(_meetings)  # a barrier serves once
    store.wait_at_barrier(f'bert_jax/meeting/{meeting}', timeout_in_ms=_A_WEEK_MS)
    mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(mine)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(mine)] = mine
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
