"""The devices that a run can be planned for, with their makers' figures, and the names of targets.

A target is `tpu-CHIP:AxB[xC]` (a slice by its topology), `GPU:HOSTSxGPUS`, or `here`.
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
    """One chip. Bytes, bytes per second, FLOP per second, seconds; the `efficiency` figures say how much is reached.

    memory_bytes: what the data sheet says.  usable_bytes: what a program may take of it.
    peak_flops: dense bfloat16.  float32_flops: of a matrix product of float32 arrays at jax's default precision.
    link: one way, all links of a chip to its neighbours (ICI) or to the GPUs of its host (NVLink).
    network: one way, a GPU's share of its host's network adapters; 0 where a target has one network only.
    launch: the least time of one operation.  latency: of one collective.
    simple, transcendental: operations on elements a second (additions and the like, exponentials and the like), where
    they take longer than moving the elements: on a CPU.
    """

    name: str
    kind: str
    memory_bytes: float
    usable_bytes: float
    peak_flops: float
    float32_flops: float
    memory_bandwidth: float
    link: float = 0.0
    network: float = 0.0
    devices_per_host: int = 1
    launch: float = 2e-6
    latency: float = 1e-5
    matmul_efficiency: float = 1.0
    memory_efficiency: float = 1.0
    link_efficiency: float = 1.0
    simple: float = math.inf
    transcendental: float = math.inf


def _tpu(name: str, memory: float, usable: float, bandwidth: float, ici: float, per_host: int) -> Device:
    """By default jax multiplies float32 in bfloat16 on a TPU. usable: the limit that libtpu names in its errors."""
    flops = PEAK_BF16_FLOPS[name]
    return Device(
        name, 'tpu', memory * GIB, usable * GIB, flops, flops, bandwidth, link=ici, devices_per_host=per_host,
        launch=1e-6, latency=5e-6, matmul_efficiency=0.80, memory_efficiency=0.85, link_efficiency=0.80,
    )  # fmt: skip


_GPU_SHARE = 0.75  # of a GPU's memory that jax takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise


def _gpu(name: str, memory: float, bandwidth: float, nvlink: float, network: float) -> Device:
    """jax multiplies float32 on these GPUs as TF32, half the speed of bfloat16."""
    flops = PEAK_BF16_FLOPS[name]
    return Device(
        name, 'gpu', memory, memory * _GPU_SHARE, flops, flops / 2, bandwidth, link=nvlink, network=network,
        devices_per_host=8, launch=2.5e-6, latency=2e-5,
        matmul_efficiency=0.65, memory_efficiency=0.80, link_efficiency=0.75,
    )  # fmt: skip


# TPU: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} (per chip: HBM, HBM bandwidth, interchip bandwidth / 8).
# GPU: NVIDIA's data sheets of the SXM modules (dense figures, half of those "with sparsity"; NVLink one way), and of
# DGX A100, H100, H200, B200 for the network adapters (8 x 200 or 400 Gbit/s).
DEVICES = {
    device.name: device
    for device in (
        _tpu('tpu-v4', 32, 30.75, 1228e9, 300e9, 4),
        _tpu('tpu-v5e', 16, 15.75, 819e9, 200e9, 4),
        _tpu('tpu-v5p', 95.74, 95.74, 2765e9, 600e9, 4),
        _tpu('tpu-v6e', 32, 31.25, 1640e9, 448e9, 4),
        _gpu('a100', 80e9, 2039e9, 300e9, 25e9),
        _gpu('h100', 80e9, 3350e9, 450e9, 50e9),
        _gpu('h200', 141e9, 4800e9, 450e9, 50e9),
        _gpu('b200', 180e9, 8000e9, 900e9, 50e9),
    )
}

_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')  # v5e and v6e: a torus of two dims, 256 chips
_SMALL_CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4')  # v4 and v5p below a cube of 64
_MOST_CHIPS = {'tpu-v4': 4096, 'tpu-v5p': 6144}
_EXAMPLE = {'tpu-v4': '2x2x4', 'tpu-v5p': '2x2x4', 'tpu-v5e': '4x4', 'tpu-v6e': '4x4'}


@dataclasses.dataclass(frozen=True)
class Target:
    """A number of devices of one kind. topology: the sizes of the torus, or (hosts, GPUs of each)."""

    name: str
    device: Device
    topology: tuple[int, ...]

    @property
    def num_devices(self) -> int:
        """Chips in all."""
        return math.prod(self.topology)

    @property
    def devices_per_host(self) -> int:
        """Chips that one host feeds."""
        if self.device.kind == 'gpu':
            return self.topology[1]
        return min(self.device.devices_per_host, self.num_devices)

    @property
    def num_hosts(self) -> int:
        """Processes of the run."""
        return -(-self.num_devices // self.devices_per_host)


def parse(name: str) -> Target:
    """A target by its name; `here` is made by `calibrate.here`.

    Raises:
      BadInput: for a chip that is not in the table, or a topology that it does not come in.
    """
    chip, _, shape = name.lower().partition(':')
    if chip not in DEVICES:
        known = ['here', *DEVICES]
        near = difflib.get_close_matches(chip, known, n=2, cutoff=0.4)
        fix = 'did you mean ' + ' or '.join(near) + '?' if near else '--target=tpu-v5e:4x4'
        raise BadInput('--target', f'{name!r} is not known', ', '.join(known), fix)
    device = DEVICES[chip]
    if not re.fullmatch(r'[1-9]\d{0,4}(x[1-9]\d{0,4})+', shape):
        form = 'hosts x GPUs of each' if device.kind == 'gpu' else 'a topology'
        raise BadInput('--target', f'is {name!r}', f'{chip}:{form}', f'--target={chip}:{_EXAMPLE.get(chip, "1x8")}')
    sizes = tuple(int(size) for size in shape.split('x'))
    if not _exists(device, sizes, shape):
        near = _nearest(device, math.prod(sizes))
        raise BadInput(
            '--target',
            f'{chip} does not come as {shape}',
            _expected(device),
            '--target=' + ' or '.join(f'{chip}:{shape}' for shape in near),
        )
    return Target(f'{chip}:{shape}', device, sizes)


def _exists(device: Device, sizes: tuple[int, ...], shape: str) -> bool:
    if device.kind == 'gpu':
        return len(sizes) == 2 and sizes[1] <= device.devices_per_host
    if device.name not in _MOST_CHIPS:
        return shape in _FLAT
    cubes = len(sizes) == 3 and list(sizes) == sorted(sizes) and all(size % 4 == 0 for size in sizes)
    return shape in _SMALL_CUBES or (cubes and math.prod(sizes) <= _MOST_CHIPS[device.name])


def _expected(device: Device) -> str:
    if device.kind == 'gpu':
        return f'HOSTSxGPUS with at most {device.devices_per_host} GPUs a host'
    if device.name not in _MOST_CHIPS:
        return 'one of ' + ', '.join(_FLAT)
    most = _MOST_CHIPS[device.name]
    return f'one of {", ".join(_SMALL_CUBES)}, or multiples of 4 that do not fall, 4x4x4 … ({most} chips at most)'


def _examples(device: Device) -> list[str]:
    if device.kind == 'gpu':
        return ['1x1', '1x2', '1x4', '1x8', '2x8', '4x8', '8x8', '16x8', '32x8']
    if device.name not in _MOST_CHIPS:
        return list(_FLAT)
    most = _MOST_CHIPS[device.name]
    cubes = itertools.combinations_with_replacement(range(4, 25, 4), 3)
    return [*_SMALL_CUBES, *('x'.join(map(str, cube)) for cube in cubes if math.prod(cube) <= most)]


def _nearest(device: Device, num_devices: int) -> list[str]:
    """The two shapes that exist whose number of chips is nearest."""

    def distance(shape: str) -> float:
        return abs(math.log(math.prod(map(int, shape.split('x'))) / num_devices))

    return sorted(_examples(device), key=distance)[:2]


def of_size(device: Device, num_devices: int) -> Target | None:
    """So many of a device, on a torus as near to a cube as there is; None if it does not come like that."""
    if device.kind == 'gpu':
        inside = min(num_devices, device.devices_per_host)
        return parse(f'{device.name}:{num_devices // inside}x{inside}')
    exact = [shape for shape in _examples(device) if math.prod(map(int, shape.split('x'))) == num_devices]
    return parse(f'{device.name}:{min(exact, key=lambda s: max(map(int, s.split("x"))))}') if exact else None


def larger(target: Target, num_devices: float) -> str | None:
    """The name of the smallest target of this device with at least so many devices, or None."""
    for shape in sorted(_examples(target.device), key=lambda shape: math.prod(map(int, shape.split('x')))):
        if target.num_devices < math.prod(map(int, shape.split('x'))) >= num_devices:
            return f'{target.device.name}:{shape}'
    return None
