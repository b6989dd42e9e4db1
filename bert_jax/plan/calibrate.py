"""This machine's devices as a target: the speed of a step's matmuls, of a copy, and of elementwise work."""

import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bert_jax.config import Config
from bert_jax.plan.matmuls import MatmulTimer
from bert_jax.plan.targets import Device, Target
from bert_jax.runtime.mesh import mesh_of_run

_COPIED_BYTES = {'cpu': 2**28}  # far more than a cache holds
_REPEATS = 9
_MATMUL_REPEATS = 3


def here(config: Config) -> Target:
    """Measures each matmul of the step by itself, a copy, and on a CPU elementwise work."""
    devices = jax.devices()
    platform, share = devices[0].platform, 1
    if platform == 'cpu':
        share = len(devices)  # simulated devices divide the same cores and the same memory
        memory = usable = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / share
    else:
        memory = usable = devices[0].memory_stats()['bytes_limit']
    flops = _matmul_flops(config)
    elementwise = (
        {'simple': _rate(_simple, 64), 'transcendental': _rate(_transcendental, 8)} if platform == 'cpu' else {}
    )
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
        **{name: rate / share for name, rate in elementwise.items()},
    )
    return Target('here', device, (jax.process_count(), jax.local_device_count()))


def _matmul_flops(config: Config) -> float:
    """FLOP/s of one device over all matmuls of the step, each weighted by how often it occurs."""
    matmuls = MatmulTimer(config, config.tokenizer.vocab_size, mesh_of_run(config))
    return matmuls.flops / statistics.median(matmuls.seconds() for _ in range(_MATMUL_REPEATS))


def _simple(x: jax.Array) -> jax.Array:
    for _ in range(32):
        x = x * 0.99 + 0.01
    return x


def _transcendental(x: jax.Array) -> jax.Array:
    for _ in range(4):
        x = jax.lax.erf(jnp.exp(-x))
    return x


def _rate(run: Callable[[jax.Array], jax.Array], operations: int) -> float:
    """Operations a second of a function that does so many to each element."""
    x, run = jnp.full((64, 2**14), 0.5, jnp.float32), jax.jit(run)
    return x.size * operations / _median_seconds(lambda: run(x))


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
