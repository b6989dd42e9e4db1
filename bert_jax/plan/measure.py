"""Runs a few real steps on the local devices, to compare a plan's predictions with measurements."""

import ctypes
import dataclasses
import gc
import statistics
import time
from pathlib import Path
from typing import Any

import jax

from bert_jax.config import Config
from bert_jax.data.device_batches import device_batches
from bert_jax.data.random_rows import RandomRows
from bert_jax.model.replaced_tokens import build_of
from bert_jax.runtime.devices import peak_memory
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.program import build_program

_NUM_STEPS = 5


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Time and memory of a few real steps.

    Attributes:
      step_seconds: the median.
      peak_bytes: of a device's memory if jax reports it (GPU, TPU), else of this process, including Python and the
        compiler.
      is_resident_size: whether `peak_bytes` is of this process.
      grown_bytes: how much larger than without the state the process was at most during the first step. None if
        `peak_bytes` is of a device, and on systems other than Linux. (Several steps in a row can hold up to three sets
        of temporaries on a CPU, because jax frees those of a step after it reports the step as done.)
    """

    step_seconds: float
    peak_bytes: int
    is_resident_size: bool
    grown_bytes: int | None


def measure(config: Config, compiled: Any) -> Measurement:
    """Runs a compiled step (`program.compile_step`) with initial weights on random ids."""
    train, vocab_size = config.train, config.tokenizer.vocab_size
    mesh = make_mesh(config.mesh, config.model, train)
    build = build_of(config.objective)
    state = build_program(config.model, config.optimizer, train, vocab_size, mesh, build=build).init_state(train.seed)
    stream = RandomRows(config.data, vocab_size, batch_size=train.global_batch_size, seed=train.seed)
    [(_, batch)] = device_batches(stream, mesh, 0, 1)
    earlier_peak, is_resident_size = peak_memory()
    before = _reset_peak_resident_size() if is_resident_size else None
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((state, batch)))
    state, _ = jax.block_until_ready(compiled(state, batch))
    grown = None if before is None else _process_bytes('VmHWM') - before + held
    seconds = []
    for _ in range(_NUM_STEPS):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch))
        seconds.append(time.perf_counter() - start)
    peak = max(earlier_peak, peak_memory()[0])  # the system's own peak was reset
    return Measurement(statistics.median(seconds), peak, is_resident_size, grown)


def _reset_peak_resident_size() -> int | None:
    """Frees unused memory, resets the peak that the system records for this process, and returns the current size.

    None on systems other than Linux.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')
        return _process_bytes('VmRSS')
    except (OSError, AttributeError):
        return None


def _process_bytes(name: str) -> int:
    """Returns a size from /proc/self/status in bytes."""
    fields = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    return int(fields[name].split()[0]) * 1024
