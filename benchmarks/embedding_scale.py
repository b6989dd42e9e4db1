"""Measures memory at scale: a contrastive batch of 4,096 pairs with gradient caching, and a search of 10^6 passages.

    python -m benchmarks.embedding_scale caching [--pairs=4096] [--microbatches=64]
    python -m benchmarks.embedding_scale search [--passages=1000000] [--queries=1000] [--dims=256]

`caching` runs one training step of a small model (2 layers of 128) on random pairs, in microbatches and as a whole, and
one with the pairs of a single microbatch. It prints the temporary memory of each compiled step, and how far loss and
gradients of the first two differ. `search` finds the best 100 passages of each query among random vectors in a file, as
`evaluate --retrieval` does, and prints time and memory; pages of the file that the system keeps in memory, and could
drop, are counted apart.
"""

import argparse
import json
import os
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from bert_jax import config
from bert_jax.config.embedding import Embedding
from bert_jax.data.device_batches import local_rows, make_global
from bert_jax.data.pair_batches import PairBatch
from bert_jax.evaluation.retrieval.metrics import DEPTH
from bert_jax.evaluation.retrieval.search import search
from bert_jax.finetune.embedding import EmbeddingObjective, embedding_builder
from bert_jax.finetune.pair_stream import pack_texts
from bert_jax.finetune.pairs import Texts
from bert_jax.finetune.rows import Packing
from bert_jax.runtime.devices import select_platform
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.program import TrainProgram, build_program

_MODEL = config.Bert(
    num_layers=2, hidden_size=128, num_heads=2, intermediate_size=512, max_positions=128, dtype='float32'
)
_VOCAB = 8192
_TOKENS = 16  # of a text
_TEXTS_PER_ROW = 4
_VECTORS_AT_ONCE = 1 << 14
# b1 = 0: the first moment after one step is the gradient.
_OPTIMIZER = config.Optimizer(peak_learning_rate=1e-3, warmup_steps=0, b1=0.0, clip_norm=0.0)


def _batch(num_pairs: int, multiple: int) -> PairBatch:
    """Returns random pairs in packed rows; multiple: of the number of rows."""
    rng, num_texts = np.random.default_rng(0), 2 * num_pairs
    ids = rng.integers(5, _VOCAB, num_texts * _TOKENS).astype(np.int32)
    texts = Texts(
        ids,
        np.full(num_texts, _TOKENS),
        np.repeat(np.arange(num_pairs, dtype=np.int32), 2),
        np.tile(np.array([0, 1], np.int32), num_pairs),
        np.arange(num_texts, dtype=np.uint64),
        np.zeros(num_texts, np.float32),
    )
    packing = Packing(_TEXTS_PER_ROW, multiple)
    return pack_texts(texts, packing, packing.num_rows(num_texts), 0, 0)


def _program(num_pairs: int, microbatches: int, num_rows: int) -> TrainProgram:
    train = config.Train(steps=1, global_batch_size=num_rows, microbatches=microbatches)
    mesh = make_mesh(config.Mesh(), _MODEL, train)
    build, objective = embedding_builder('mean'), EmbeddingObjective(Embedding(), num_pairs)
    return build_program(_MODEL, _OPTIMIZER, train, _VOCAB, mesh, build=build, objective=objective)


def _step(num_pairs: int, microbatches: int, *, is_run: bool) -> tuple[dict[str, float], list[np.ndarray]]:
    """Returns (measurements, gradients); nothing is run but the compiler unless `is_run`."""
    batch = _batch(num_pairs, microbatches)
    num_rows = len(batch.input_ids)
    program = _program(num_pairs, microbatches, num_rows)
    compiled = program.lower(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)).compile()
    measured = {'temporary_mib': round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1)}
    if not is_run:
        return measured, []
    mesh = program.device_mesh
    rows, state, start = local_rows(mesh, num_rows), program.init_state(seed=0), time.monotonic()
    state, metrics = program.train_step(state, make_global(batch, rows, mesh, num_rows))
    measured |= {'loss': float(metrics['loss']), 'seconds': round(time.monotonic() - start, 1)}
    return measured, [np.asarray(leaf) for leaf in jax.tree.leaves(optax.tree.get(state.opt_state, 'mu'))]


