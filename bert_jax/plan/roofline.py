"""Predicts how long a step takes if one resource limits each operation: arithmetic, memory, launch or network.

Williams, Waterman, Patterson 2009, "Roofline", applied per operation; `targets.DEVICES` has the efficiencies.
"""

import dataclasses
import math

from bert_jax.plan.hlo import Work
from bert_jax.plan.hlo_collectives import Collective
from bert_jax.plan.targets import Device, Target


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of one step.

    Attributes:
      matmul: operations limited by arithmetic.
      memory: all other operations, limited by memory, by elementwise work (CPU), or by their launch.
      exposed: of collectives, what the device waits for.
      overlapped: of collectives, what runs at the same time as a computation.
    """

    matmul: float
    memory: float
    exposed: float
    overlapped: float

    @property
    def computation(self) -> float:
        """Seconds without collectives."""
        return self.matmul + self.memory

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.computation + self.exposed


def step_time(work: Work, target: Target, dtype: str) -> StepTime:
    """Returns the predicted time of a step whose matmuls have factors in `dtype`."""
    device = target.device
    peak = device.peak_flops if dtype == 'bfloat16' else device.float32_flops
    flops, bandwidth = peak * device.matmul_efficiency, device.memory_bandwidth * device.memory_efficiency
    matmul = memory = 0.0
    free = []  # seconds of each operation beside which no collective runs yet
    for operation in work.operations:
        arithmetic = operation.flops / flops
        elementwise = operation.simple / device.simple_rate + operation.transcendental / device.transcendental_rate
        elementwise += operation.integer / device.integer_rate
        seconds = max(arithmetic, elementwise, operation.bytes / bandwidth, device.launch_seconds)
        free.append(operation.count * seconds)
        if arithmetic == seconds:
            matmul += operation.count * seconds
        else:
            memory += operation.count * seconds
    exposed = overlapped = 0.0
    for collective in work.collectives:
        seconds = collective.count * collective_seconds(collective, target)
        for index in collective.beside:
            hidden = min(free[index], seconds)
            free[index] -= hidden
            seconds -= hidden
            overlapped += hidden
        exposed += seconds
    return StepTime(matmul, memory, exposed, overlapped)


def collective_seconds(collective: Collective, target: Target) -> float:
    """Returns the seconds of one call by the ring algorithm.

    An all-reduce moves 2 (n - 1) / n of its bytes, other collectives half of that. On several hosts of GPUs, devices
    first exchange within their host, then each exchanges its share over its own network adapter.
    """
    device = target.device
    group = collective.groups[0] if collective.groups else tuple(range(target.num_devices))
    if len(group) < 2:
        return 0.0
    passes = 2 if collective.kind == 'all-reduce' else 1
    per_host, hosts = _devices_and_hosts(group, target)
    seconds = 0.0
    if per_host > 1:
        bandwidth = _link_bandwidth(device, group, target)
        seconds += passes * collective.bytes * (per_host - 1) / per_host / bandwidth
    if hosts > 1:
        bandwidth = device.network_bandwidth * device.link_efficiency
        seconds += passes * collective.bytes / per_host * (hosts - 1) / hosts / bandwidth
    return seconds + device.latency_seconds * _num_latencies(hosts, target)


def _num_latencies(hosts: int, target: Target) -> float:
    """Returns how many latencies of a small group a call takes: hosts of GPUs form a tree, a torus forms rings."""
    if target.device.kind == 'gpu':
        return 1 + math.log2(hosts)
    return max(1.0, max(target.topology) / 4)


def _devices_and_hosts(group: tuple[int, ...], target: Target) -> tuple[int, int]:
    """Returns (devices of the group per host, hosts). A TPU slice is one network and counts as one host."""
    if target.device.kind != 'gpu':
        return len(group), 1
    hosts = {member // target.devices_per_host for member in group}
    return len(group) // len(hosts), len(hosts)


def _link_bandwidth(device: Device, group: tuple[int, ...], target: Target) -> float:
    """Returns bytes per second; on a torus a group of all chips uses every link, a smaller one those of one dim."""
    uses_every_link = device.kind != 'tpu' or len(group) == target.num_devices
    share = 1.0 if uses_every_link else 1.0 / len(target.topology)
    return device.link_bandwidth * device.link_efficiency * share
