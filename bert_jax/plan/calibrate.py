"""The devices that are here as a target: their speed from one matrix product and one copy."""

import os
import time

import jax
import jax.numpy as jnp

from bert_jax.plan.targets import Device, Target
from bert_jax.train.metrics import measured_matmul_flops

_COPIED_BYTES = {'cpu': 2**28}  # far more than a cache holds
_MATRIX = {'cpu': 1536}


def here(dtype: str) -> Target:
    """Args: dtype, of the computation: what the matrix product is measured in."""
    devices = jax.devices()
    platform, share = devices[0].platform, 1
    if platform == 'cpu':
        share = len(devices)  # simulated devices divide the same cores and the same memory
        memory = usable = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / share
    else:
        memory = usable = devices[0].memory_stats()['bytes_limit']
    flops = measured_matmul_flops(_MATRIX.get(platform, 8192), dtype=dtype) / share
    device = Device(
        name=devices[0].device_kind,
        kind=platform,
        memory_bytes=memory,
        usable_bytes=usable,
        peak_flops=flops,
        float32_flops=flops,
        memory_bandwidth=_copy_bandwidth(_COPIED_BYTES.get(platform, 2**31)) / share,
        link=_copy_bandwidth(2**26) / share,
        devices_per_host=jax.local_device_count(),
    )
    return Target('here', device, (jax.process_count(), jax.local_device_count()))


def _copy_bandwidth(size: int, repeats: int = 4) -> float:
    """Bytes read and written a second."""
    x = jnp.ones(size // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = add(x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        x = add(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size / min(seconds)
