"""A few real steps on the devices that are here, to see how far a plan's prediction is off."""

import dataclasses
import resource
import statistics
import time
from typing import Any

import jax

from bert_jax.config import Config
from bert_jax.data.random_rows import RandomRows
from bert_jax.train.optimizer import make_optimizer
from bert_jax.train.sharding import local_rows, make_global, make_mesh
from bert_jax.train.state import init_state

_STEPS = 5


@dataclasses.dataclass(frozen=True)
class Measured:
    """peak_bytes: of a device's memory where jax tells (GPU, TPU), else the highest resident size of this process,
    compiler and Python included.
    """

    step_seconds: float
    peak_bytes: int
    is_resident_size: bool


def measure(config: Config, compiled: Any) -> Measured:
    """Runs a compiled step (`program.compile_step`) on new weights and random ids; the median of some steps."""
    mesh = make_mesh(config.mesh, config.model, config.train)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    state = init_state(config.model, config.tokenizer.vocab_size, optimizer, mesh, config.train.seed)
    size = config.train.global_batch_size
    rows = local_rows(mesh, size)
    stream = RandomRows(config.data, config.tokenizer.vocab_size, batch_size=size, seed=config.train.seed)
    batch = make_global(stream.batch(0, rows), rows, mesh, size)
    seconds = []
    for _ in range(_STEPS + 1):
        start = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - start)
    device_memory = jax.local_devices()[0].memory_stats() or {}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = device_memory.get('peak_bytes_in_use', resident)
    return Measured(statistics.median(seconds[1:]), peak, 'peak_bytes_in_use' not in device_memory)
