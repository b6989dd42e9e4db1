"""Trains a small model for a few steps on any mesh, for tests of the train step."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from bert_jax import config
from bert_jax.data.batches import CorpusStream
from bert_jax.data.device_batches import local_rows, make_global
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.program import build_program
from bert_jax.train.state import TrainState
from tests.support.corpora import corpus_of, random_split

VOCAB, BATCH = 2048, 16
MODEL = config.Bert(
    num_layers=2, hidden_size=32, num_heads=4, intermediate_size=64, max_positions=32, attention_dropout_rate=0.1
)
FAST = config.Train(steps=20, global_batch_size=BATCH)
ADAMW = config.Optimizer(peak_learning_rate=1e-3, warmup_steps=5)


class Curve(NamedTuple):
    """The loss of every step, the state after the last, and its metrics."""

    losses: list[float]
    state: TrainState
    metrics: dict[str, jax.Array]


def open_stream(directory: str) -> CorpusStream:
    """Batches of `BATCH` rows of 32 positions."""
    split = dataclasses.replace(random_split(0, num_documents=20), vocab_size=VOCAB)
    return CorpusStream(corpus_of(split, directory), config.Data(sequence_length=32), 'train', batch_size=BATCH, seed=0)


def train_steps(stream: CorpusStream, axes: dict[str, int], train: config.Train, optimizer: config.Optimizer) -> Curve:
    """Trains `train.steps` steps, on the first four batches again and again; the fast step is compiled once."""
    mesh = make_mesh(config.Mesh(**axes), MODEL, train, jax.devices()[: int(np.prod(list(axes.values())))])
    program = build_program(MODEL, optimizer, train, VOCAB, mesh)
    state, rows, losses = program.init_state(seed=0), local_rows(mesh, BATCH), []
    for index in range(train.steps):
        state, metrics = program.train_step(state, make_global(stream.batch(index % 4, rows), rows, mesh, BATCH))
        losses.append(float(metrics['loss']))
    if train.reduction == 'fast':
        assert program.train_step._cache_size() == 1  # the state comes out sharded as it went in
    return Curve(losses, state, metrics)
