"""The workloads of `benchmarks.speed`: config and batches, the same for all contestants."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from bert_jax import config
from bert_jax.data.batches import Batch
from bert_jax.data.random_rows import RandomRows


class Workload(NamedTuple):
    """A config, and the number of different batches of random rows, which are used cyclically."""

    config: config.Config
    num_batches: int

    @property
    def description(self) -> str:
        """A description in one line."""
        model, data = self.config.model, self.config.data
        return (
            f'{model.family}, {model.num_layers} layers of {model.hidden_size}, '
            f'vocabulary {self.config.tokenizer.vocab_size:,}, '
            f'{self.config.train.global_batch_size} {"packed " * data.packing}rows of {data.sequence_length}, '
            + (
                f'dropout {model.dropout_rate}, attention dropout {model.attention_dropout_rate}'
                if isinstance(model, config.Bert)
                else f'no dropout, {data.masking.rate:.0%} masked'
            )
            + ', AdamW'
        )


def bert_workload(
    size: str, rows: int, length: int, *, dropout: float = 0.1, attention_dropout: float = 0.1, **others: Any
) -> Workload:
    """Returns a workload of BERT; others: see `workload`."""
    rates = {'model__dropout_rate': dropout, 'model__attention_dropout_rate': attention_dropout}
    return workload(config.bert(size), rows, length, **rates | others)


def workload(start: ConfigDict, rows: int, length: int, *, num_batches: int = 8, **fields: Any) -> Workload:
    """Returns a workload.

    Args:
      start: a config with the sizes of the model.
      fields: other config fields, with `__` for the dot (`data__packing=True`).
    """
    values = start.to_dict()
    values['data']['sequence_length'] = length
    values['train'] |= {'global_batch_size': rows, 'steps': 1_000_000}
    values['optimizer'] |= {'name': 'adamw', 'clip_norm': 1.0, 'schedule': 'constant', 'warmup_steps': 0}
    for name, value in fields.items():
        section, _, field = name.partition('__')
        values[section][field] = value
    return Workload(config.resolve(values), num_batches)


WORKLOADS = {
    'mini': bert_workload('mini', 32, 128),
    'base-cpu': bert_workload('base', 8, 512),
    'ettin-17m': workload(
        config.ettin('17m'), 16, 512, data__packing=False, model__scan_layers=False, train__microbatches=1
    ),
    'base': bert_workload('base', 64, 512, attention_dropout=0.0, data__packing=True),
    'large': bert_workload('large', 32, 512, attention_dropout=0.0, data__packing=True),
    'base-128': bert_workload('base', 256, 128, attention_dropout=0.0, data__packing=True),
    'large-128': bert_workload('large', 128, 128, attention_dropout=0.0, data__packing=True),
    'modernbert-1024': workload(config.modernbert('base'), 32, 1024, train__microbatches=1),
    'modernbert-8192': workload(config.modernbert('base'), 4, 8192, train__microbatches=1),
    # to try `benchmarks.gpu` on a CPU
    'smoke-bert': bert_workload(
        'tiny', 4, 64, attention_dropout=0.0, num_batches=2, data__packing=True, tokenizer__vocab_size=1000
    ),
    'smoke-modernbert': workload(
        config.ettin('17m'), 4, 64, num_batches=2, tokenizer__vocab_size=1000, train__microbatches=1,
        model__num_layers=3, model__hidden_size=128, model__num_heads=2, model__intermediate_size=192,
        model__local_attention=32,
    ),
}  # fmt: skip
# By family. Without dropout all contestants must have the same losses: 200 steps on 200 batches.
PARITY = {
    'bert': bert_workload(
        'tiny', 16, 64, dropout=0.0, attention_dropout=0.0, num_batches=200, tokenizer__vocab_size=1000,
        optimizer__peak_learning_rate=1e-3,
    ),
    'modernbert': workload(
        config.ettin('17m'), 16, 64, num_batches=200, tokenizer__vocab_size=1000, optimizer__peak_learning_rate=1e-3,
        data__packing=False, train__microbatches=1, model__num_layers=4, model__hidden_size=128,
        model__num_heads=2, model__intermediate_size=192, model__local_attention=32, model__dtype='float32',
    ),
}  # fmt: skip


def write(chosen: Workload, directory: Path) -> None:
    """Writes the config and the batches to a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / 'config.json').write_text(json.dumps(dataclasses.asdict(chosen.config)))
    arrays = {name: np.stack(values) for name, values in _fields(batches_of(chosen))}
    np.savez(directory / 'batches.npz', **arrays)


def batches_of(chosen: Workload) -> list[Batch]:
    """Returns the batches of a workload."""
    data, train = chosen.config.data, chosen.config.train
    vocab_size = chosen.config.tokenizer.vocab_size
    stream = RandomRows(data, vocab_size, batch_size=train.global_batch_size, seed=train.seed)
    return [stream.batch(step) for step in range(chosen.num_batches)]


def _fields(batches: list[Batch]) -> list[tuple[str, list[np.ndarray]]]:
    return [(name, [getattr(batch, name) for batch in batches]) for name in Batch._fields]


def read(directory: Path) -> tuple[config.Config, list[Batch]]:
    """Returns the config and the batches that `write` wrote."""
    resolved = config.resolve(json.loads((directory / 'config.json').read_text()))
    with np.load(directory / 'batches.npz') as arrays:
        stacked = [arrays[name] for name in Batch._fields]
    return resolved, [Batch(*values) for values in zip(*stacked, strict=True)]
