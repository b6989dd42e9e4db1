"""The devices that runs can be planned for, with figures from their data sheets, and the names of targets.

A target is `tpu-CHIP:AxB[xC]` (a slice, by its topology), `GPU:HOSTSxGPUS`, or `here` (the local devices).
"""

import dataclasses
import difflib
import itertools
import math
import re

from bert_jax.errors import BadInput
from bert_jax.runtime.devices import PEAK_BF16_FLOPS

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Device:
    """One chip or GPU. The efficiencies are the fraction of a figure that programs reach.

    Attributes:
      kind: 'tpu', 'gpu' or 'cpu'.
      memory_bytes: as on the data sheet.
      usable_bytes: what a program may allocate of it.
      peak_flops: dense bfloat16 FLOP/s.
      float32_flops: FLOP/s of a float32 matmul at jax's default precision.
      memory_bandwidth: bytes per second.
      link_bandwidth: bytes per second in one direction, over all links of a chip to its neighbours (ICI) or of a GPU to
        the others of its host (NVLink).
      network_bandwidth: bytes per second in one direction, a GPU's share of its host's network adapters; 0 for devices
        with a single network.
      launch_seconds: minimum time of an operation.
      latency_seconds: minimum time of a collective.
      simple_rate, transcendental_rate: elementwise operations per second (additions and the like; exponentials and the
        like). Finite only for CPUs, where they can take longer than moving the elements.
      integer_rate: the same of operations on 32-bit integers. For accelerators an estimate: clock x units, all busy.
    """

    name: str
    kind: str
    memory_bytes: float
    usable_bytes: float
    peak_flops: float
    float32_flops: float
    memory_bandwidth: float
    link_bandwidth: float = 0.0
    network_bandwidth: float = 0.0
    devices_per_host: int = 1
    launch_seconds: float = 2e-6
    latency_seconds: float = 1e-5
    matmul_efficiency: float = 1.0
    memory_efficiency: float = 1.0
    link_efficiency: float = 1.0
    simple_rate: float = math.inf
    transcendental_rate: float = math.inf
    integer_rate: float = math.inf


def _tpu(
    name: str, memory: float, usable: float, bandwidth: float, ici: float, per_host: int, integer: float
) -> Device:
    """Returns a TPU chip; by default jax multiplies float32 in bfloat16 there.

    Args:
      memory, usable: GiB; the second is the limit that libtpu names in its errors.
      bandwidth, ici: bytes per second.
      per_host: chips per host.
      integer: operations on integers per second.
    """
    flops = PEAK_BF16_FLOPS[name]
    return Device(
        name, 'tpu', memory * GIB, usable * GIB, flops, flops, bandwidth, link_bandwidth=ici,
        devices_per_host=per_host, launch_seconds=1e-6, latency_seconds=5e-6,
        matmul_efficiency=0.80, memory_efficiency=0.85, link_efficiency=0.80, integer_rate=integer,
    )  # fmt: skip


_GPU_USABLE_SHARE = 0.75  # jax's default for XLA_PYTHON_CLIENT_MEM_FRACTION


def _gpu(name: str, memory: float, bandwidth: float, nvlink: float, network: float, integer: float) -> Device:
    """Returns a GPU; jax multiplies float32 there as TF32, at half the speed of bfloat16.

    Args:
      memory: bytes.  bandwidth, nvlink, network: bytes per second.  integer: operations on integers per second.
    """
    flops = PEAK_BF16_FLOPS[name]
    return Device(
        name, 'gpu', memory, memory * _GPU_USABLE_SHARE, flops, flops / 2, bandwidth, link_bandwidth=nvlink,
        network_bandwidth=network, devices_per_host=8, launch_seconds=2.5e-6, latency_seconds=2e-5,
        matmul_efficiency=0.65, memory_efficiency=0.80, link_efficiency=0.75, integer_rate=integer,
    )  # fmt: skip


# TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} (per chip: HBM, HBM bandwidth, interchip bandwidth / 8).
# GPUs: NVIDIA's data sheets of the SXM modules (dense figures, half of those "with sparsity"; NVLink in one direction).
# Network adapters: those of DGX A100, H100, H200 and B200 (8 x 200 or 400 Gbit/s).
# Operations on integers: of a TPU, 8 x 128 lanes with 4 units per core (jax-ml.github.io/scaling-book/tpus); of a GPU,
# 64 per multiprocessor and cycle (CUDA programming guide, arithmetic throughput).
DEVICES = {
    device.name: device
    for device in (
        _tpu('tpu-v4', 32, 30.75, 1228e9, 300e9, 4, 8.6e12),
        _tpu('tpu-v5e', 16, 15.75, 819e9, 200e9, 4, 6.1e12),
        _tpu('tpu-v5p', 95.74, 95.74, 2765e9, 600e9, 4, 14.3e12),
        _tpu('tpu-v6e', 32, 31.25, 1640e9, 448e9, 4, 6.1e12),
        _gpu('a100', 80e9, 2039e9, 300e9, 25e9, 9.7e12),
        _gpu('h100', 80e9, 3350e9, 450e9, 50e9, 16.7e12),
        _gpu('h200', 141e9, 4800e9, 450e9, 50e9, 16.7e12),
        _gpu('b200', 180e9, 8000e9, 900e9, 50e9, 18.6e12),
    )
}

