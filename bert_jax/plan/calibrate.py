"""Describes the local devices as a target: measures matmuls of the step, a copy, and elementwise operations."""

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

_COPY_BYTES = 2**31
_COPY_BYTES_OF_CPU = 2**28  # far more than its caches hold
_LINK_COPY_BYTES = 2**26
_REPEATS = 9
_MATMUL_REPEATS = 3


def measure_local_target(config: Config) -> Target:
    """Returns the local devices as a target: times each matmul of the step, a copy, and on a CPU elementwise work."""
    devices = jax.devices()
    platform, num_sharing = devices[0].platform, 1
    if platform == 'cpu':
        num_sharing = len(devices)  # simulated devices share the cores and the memory
        memory = usable = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / num_sharing
    else:
        memory = usable = devices[0].memory_stats()['bytes_limit']
    flops = _matmul_flops(config)
    elementwise = {}
    if platform == 'cpu':
        simple = _elementwise_rate(_simple, 64) / num_sharing
        elementwise = {
            'simple_rate': simple,
            'integer_rate': simple,
            'transcendental_rate': _elementwise_rate(_transcendental, 8) / num_sharing,
        }
    device = Device(
        name=devices[0].device_kind,
        kind=platform,
        memory_bytes=memory,
        usable_bytes=usable,
        peak_flops=flops,
        float32_flops=flops,
        memory_bandwidth=_copy_bandwidth(_COPY_BYTES_OF_CPU if platform == 'cpu' else _COPY_BYTES) / num_sharing,
        link_bandwidth=_copy_bandwidth(_LINK_COPY_BYTES) / num_sharing,
        devices_per_host=jax.local_device_count(),
        **elementwise,
    )
    return Target('here', device, (jax.process_count(), jax.local_device_count()))


def _matmul_flops(config: Config) -> float:
    """Returns the FLOP/s of one device over all matmuls of the step, each weighted by how often it occurs."""
    matmuls = MatmulTimer(config, config.tokenizer.vocab_size, mesh_of_run(config))
    return matmuls.flops / statistics.median(matmuls.seconds() for _ in range(_MATMUL_REPEATS))


def _simple(x: jax.Array) -> jax.Array:
    """64 simple operations per element."""
    for _ in range(32):
        x = x * 0.99 + 0.01
    return x


def _transcendental(x: jax.Array) -> jax.Array:
    """8 transcendental operations per element."""
    for _ in range(4):
        x = jax.lax.erf(jnp.exp(-x))
    return x


def _elementwise_rate(apply: Callable[[jax.Array], jax.Array], operations_per_element: int) -> float:
    """Returns the operations per second of an elementwise function."""
    x, apply = jnp.full((64, 2**14), 0.5, jnp.float32), jax.jit(apply)
    return x.size * operations_per_element / _median_seconds(lambda: apply(x))


def _copy_bandwidth(size: int) -> float:
    """Returns the bytes read and written per second by an update in place of `size` bytes."""
    buffer = [jnp.ones(size // 4, jnp.float32)]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def run() -> jax.Array:
        buffer[0] = add(buffer[0])
        return buffer[0]

    return 2 * size / _median_seconds(run)


def _median_seconds(run: Callable[[], jax.Array]) -> float:
    """Returns the median, not the minimum: other work on the machine slows down the run too."""
    seconds = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        run().block_until_ready()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
