"""The platform that a model is traced for: it decides how matmuls are written and which attention kernel runs.

jax knows it while it traces a `shard_map`, from the mesh, also for devices that are not there; so no caller can forget
to say it. `jax.lax.platform_dependent` gave the same programs for matmuls, but it traces every form each time, and it
cannot choose kernels: what each saves for the backward pass would be kept, as zeros, for all of them.
"""

import jax


def target_platform() -> str:
    """'cpu', 'gpu' or 'tpu': that of the mesh in use, or jax's default where no mesh is in use."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()
