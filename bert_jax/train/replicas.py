"""Detects silent corruption by comparing the replicas of a state bit for bit, with hashes.

A faulty device reports no error: its parameters drift away from those of the others, and every averaged gradient
spreads the error. Each device hashes its own part of every array; replicas must have equal hashes.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.errors import DeviceFault
from bert_jax.train.state import TrainState

_GOLDEN, _ODD = np.uint32(0x9E3779B9), np.uint32(0x85EBCA6B)
_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


class Replicas:
    """A comparison of the replicas of a state on the devices of a mesh."""

    def __init__(self, shardings: TrainState):
        """Args: shardings: of every array of the state, on one mesh."""
        mesh = shardings.step.mesh
        self._shardings, self._mesh, self._held = shardings, mesh, None
        if mesh.size == 1:
            return
        specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
        every_device = PartitionSpec(mesh.axis_names)
        by_device = jax.shard_map(_hashes, mesh=mesh, in_specs=(specs,), out_specs=every_device, check_vma=False)
        # Each process gets all hashes and reaches the same conclusion.
        self._hash = jax.jit(by_device, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def check(self, state: TrainState, step: int) -> None:
        """Raises DeviceFault, naming the device and its process, when a copy differs from the others."""
        if self._mesh.size == 1:
            return
        hashes = np.asarray(self._hash(state))  # one row per device, one column per array
        found = collections.Counter()
        for column, copies in enumerate(self._copies(state)):
            for devices in copies:
                counts = collections.Counter(int(hashes[row, column]) for row in devices)
                if len(counts) > 1:
                    [(most, votes), (_, next_votes), *_] = counts.most_common(2)
                    is_clear = votes > next_votes  # with two differing copies, either may be right
                    found.update(row for row in devices if not is_clear or hashes[row, column] != most)
        if found:
            raise self._fault(found, step)

    def _copies(self, state: TrainState) -> list[list[list[int]]]:
        """Returns, per array, the device rows of each part that several devices hold."""
        if self._held is None:
            pairs = zip(jax.tree.leaves(state), jax.tree.leaves(self._shardings), strict=True)
            held = [_copies(array.shape, sharding) for array, sharding in pairs]
            self._held = [[rows for rows in parts.values() if len(rows) > 1] for parts in held]
        return self._held

    def _fault(self, found: collections.Counter, step: int) -> DeviceFault:
        devices = self._mesh.devices.ravel()
        named = ', '.join(f'{devices[row]} (process {devices[row].process_index})' for row in sorted(found))
        return DeviceFault(
            f'step {step}',
            f'{named}: {max(found.values())} arrays differ from the copies on other devices',
            'the same bits in all copies; the state is not saved, the last checkpoint is kept',
            'remove or replace that device; the same command resumes from the last checkpoint',
        )


def _copies(shape: tuple[int, ...], sharding: NamedSharding) -> dict[tuple, list[int]]:
    """Returns {part of an array: the rows of `mesh.devices.ravel()` that hold it}."""
    rows = {device: row for row, device in enumerate(sharding.mesh.devices.ravel())}
    held = collections.defaultdict(list)
    for device, index in sharding.devices_indices_map(shape).items():
        held[tuple(part.indices(size) for part, size in zip(index, shape, strict=True))].append(rows[device])
    return held


def _hashes(parts: TrainState) -> jax.Array:
    """Returns uint32 [1, arrays], the hash of the part of each array on this device."""
    return jnp.stack([_hash(part) for part in jax.tree.leaves(parts)])[None]


def _hash(part: jax.Array) -> jax.Array:
    """Returns a sum of mixed bits modulo 2**32, which depends on every value and on their order."""
    bits = part if part.dtype == jnp.uint32 else jax.lax.bitcast_convert_type(part, _BITS[part.dtype.itemsize])
    bits = bits.astype(jnp.uint32).ravel()
    mixed = (bits ^ (jnp.arange(bits.size, dtype=jnp.uint32) * _GOLDEN)) * _ODD
    mixed = (mixed ^ (mixed >> 15)) * _ODD
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)
