"""The devices that are here as a target: their speed from one matrix product and one copy."""

import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bert_jax.config import Config
from bert_jax.plan.targets import Device, Target

_COPIED_BYTES = {'cpu': 2**28}  # far more than a cache holds
_REPEATS = 9


def here(config: Config) -> Target:
    """What is measured: the product into the feed-forward layer at the run's size, and a copy."""
    devices = jax.devices()
    platform, share = devices[0].platform, 1
    if platform == 'cpu':
        share = len(devices)  # simulated devices divide the same cores and the same memory
        memory = usable = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / share
    else:
        memory = usable = devices[0].memory_stats()['bytes_limit']
    flops = _product_flops(config) / share
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


def _product_flops(config: Config) -> float:
    rows = -(-config.train.global_batch_size // config.train.microbatches // jax.device_count())
    tokens, size, inner = rows * config.data.sequence_length, config.model.hidden_size, config.model.intermediate_size
    x, kernel = jnp.ones((tokens, size), config.model.dtype), jnp.ones((size, inner), config.model.dtype)
    product = jax.jit(lambda x: x @ kernel)
    return 2 * tokens * size * inner / _median_seconds(lambda: product(x))


def _copy_bandwidth(size: int) -> float:
    """Bytes read and written a second, in memory that is taken already."""
    place = [jnp.ones(size // 4, jnp.float32)]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def run() -> jax.Array:
        place[0] = add(place[0])
        return place[0]

    return 2 * size / _median_seconds(run)


def _median_seconds(run: Callable[[], jax.Array]) -> float:
    """The median, not the best: what else the machine does, it does to the run too."""
    seconds = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        run().block_until_ready()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
