"""The mesh of devices: axes, sizes, and the position of each device.

Rows of a batch are split over `data` and `fsdp`, parameters over `fsdp` and `tensor`.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from bert_jax import config
from bert_jax.errors import BadInput

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')


def make_mesh(
    mesh: config.Mesh,
    model: config.Model,
    train: config.Train,
    devices: list | None = None,
    where: str = 'config.train',
) -> Mesh:
    """Returns the mesh over all devices, or over `devices`.

    Args:
      where: the part of the config that sets the batch size, for messages.

    Raises:
      BadInput: if the axis sizes do not multiply to the number of devices, or do not divide the heads or the batch.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(mesh, model, train, len(devices), where)
    arranged = arrange_devices(tuple(sizes.values()), devices)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange_devices(sizes: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Returns the devices as an array [data, fsdp, tensor], with those that communicate most next to each other.

    Slices (of TPUs, or GPUs joined by NVLink) are laid out along `data`, where gradients cross once per step, otherwise
    along `fsdp`. Within a TPU slice the axes follow its torus; elsewhere the devices of a process are consecutive.
    """
    num_slices = len({getattr(device, 'slice_index', 0) for device in devices})
    data = math.gcd(sizes[0], num_slices)
    fsdp = math.gcd(sizes[1], num_slices // data)
    if num_slices > 1 and data * fsdp == num_slices:
        inside = (sizes[0] // data, sizes[1] // fsdp, sizes[2])
        return mesh_utils.create_hybrid_device_mesh(inside, (data, fsdp, 1), devices, allow_split_physical_axes=True)
    if devices[0].platform == 'tpu':
        return jax.make_mesh(sizes, AXES, devices=devices).devices
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return np.array(ordered, dtype=object).reshape(sizes)


def mesh_of_run(run: config.Config, devices: list | None = None) -> Mesh:
    """Returns the mesh of a run, which serves all of its phases.

    Raises:
      BadInput: as `make_mesh`, for the first phase whose batch the mesh does not divide.
    """
    for index, phase in enumerate(run.in_phases):
        where = f'config.phases[{index}]' if run.phases else 'config.train'
        mesh = make_mesh(run.mesh, run.model, phase.train, devices, where)
    return mesh


def mesh_sizes(
    mesh: config.Mesh, model: config.Model, train: config.Train, num_devices: int, where: str = 'config.train'
) -> dict[str, int]:
    """Returns the size of each axis for `num_devices`, with -1 resolved.

    Raises:
      BadInput: as `make_mesh`.
    """
    sizes = dataclasses.asdict(mesh)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    inferred = [axis for axis, size in sizes.items() if size == -1]
    if num_devices % fixed or (not inferred and fixed != num_devices):
        axes = ' x '.join(f'{axis}={size}' for axis, size in sizes.items())
        raise BadInput(
            'config.mesh',
            f'is {axes}, but there {"is 1 device" if num_devices == 1 else f"are {num_devices} devices"}',
            f'axes whose product is {num_devices}; an axis of -1 takes the remaining devices',
            '--config.mesh.data=-1 --config.mesh.fsdp=1 --config.mesh.tensor=1',
        )
    for axis in inferred:
        sizes[axis] = num_devices // fixed
    _check_divides(sizes, model, train, where)
    return sizes


def _check_divides(sizes: dict[str, int], model: config.Model, train: config.Train, where: str) -> None:
    heads, num_heads = 'heads', model.num_heads
    if model.num_kv_heads != model.num_heads:
        heads, num_heads = 'heads of keys and values', model.num_kv_heads
    if num_heads % sizes['tensor']:
        divisors = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
        raise BadInput(
            'config.mesh.tensor',
            f'is {sizes["tensor"]}, which does not divide the {num_heads} {heads}',
            f'one of {", ".join(map(str, divisors))}',
        )
    if train.reduction == 'exact':
        _check_exact(sizes, train)
    shards = sizes['data'] * sizes['fsdp'] * max(train.microbatches, 1)
    if train.global_batch_size % shards:
        below = train.global_batch_size // shards * shards
        near = [size for size in (below, below + shards) if size]
        raise BadInput(
            f'{where}.global_batch_size',
            f'is {train.global_batch_size}; data={sizes["data"]} x fsdp={sizes["fsdp"]} x microbatches='
            f'{train.microbatches} does not divide it',
            f'a multiple of {shards}, for example {" or ".join(map(str, near))}',
            f'--{where}.global_batch_size={near[-1]}',
        )
    num_devices = sizes['data'] * sizes['fsdp']
    if train.first_batch_size % num_devices:
        raise BadInput(
            f'{where}.first_batch_size',
            f'is {train.first_batch_size}; data={sizes["data"]} x fsdp={sizes["fsdp"]} does not divide it',
            f'a multiple of {num_devices} that divides global_batch_size={train.global_batch_size}',
        )


def _check_exact(sizes: dict[str, int], train: config.Train) -> None:
    if sizes['tensor'] > 1:
        raise BadInput(
            'config.mesh.tensor',
            f"is {sizes['tensor']}; train.reduction='exact' splits rows only, never a matmul",
            '1',
            '--config.mesh.tensor=1, or --config.train.reduction=fast',
        )
    if train.exact_shards % (sizes['data'] * sizes['fsdp']):
        powers = [2**n for n in range(train.exact_shards.bit_length())]
        raise BadInput(
            'config.train.exact_shards',
            f'is {train.exact_shards}; data={sizes["data"]} x fsdp={sizes["fsdp"]} does not divide it',
            f'data x fsdp one of {", ".join(map(str, powers))}; changing exact_shards changes the sums',
        )


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding that splits rows over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))
