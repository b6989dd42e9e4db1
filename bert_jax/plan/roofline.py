"""How long a step takes if each operation is held back by one thing: arithmetic, memory, its launch, or the network.

Williams, Waterman, Patterson 2009, "Roofline", by operation; the efficiencies are the device's (`targets.DEVICES`).
"""

import dataclasses
import math

from bert_jax.plan.hlo import Work
from bert_jax.plan.hlo_collectives import Collective
from bert_jax.plan.targets import Device, Target


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of one step. memory includes what a CPU computes element by element, and the launches of operations that
    are too small for anything else.

    exposed: collectives that nothing runs beside; hidden: those that a computation runs beside.
    """

    matrix: float
    memory: float
    exposed: float
    hidden: float

    @property
    def total(self) -> float:
        """Hidden collectives count where they last longer than all computation."""
        return max(self.matrix + self.memory, self.hidden) + self.exposed


def step_time(work: Work, target: Target, dtype: str) -> StepTime:
    """Args: dtype, of the computation."""
    device = target.device
    peak = device.peak_flops if dtype == 'bfloat16' else device.float32_flops
    flops, bandwidth = peak * device.matmul_efficiency, device.memory_bandwidth * device.memory_efficiency
    matrix = memory = 0.0
    for operation in work.operations:
        arithmetic = operation.flops / flops
        elementwise = operation.simple / device.simple + operation.transcendental / device.transcendental
        seconds = max(arithmetic, elementwise, operation.bytes / bandwidth, device.launch)
        if arithmetic == seconds:
            matrix += operation.count * seconds
        else:
            memory += operation.count * seconds
    exposed = hidden = 0.0
    for collective in work.collectives:
        seconds = collective.count * collective_seconds(collective, target)
        if collective.overlapped:
            hidden += seconds
        else:
            exposed += seconds
    return StepTime(matrix, memory, exposed, hidden)


def collective_seconds(collective: Collective, target: Target) -> float:
    """Of one call, by the ring algorithm: an all-reduce moves 2 (n - 1) / n of its bytes, the others half of that.

    Between hosts of GPUs each first exchanges within its host, then its share over its own network adapter.
    """
    device = target.device
    group = collective.groups[0] if collective.groups else tuple(range(target.num_devices))
    if len(group) < 2:
        return 0.0
    passes = 2 if collective.kind == 'all-reduce' else 1
    inside, hosts = _spread(group, target)
    seconds = passes * collective.bytes * (inside - 1) / inside / _link(device, group, target) if inside > 1 else 0.0
    if hosts > 1:
        network = device.network * device.link_efficiency
        seconds += passes * collective.bytes / inside * (hosts - 1) / hosts / network
    return seconds + device.latency * _rounds(hosts, target)


def _rounds(hosts: int, target: Target) -> float:
    """How many times the latency of a small group: a tree over hosts of GPUs is deeper, the ring of a torus longer."""
    if target.device.kind == 'gpu':
        return 1 + math.log2(hosts)
    return max(1.0, max(target.topology) / 4)


def _spread(group: tuple[int, ...], target: Target) -> tuple[int, int]:
    """(devices of the group in one host, hosts) on GPUs; a TPU slice is one network."""
    if target.device.kind != 'gpu':
        return len(group), 1
    hosts = {member // target.devices_per_host for member in group}
    return len(group) // len(hosts), len(hosts)


def _link(device: Device, group: tuple[int, ...], target: Target) -> float:
    """On a torus a group of all chips uses every link, a smaller one the links along one dim."""
    whole = device.kind != 'tpu' or len(group) == target.num_devices
    share = 1.0 if whole else 1.0 / len(target.topology)
    return device.link * device.link_efficiency * share
