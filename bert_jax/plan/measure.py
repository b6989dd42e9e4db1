"""A few real steps on the devices that are here, to see how far a plan's prediction is off."""

import dataclasses
import resource
import statistics
import time
from typing import Any

import jax
import numpy as np

from bert_jax.config import Config, max_sequences, num_predictions
from bert_jax.data.batches import Batch
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
    batch = make_global(_random_batch(config, rows.stop - rows.start), rows, mesh, size)
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


def _random_batch(config: Config, rows: int) -> Batch:
    """Full rows of random ids, every prediction real; nothing of a corpus."""
    rng, length, predictions = np.random.default_rng(0), config.data.sequence_length, num_predictions(config.data)
    num_sequences = max_sequences(config.data)
    ids = rng.integers(0, config.tokenizer.vocab_size, (rows, length), np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
    return Batch(
        input_ids=ids,
        token_type_ids=(positions >= length // 2).astype(np.int32),
        sequence_ids=np.ones_like(ids),
        position_ids=positions,
        masked_lm_positions=positions[:, :predictions],
        masked_lm_ids=ids[:, :predictions],
        masked_lm_weights=np.ones((rows, predictions), np.float32),
        cls_positions=np.zeros((rows, num_sequences), np.int32),
        next_sentence_labels=np.zeros((rows, num_sequences), np.int32),
        next_sentence_weights=np.ones((rows, num_sequences), np.float32),
    )
