"""Where devices lie in a mesh: what exchanges most is close together, whatever order jax lists them in."""

import dataclasses
import random

import numpy as np

from bert_jax.runtime.mesh import arrange_devices


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What `arrange_devices` and jax's mesh_utils ask of a device."""

    id: int
    process_index: int
    slice_index: int
    platform: str
    device_kind: str
    coords: tuple[int, int, int]
    core_on_chip: int = 0


def _slices(num_slices: int, platform: str = 'gpu', kind: str = 'NVIDIA H100') -> list[FakeDevice]:
    """Slices of 2 hosts with 4 devices each, which form a grid of 4 x 2; not in order."""
    devices = [
        FakeDevice(8 * number + 4 * host + place, 2 * number + host, number, platform, kind, (place, host, 0))
        for number in range(num_slices)
        for host in range(2)
        for place in range(4)
    ]
    random.Random(0).shuffle(devices)
    return devices


def _along(mesh: np.ndarray, axis: int, of: str) -> set[frozenset[int]]:
    """For each line of the mesh along an axis, the values of an attribute of its devices."""
    lines = np.moveaxis(mesh, axis, -1).reshape(-1, mesh.shape[axis])
    return {frozenset(getattr(device, of) for device in line) for line in lines}


def test_slices_meet_along_data_and_nothing_else_leaves_one() -> None:
    for devices in (_slices(2), _slices(2, 'tpu', 'TPU v5 lite')):
        mesh = arrange_devices((4, 2, 2), devices)
        assert {device.id for device in mesh.flat} == set(range(16))
        assert _along(mesh, 0, 'slice_index') == {frozenset({0, 1})}
        assert all(len(slices) == 1 for axis in (1, 2) for slices in _along(mesh, axis, 'slice_index'))
        assert {device.slice_index for device in mesh[:2].flat} == {0}  # each slice is one block of data


def test_without_a_data_axis_slices_meet_along_fsdp() -> None:
    mesh = arrange_devices((1, 8, 2), _slices(2))
    assert _along(mesh, 1, 'slice_index') == {frozenset({0, 1})}
    assert all(len(slices) == 1 for slices in _along(mesh, 2, 'slice_index'))
    both = arrange_devices((2, 8, 2), _slices(4))
    assert all(len(slices) == 1 for slices in _along(both, 2, 'slice_index'))


def test_in_one_slice_the_devices_of_a_process_are_consecutive() -> None:
    mesh = arrange_devices((2, 2, 2), _slices(1))
    assert [device.process_index for device in mesh.flat] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert all(len(hosts) == 1 for axis in (1, 2) for hosts in _along(mesh, axis, 'process_index'))


def test_a_tensor_axis_that_is_larger_than_a_slice_still_has_every_device_once() -> None:
    mesh = arrange_devices((1, 1, 16), _slices(2))
    assert [device.id for device in mesh.flat] == list(range(16))