_2D_TOPOLOGIES = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')  # v5e and v6e: up to 256 chips
_SMALL_3D_TOPOLOGIES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4')  # v4 and v5p, below 64 chips
_MAX_CHIPS = {'tpu-v4': 4096, 'tpu-v5p': 6144}
_EXAMPLE_TOPOLOGY = {'tpu-v4': '2x2x4', 'tpu-v5p': '2x2x4', 'tpu-v5e': '4x4', 'tpu-v6e': '4x4'}


@dataclasses.dataclass(frozen=True)
class Target:
    """Several devices of one kind.

    Attributes:
      topology: sizes of the torus (TPU), or (hosts, devices per host).
    """

    name: str
    device: Device
    topology: tuple[int, ...]

    @property
    def num_devices(self) -> int:
        """Devices on all hosts."""
        return math.prod(self.topology)

    @property
    def devices_per_host(self) -> int:
        """Devices of one host."""
        if self.device.kind == 'gpu':
            return self.topology[1]
        return min(self.device.devices_per_host, self.num_devices)

    @property
    def num_hosts(self) -> int:
        """Hosts, and processes of a run."""
        return -(-self.num_devices // self.devices_per_host)


def parse_target(name: str) -> Target:
    """Returns the target with a name other than `here` (see `calibrate.measure_local_target`).

    Raises:
      BadInput: for a chip that is not in the table, or a topology that is not offered for it.
    """
    chip, _, shape = name.lower().partition(':')
    if chip not in DEVICES:
        known = ['here', *DEVICES]
        near = difflib.get_close_matches(chip, known, n=2, cutoff=0.4)
        fix = 'did you mean ' + ' or '.join(near) + '?' if near else '--target=tpu-v5e:4x4'
        raise BadInput('--target', f'{name!r} is unknown', ', '.join(known), fix)
    device = DEVICES[chip]
    if not re.fullmatch(r'[1-9]\d{0,4}(x[1-9]\d{0,4})+', shape):
        form = 'HOSTSxGPUS' if device.kind == 'gpu' else 'TOPOLOGY'
        raise BadInput(
            '--target', f'is {name!r}', f'{chip}:{form}', f'--target={chip}:{_EXAMPLE_TOPOLOGY.get(chip, "1x8")}'
        )
    sizes = tuple(int(size) for size in shape.split('x'))
    if not _is_offered(device, sizes, shape):
        near = _nearest(device, math.prod(sizes))
        raise BadInput(
            '--target',
            f'{chip} is not offered as {shape}',
            _describe_offered(device),
            '--target=' + ' or '.join(f'{chip}:{shape}' for shape in near),
        )
    return Target(f'{chip}:{shape}', device, sizes)


def _is_offered(device: Device, sizes: tuple[int, ...], shape: str) -> bool:
    """Returns whether devices come in a topology, given as sizes and as text."""
    if device.kind == 'gpu':
        return len(sizes) == 2 and sizes[1] <= device.devices_per_host
    if device.name not in _MAX_CHIPS:
        return shape in _2D_TOPOLOGIES
    is_multiple_of_4 = len(sizes) == 3 and list(sizes) == sorted(sizes) and all(size % 4 == 0 for size in sizes)
    return shape in _SMALL_3D_TOPOLOGIES or (is_multiple_of_4 and math.prod(sizes) <= _MAX_CHIPS[device.name])


def _describe_offered(device: Device) -> str:
    if device.kind == 'gpu':
        return f'HOSTSxGPUS with at most {device.devices_per_host} GPUs per host'
    if device.name not in _MAX_CHIPS:
        return 'one of ' + ', '.join(_2D_TOPOLOGIES)
    max_chips = _MAX_CHIPS[device.name]
    return f'one of {", ".join(_SMALL_3D_TOPOLOGIES)}, or ascending multiples of 4 from 4x4x4 to {max_chips} chips'


def _offered(device: Device) -> list[str]:
    """Returns topologies of a device; for GPUs and large slices, a selection."""
    if device.kind == 'gpu':
        return ['1x1', '1x2', '1x4', '1x8', '2x8', '4x8', '8x8', '16x8', '32x8']
    if device.name not in _MAX_CHIPS:
        return list(_2D_TOPOLOGIES)
    max_chips = _MAX_CHIPS[device.name]
    cubes = itertools.combinations_with_replacement(range(4, 25, 4), 3)
    return [*_SMALL_3D_TOPOLOGIES, *('x'.join(map(str, cube)) for cube in cubes if math.prod(cube) <= max_chips)]


def _nearest(device: Device, num_devices: int) -> list[str]:
    """Returns the two offered topologies with the nearest number of devices."""

    def distance(shape: str) -> float:
        return abs(math.log(_num_devices(shape) / num_devices))

    return sorted(_offered(device), key=distance)[:2]


def _num_devices(shape: str) -> int:
    return math.prod(map(int, shape.split('x')))


def target_of_size(device: Device, num_devices: int) -> Target | None:
    """Returns a target with a number of devices, on a torus as close to a cube as possible; None if there is none."""
    if device.kind == 'gpu':
        per_host = min(num_devices, device.devices_per_host)
        return parse_target(f'{device.name}:{num_devices // per_host}x{per_host}')
    shapes = [shape for shape in _offered(device) if _num_devices(shape) == num_devices]
    if not shapes:
        return None
    return parse_target(f'{device.name}:{min(shapes, key=lambda shape: max(map(int, shape.split("x"))))}')


def next_larger(target: Target) -> str | None:
    """Returns the name of the next larger target of the same device, or None for the largest."""
    for shape in sorted(_offered(target.device), key=_num_devices):
        if _num_devices(shape) > target.num_devices:
            return f'{target.device.name}:{shape}'
    return None
