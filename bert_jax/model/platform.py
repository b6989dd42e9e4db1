"""Finds the platform that a model is traced for. It decides the form of matmuls and the attention kernel.

jax knows the platform from the mesh while it traces a `shard_map`, even for absent devices, so callers need not pass
it. `jax.lax.platform_dependent` gave the same programs for matmuls, but it traces every form each time, and it
cannot choose kernels: what each saves for the backward pass would be kept, as zeros, for all of them.
"""

import jax


def target_platform() -> str:
    """Returns 'cpu', 'gpu' or 'tpu': the platform of the current mesh, or jax's default without one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()
