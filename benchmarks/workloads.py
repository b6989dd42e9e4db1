"""The workloads of `benchmarks.speed`: config and batches, the same for all contestants."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

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
            f'{model.num_layers} layers of {model.hidden_size}, vocabulary {self.config.tokenizer.vocab_size:,}, '
            f'{self.config.train.global_batch_size} {"packed " * data.packing}rows of {data.sequence_length}, '
            f'dropout {model.dropout_rate}, attention dropout {model.attention_dropout_rate}, AdamW'
        )


def workload(
    size: str,
    rows: int,
    length: int,
    *,
    dropout: float = 0.1,
    attention_dropout: float = 0.1,
    num_batches: int = 8,
    **fields: object,
) -> Workload:
    """Returns a workload. `fields` sets other config fields, with `__` for the dot (`data__packing=True`)."""
    values = config.bert(size).to_dict()
    values['model'] |= {'dropout_rate': dropout, 'attention_dropout_rate': attention_dropout}
    values['data']['sequence_length'] = length
    values['train'] |= {'global_batch_size': rows, 'steps': 1_000_000}
    values['optimizer'] |= {'schedule': 'constant', 'warmup_steps': 0}
    for name, value in fields.items():
        section, _, field = name.partition('__')
        values[section][field] = value
    return Workload(config.resolve(values), num_batches)


WORKLOADS = {
    # Without dropout all contestants must have the same losses: 200 steps on 200 batches.
    'parity': workload(
        'tiny', 16, 64, dropout=0.0, attention_dropout=0.0, num_batches=200, tokenizer__vocab_size=1000,
        optimizer__peak_learning_rate=1e-3,
    ),
    'mini': workload('mini', 32, 128),
    'base-cpu': workload('base', 8, 512),
    'base': workload('base', 64, 512, attention_dropout=0.0, data__packing=True),
    'large': workload('large', 32, 512, attention_dropout=0.0, data__packing=True),
}  # fmt: skip


def write(chosen: Workload, directory: Path) -> None:
    """Writes the config and the batches to a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / 'config.json').write_text(json.dumps(dataclasses.asdict(chosen.config)))
    stream = RandomRows(
        chosen.config.data,
        chosen.config.tokenizer.vocab_size,
        batch_size=chosen.config.train.global_batch_size,
        seed=chosen.config.train.seed,
    )
    batches = [stream.batch(step) for step in range(chosen.num_batches)]
    np.savez(directory / 'batches.npz', **{name: np.stack(values) for name, values in _fields(batches)})


def _fields(batches: list[Batch]) -> list[tuple[str, list[np.ndarray]]]:
    return [(name, [getattr(batch, name) for batch in batches]) for name in Batch._fields]


def read(directory: Path) -> tuple[config.Config, list[Batch]]:
    """Returns the config and the batches that `write` wrote."""
    resolved = config.resolve(json.loads((directory / 'config.json').read_text()))
    with np.load(directory / 'batches.npz') as arrays:
        stacked = [arrays[name] for name in Batch._fields]
    return resolved, [Batch(*values) for values in zip(*stacked, strict=True)]