def measure_caching(num_pairs: int, microbatches: int) -> dict[str, Any]:
    """Compares a step in microbatches with the same step as a whole."""
    cached, cached_grads = _step(num_pairs, microbatches, is_run=True)
    whole, whole_grads = _step(num_pairs, 1, is_run=True)
    part, _ = _step(num_pairs // microbatches, 1, is_run=False)
    norm = float(np.sqrt(sum(float(np.square(grad, dtype=np.float64).sum()) for grad in whole_grads)))
    difference = [a.astype(np.float64) - b for a, b in zip(cached_grads, whole_grads, strict=True)]
    distance = float(np.sqrt(sum(float(np.square(each).sum()) for each in difference)))
    return {
        'pairs': num_pairs,
        f'{microbatches} microbatches': cached,
        'one microbatch': whole,
        f'{num_pairs // microbatches} pairs': part,
        'relative_difference_of_gradients': distance / norm,
    }


class _MemoryPeaks(threading.Thread):
    """Records the largest memory of this process: `anonymous` that it owns, `file` pages that are mapped; in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks, self._stopped = {'anonymous': 0, 'file': 0}, threading.Event()

    def run(self) -> None:
        """Samples until `stop`."""
        while not self._stopped.wait(0.05):
            status = Path('/proc/self/status').read_text()
            for name, field in (('anonymous', 'RssAnon'), ('file', 'RssFile')):
                kib = re.search(rf'{field}:\s+(\d+)', status)
                self.peaks[name] = max(self.peaks[name], 1024 * int(kib[1]) if kib else 0)

    def stop(self) -> dict[str, float]:
        """Returns the peaks in MiB."""
        self._stopped.set()
        self.join()
        return {f'peak_{name}_mib': round(peak / 2**20) for name, peak in self.peaks.items()}


def measure_search(num_passages: int, num_queries: int, dims: int) -> dict[str, Any]:
    """Searches random vectors; checks the hits of the first queries by sorting all scores."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix='embedding-scale-') as directory:
        path = Path(directory) / 'passages.npy'
        passages = np.lib.format.open_memmap(path, 'w+', np.float32, (num_passages, dims))
        for start in range(0, num_passages, _VECTORS_AT_ONCE):
            block = passages[start : start + _VECTORS_AT_ONCE]
            block[:] = rng.standard_normal(block.shape, np.float32)
        queries = rng.standard_normal((num_queries, dims), np.float32)
        peaks, start = _MemoryPeaks(), time.monotonic()
        peaks.start()
        hits = list(search(queries, passages, DEPTH))
        measured = {'seconds': round(time.monotonic() - start, 1)} | peaks.stop()
        scores = np.concatenate(
            [passages[s : s + _VECTORS_AT_ONCE] @ queries[0] for s in range(0, num_passages, _VECTORS_AT_ONCE)]
        )
        best = np.sort(scores)[-DEPTH:][::-1]
        if not np.allclose(hits[0].scores[0], best, rtol=1e-5, atol=1e-4):
            raise RuntimeError('the search does not find the highest scores')
    return {'passages': num_passages, 'queries': num_queries, 'dims': dims} | measured


def main() -> None:
    """Prints the measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('what', choices=('caching', 'search'))
    add('--pairs', type=int, default=4096)
    add('--microbatches', type=int, default=64)
    add('--passages', type=int, default=1_000_000)
    add('--queries', type=int, default=1000)
    add('--dims', type=int, default=256)
    flags = parser.parse_args()
    select_platform('cpu')
    if flags.what == 'caching':
        found = measure_caching(flags.pairs, flags.microbatches)
    else:
        found = measure_search(flags.passages, flags.queries, flags.dims)
    print(json.dumps(found | {'cores': os.cpu_count()}, indent=2))


if __name__ == '__main__':
    main()
