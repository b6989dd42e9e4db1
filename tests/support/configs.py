"""A run that trains in seconds, as fields, as flags of a command, and as a resolved config."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from bert_jax import config
from bert_jax.text.prepare import prepare
from tests.support.processes import ROOT
from tests.support.texts import write_text

TINY = {
    'data.validation_fraction': 0.2,
    'data.sequence_length': 32,
    'tokenizer.vocab_size': 500,
    'model.num_layers': 1,
    'model.hidden_size': 16,
    'model.num_heads': 2,
    'model.intermediate_size': 32,
    'model.max_positions': 64,
    'model.dtype': 'float32',
    'train.steps': 12,
    'train.global_batch_size': 16,
    'train.log_every': 1,
    'train.evaluate_every': 0,
    'optimizer.name': 'adamw',  # quick to compile
    'optimizer.warmup_steps': 2,
}

PHASES = (
    config.Phase(steps=6, sequence_length=32, global_batch_size=16, peak_learning_rate=1e-2, warmup_steps=2),
    config.Phase(steps=6, sequence_length=64, global_batch_size=8, peak_learning_rate=5e-3, warmup_steps=1),
)


def tiny_run(directory: Path, **changes: object) -> dict[str, object]:
    """Returns the fields of a run on directory/text.txt, with its corpus in directory/corpus.

    Args:
      changes: fields with their dots written as `__`.
    """
    values = {'data.source': f'text:{directory}/text.txt', 'data.corpus': f'{directory}/corpus', **TINY}
    return values | {name.replace('__', '.'): value for name, value in changes.items()}


def as_flags(values: dict[str, object], base: str = f'{ROOT}/configs/demo.py') -> list[str]:
    """Returns the fields as flags of a command."""
    return [f'--config={base}', *(f'--config.{name}={value}' for name, value in values.items())]


def as_config(values: dict[str, object]) -> config.Config:
    """Returns the resolved config; the values may include `phases`, as in `PHASES`."""
    nested: dict[str, object] = {}
    for name, value in values.items():
        section, _, field = name.rpartition('.')
        value = [dataclasses.asdict(phase) for phase in value] if name == 'phases' else value
        (nested.setdefault(section, {}) if section else nested)[field] = value
    return config.resolve(nested)


def prepared(directory: Path, **changes: object) -> dict[str, object]:
    """Writes a text and its corpus; returns the fields of `tiny_run` on them."""
    write_text(directory / 'text.txt')
    values = tiny_run(directory, **changes)
    resolved = as_config(values)
    prepare(resolved.data, resolved.tokenizer, progress=False)
    return values


# Fields of `train` that do not affect its compiled program.
_AROUND_THE_STEP = (
    'checkpoint_every',
    'evaluate_every',
    'keep_checkpoints',
    'max_bad_steps',
    'max_rollbacks',
    'skip',
    'stop_at',
)


def sharing_programs(build_program: Callable) -> Callable:
    """Wraps `build_program` so that it returns the same program if everything that it depends on is equal."""
    build = functools.lru_cache(maxsize=8)(build_program)
    default = config.Train()

    def shared(
        model: config.Model, optimizer: config.Optimizer, train: config.Train, *positional: object, **keywords: object
    ) -> object:
        defaults = {name: getattr(default, name) for name in _AROUND_THE_STEP if hasattr(train, name)}
        return build(model, optimizer, dataclasses.replace(train, **defaults), *positional, **keywords)

    return shared


_PLANNED = {
    'tokenizer.vocab_size': 1000,
    'data.sequence_length': 32,
    'model.num_layers': 3,
    'model.hidden_size': 64,
    'model.num_heads': 4,
    'model.intermediate_size': 256,
    'model.max_positions': 32,
    'model.scan_layers': True,
    'model.dtype': 'float32',
    'train.global_batch_size': 16,
}

# Fields that make the run of `planned_run` one of another family. ModernBERT has two whole patterns of layers.
PLANNED_FAMILIES: dict[str, dict[str, object]] = {
    'bert': {},
    'modernbert': {
        'model.family': 'modernbert',
        'model.num_layers': 6,
        'model.local_attention': 16,
        'data.pairing': 'none',
    },
    'eurobert': {'model.family': 'eurobert', 'model.num_key_value_heads': 2, 'data.pairing': 'none'},
}


def planned_run(family: str = 'bert', **changes: object) -> config.Config:
    """Returns a run for `plan`: a few layers in float32, quick to compile; `changes` have dotted names."""
    return as_config(_PLANNED | PLANNED_FAMILIES[family] | changes)
