"""Trains a small model for a few steps on any mesh, for tests of the train step."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import pytest

from bert_jax import config
from bert_jax.data.batches import CorpusStream
from bert_jax.data.device_batches import local_rows, make_global
from bert_jax.model.replaced_tokens import build_of
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.objectives import objective_of
from bert_jax.train.program import build_program
from bert_jax.train.state import TrainState
from tests.support.corpora import corpus_of, random_split

VOCAB, BATCH = 2048, 16
MODEL = config.Bert(
    num_layers=2, hidden_size=32, num_heads=4, intermediate_size=64, max_positions=32, attention_dropout_rate=0.1
)
MODELS = {
    'bert': MODEL,
    'modernbert': config.ModernBert(
        num_layers=4,  # a period of one global and two local layers, and one more
        hidden_size=32,
        num_heads=4,
        intermediate_size=48,
        local_attention=8,
        attention_dropout=0.1,
        mlp_dropout=0.1,
    ),
    'eurobert': config.EuroBert(
        num_layers=2,
        hidden_size=32,
        num_heads=8,
        num_key_value_heads=4,
        intermediate_size=48,
        attention_dropout=0.1,
    ),
}
# EuroBERT has nothing that the others lack but grouped heads: its longest tests are slow ones.
FAMILIES = ['bert', 'modernbert', pytest.param('eurobert', marks=pytest.mark.slow)]
FAST = config.Train(steps=20, global_batch_size=BATCH)
ADAMW = config.Optimizer(peak_learning_rate=1e-3, warmup_steps=5)


MLM = config.Objective()


class Curve(NamedTuple):
    """The loss of every step, the state after the last, and its metrics."""

    losses: list[float]
    state: TrainState
    metrics: dict[str, jax.Array]


def open_stream(directory: str, model: config.Model = MODEL) -> CorpusStream:
    """Returns batches of `BATCH` rows of 32 positions: pairs for a model that learns them, else packed sequences."""
    split = dataclasses.replace(random_split(0, num_documents=20), vocab_size=VOCAB)
    data = config.Data(sequence_length=32)
    if not model.LEARNS_PAIRS:
        data = dataclasses.replace(data, pairing='none', packing=True, max_sequences=4)
    return CorpusStream(corpus_of(split, directory), data, 'train', batch_size=BATCH, seed=0)


def train_steps(
    stream: CorpusStream,
    axes: dict[str, int],
    train: config.Train,
    optimizer: config.Optimizer,
    model: config.Model = MODEL,
    objective: config.Objective = MLM,
) -> Curve:
    """Trains `train.steps` steps, on the first four batches again and again; the fast step is compiled once."""
    mesh = make_mesh(config.Mesh(**axes), model, train, jax.devices()[: int(np.prod(list(axes.values())))])
    program = build_program(
        model, optimizer, train, VOCAB, mesh, build=build_of(objective), objective=objective_of(objective)
    )
    state, rows, losses = program.init_state(seed=0), local_rows(mesh, BATCH), []
    for index in range(train.steps):
        state, metrics = program.train_step(state, make_global(stream.batch(index % 4, rows), rows, mesh, BATCH))
        losses.append(float(metrics['loss']))
    if train.reduction == 'fast':
        assert program.train_step._cache_size() == 1  # the state comes out sharded as it went in
    return Curve(losses, state, metrics)
