"""Finds the platform and the mesh that a model is traced for. They decide the form of matmuls and kernels.

jax knows the platform from the mesh while it traces a `shard_map`, even for absent devices, so callers need not pass
it. `jax.lax.platform_dependent` gave the same programs for matmuls, but it traces every form each time, and it
cannot choose kernels: what each saves for the backward pass would be kept, as zeros, for all of them.
"""

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh


def target_platform() -> str:
    """Returns 'cpu', 'gpu' or 'tpu': the platform of the current mesh, or jax's default without one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def tensor_parts() -> int:
    """Returns over how many devices XLA splits heads and vocabulary: the size of the mesh axis `tensor`."""
    mesh = jax.sharding.get_abstract_mesh()
    is_split = dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get('tensor') == AxisType.Auto
    return mesh.shape['tensor'] if is_split else 1


def platform_of(mesh: Mesh | AbstractMesh) -> str:
    """Returns the platform of the devices of a mesh, outside of its `shard_map` too; jax's default without devices."""
    return mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else jax.default_backend()
