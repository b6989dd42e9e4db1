"""Devices that exchange most are close together in a mesh, whatever order jax lists them in."""

import dataclasses
import random

import numpy as np

from bert_jax.runtime.mesh import arrange_devices


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """The attributes that `arrange_devices` and jax's mesh_utils read."""

    id: int
    process_index: int
    slice_index: int
    platform: str
    device_kind: str
    coords: tuple[int, int, int]
    core_on_chip: int = 0


def _slices(num_slices: int, platform: str = 'gpu', kind: str = 'NVIDIA H100') -> list[FakeDevice]:
    """Returns shuffled slices of 2 hosts with 4 devices each, which form a grid of 4 x 2."""
    devices = [
        FakeDevice(8 * index + 4 * host + column, 2 * index + host, index, platform, kind, (column, host, 0))
        for index in range(num_slices)
        for host in range(2)
        for column in range(4)
    ]
    random.Random(0).shuffle(devices)
    return devices


def _along(mesh: np.ndarray, axis: int, of: str) -> set[frozenset[int]]:
    """Returns the values of a device attribute along each line of the mesh parallel to an axis."""
    lines = np.moveaxis(mesh, axis, -1).reshape(-1, mesh.shape[axis])
    return {frozenset(getattr(device, of) for device in line) for line in lines}


def test_only_the_data_axis_crosses_slices() -> None:
    for devices in (_slices(2), _slices(2, 'tpu', 'TPU v5 lite')):
        mesh = arrange_devices((4, 2, 2), devices)
        assert {device.id for device in mesh.flat} == set(range(16))
        assert _along(mesh, 0, 'slice_index') == {frozenset({0, 1})}
        assert all(len(slices) == 1 for axis in (1, 2) for slices in _along(mesh, axis, 'slice_index'))
        assert {device.slice_index for device in mesh[:2].flat} == {0}  # each slice is one block of data


def test_without_a_data_axis_only_fsdp_crosses_slices() -> None:
    mesh = arrange_devices((1, 8, 2), _slices(2))
    assert _along(mesh, 1, 'slice_index') == {frozenset({0, 1})}
    assert all(len(slices) == 1 for slices in _along(mesh, 2, 'slice_index'))
    both = arrange_devices((2, 8, 2), _slices(4))
    assert all(len(slices) == 1 for slices in _along(both, 2, 'slice_index'))


def test_devices_of_a_process_are_consecutive_within_a_slice() -> None:
    mesh = arrange_devices((2, 2, 2), _slices(1))
    assert [device.process_index for device in mesh.flat] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert all(len(hosts) == 1 for axis in (1, 2) for hosts in _along(mesh, axis, 'process_index'))


def test_tensor_axis_larger_than_a_slice_has_each_device_once() -> None:
    mesh = arrange_devices((1, 1, 16), _slices(2))
    assert [device.id for device in mesh.flat] == list(range(16))
