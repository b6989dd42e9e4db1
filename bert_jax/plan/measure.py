"""A few real steps on the devices that are here, to see how far a plan's prediction is off."""

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
from bert_jax.runtime.devices import peak_memory
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.program import build_program

_STEPS = 5


@dataclasses.dataclass(frozen=True)
class Measured:
    """What some real steps took and held.

    Attributes:
      step_seconds: the median.
      peak_bytes: of a device's memory where jax tells (GPU, TPU), else of this process, compiler and Python included.
      is_resident_size: whether it is of this process.
      grown_bytes: of this process beyond what it held without the state, over the first step; None where there is a
        device's memory, or a system that does not tell. (Steps at each other's heels hold up to three sets of
        temporaries on a CPU: jax gives a step's back only after it says that the step is done.)
    """

    step_seconds: float
    peak_bytes: int
    is_resident_size: bool
    grown_bytes: int | None


def measure(config: Config, compiled: Any) -> Measured:
    """Runs a compiled step (`program.compile_step`) on new weights and random ids; the median of some steps."""
    train, vocab_size = config.train, config.tokenizer.vocab_size
    mesh = make_mesh(config.mesh, config.model, train)
    state = build_program(config.model, config.optimizer, train, vocab_size, mesh).init_state(train.seed)
    stream = RandomRows(config.data, vocab_size, batch_size=train.global_batch_size, seed=train.seed)
    [(_, batch)] = device_batches(stream, mesh, 0, 1)
    highest, is_resident_size = peak_memory()
    before = _resident_anew() if is_resident_size else None
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((state, batch)))
    state, _ = jax.block_until_ready(compiled(state, batch))
    grown = None if before is None else _status('VmHWM') - before + held
    seconds = []
    for _ in range(_STEPS):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch))
        seconds.append(time.perf_counter() - start)
    peak = max(highest, peak_memory()[0])  # `_resident_anew` made the system forget the first
    return Measured(statistics.median(seconds), peak, is_resident_size, grown)


def _resident_anew() -> int | None:
    """The resident size of this process once what is free is given back; its highest is counted from here on.

    None where the system is not Linux.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')
        return _status('VmRSS')
    except (OSError, AttributeError):
        return None


def _status(name: str) -> int:
    """A size in /proc/self/status, in bytes."""
    lines = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    return int(lines[name].split()[0]) * 1024
