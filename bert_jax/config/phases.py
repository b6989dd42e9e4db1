"""Phases: consecutive parts of a run. A duration in tokens becomes one in steps here."""

import dataclasses
import itertools
from collections.abc import Collection, Sequence
from typing import Any

from ml_collections import ConfigDict

from bert_jax.config.batch_sizes import batch_sizes, num_rows, sizes_in_warmup
from bert_jax.config.data import Data, is_records
from bert_jax.config.families import Model
from bert_jax.config.fields import SectionT, overridden, resolve_section
from bert_jax.config.names import unknown_field
from bert_jax.config.pretraining import Config, Optimizer, Phase, Train
from bert_jax.console import say
from bert_jax.errors import BadInput

_TOKENS_OF = {  # in the order in which they are converted: later ones depend on the batch sizes and the length
    'batch_warmup_steps': 'batch_warmup_tokens',
    'steps': 'tokens',
    'warmup_steps': 'warmup_tokens',
    'decay_steps': 'decay_tokens',
}
_INHERITED = {'sequence_length': 'data', 'global_batch_size': 'train', 'peak_learning_rate': 'optimizer'}


def with_durations_in_steps(config: Config, *, has_phases: bool) -> Config:
    """Returns a config whose durations in tokens are in steps too.

    Args:
      has_phases: whether the run has phases, which determine its length.

    Raises:
      BadInput: if a duration is given in both units, and they differ.
    """
    optimizer, train = config.optimizer, config.train
    if not has_phases:
        train = _in_steps(train, 'train.', train, config.data, _changed(train, Train()))
    optimizer = _in_steps(optimizer, 'optimizer.', train, config.data, _changed(optimizer, Optimizer()))
    return dataclasses.replace(config, optimizer=optimizer, train=train)


def _changed(section: Any, default: Any) -> set[str]:
    return {name for name in _TOKENS_OF if getattr(section, name, 0) not in (0, getattr(default, name, 0))}


def _in_steps(record: SectionT, prefix: str, train: Train, data: Data, given: Collection[str]) -> SectionT:
    """Returns a section or phase with the steps of its durations in tokens. Padding counts as tokens.

    Args:
      prefix: of the names of its fields.
      train, data: the batch sizes, the number of steps and the length of a row.
      given: the durations that were given in steps.
    """
    found: dict[str, int] = {}
    for name, in_tokens in _TOKENS_OF.items():
        if not (tokens := getattr(record, in_tokens, None)):
            continue
        where = f'config.{prefix}{in_tokens}'
        if is_records(data.source):
            expected = f'{prefix}{name}, because the length of a row is known only from the records'
            raise BadInput(where, f'is {tokens:,.0f}', expected)
        found[name] = _steps_of(name, -(-int(tokens) // data.sequence_length), train)
        train = dataclasses.replace(train, **{name: found[name]}) if hasattr(train, name) else train
        if name in given and getattr(record, name) != found[name]:
            raise BadInput(
                where,
                f'is {tokens:,.0f}, which takes {found[name]:,} steps of '
                f'{train.global_batch_size * data.sequence_length:,} tokens, but '
                f'{prefix}{name} is {getattr(record, name):,}',
                'one of the two, or both equal',
                f'--config.{prefix}{name}={found[name]}',
            )
    return dataclasses.replace(record, **found)


def _steps_of(name: str, rows: int, train: Train) -> int:
    """Returns the steps of the duration `name`, which has this number of rows."""
    if name == 'batch_warmup_steps':
        sizes = sizes_in_warmup(train)
        return -(-rows * len(sizes) // max(sum(sizes), 1))
    sizes = batch_sizes(train)
    return sizes.last_steps_of(rows, train.steps) if name == 'decay_steps' else sizes.steps_of(rows)


def with_phases(config: Config, values: Any) -> Config:
    """Returns a config with its phases, each complete, and their total number of steps in `train.steps`."""
    if not isinstance(values, (list, tuple)):
        names = ', '.join(field.name for field in dataclasses.fields(Phase))
        raise BadInput('config.phases', f'is {values!r}', f'a tuple of groups of {names}')
    if not values:
        return config
    phases = tuple(_resolve_phase(config, given, f'phases[{index}].') for index, given in enumerate(values))
    _check_sum(config.train, phases)
    steps = sum(phase.steps for phase in phases)
    if config.train.steps not in (steps, Train.steps):
        say(f'train.steps={config.train.steps:,} is ignored: the phases have {steps:,} steps together')
    return dataclasses.replace(config, phases=phases, train=dataclasses.replace(config.train, steps=steps))


def _resolve_phase(config: Config, given: Any, prefix: str) -> Phase:
    """Checks the fields of a phase and completes those that the phases of early versions have; others may be None."""
    given = given.to_dict() if isinstance(given, ConfigDict) else given
    if not isinstance(given, dict):
        return resolve_section(Phase, given, prefix, unknown_field)
    given = {name: value for name, value in given.items() if value is not None}
    if 'steps' not in given and not given.get('tokens'):
        expected = "'steps' or 'tokens' among its fields"
        raise BadInput(f'config.{prefix[:-1]}', 'does not say how many steps or tokens', expected)
    inherited = {name: getattr(getattr(config, section), name) for name, section in _INHERITED.items()}
    inherited |= _inherited_durations(config.optimizer, given)
    if config.train.batch_warmup_tokens and not given.keys() & {'batch_warmup_steps', 'batch_warmup_tokens'}:
        inherited['batch_warmup_tokens'] = config.train.batch_warmup_tokens
    if given.get('source_temperature') is not None:
        inherited['source_weights'] = ()  # otherwise those of the run would count
    phase = resolve_section(Phase, inherited | given, prefix, unknown_field)
    train, data = overridden(config.train, phase), overridden(config.data, phase)
    return _in_steps(phase, prefix, train, data, {name for name in _TOKENS_OF if given.get(name)})


def _inherited_durations(optimizer: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the durations that a phase inherits. A duration in one unit is not inherited beside one in another."""
    found: dict[str, Any] = {}
    if 'warmup_steps' not in given and not given.get('warmup_tokens'):
        found['warmup_tokens'] = optimizer.warmup_tokens  # of rows of the phase
        if not optimizer.warmup_tokens:
            found['warmup_steps'] = optimizer.warmup_steps
    if not given.keys() & {'decay_fraction', 'decay_steps', 'decay_tokens'}:
        if optimizer.decay_tokens:
            found['decay_tokens'] = optimizer.decay_tokens
    elif optimizer.decay_steps:
        found |= {'decay_steps': 0, 'decay_tokens': 0.0}
    return found


def _check_sum(train: Train, phases: Sequence[Phase]) -> None:
    """Raises `BadInput` if a run names another number of tokens than its phases have; steps round it up."""
    tokens, in_steps = train.tokens, [num_rows(overridden(train, phase)) * phase.sequence_length for phase in phases]
    total = sum(int(phase.tokens) or number for phase, number in zip(phases, in_steps, strict=True))
    if tokens and not total <= tokens <= sum(in_steps):
        expected = 'their sum, or 0'
        fix = f'--config.train.tokens={total}'
        raise BadInput('config.train.tokens', f'is {tokens:,.0f}, but the phases add up to {total:,}', expected, fix)


def phase_at(config: Config, step: int) -> int:
    """Returns the index of the phase that contains a step; steps count from 1, phases from 0."""
    ends = list(itertools.accumulate(phase.train.steps for phase in config.in_phases))
    return min(sum(end < step for end in ends), len(ends) - 1)


def model_at(config: Config, step: int) -> Model:
    """Returns the model of a run after a step; phases may differ in the base of rotary wavelengths, for example."""
    return config.in_phases[phase_at(config, step)].model


def weight_decays(config: Config) -> tuple[float, ...]:
    """Returns the different weight decays of the phases; for several, the optimizer's state has a count of steps."""
    return tuple(dict.fromkeys(phase.optimizer.weight_decay for phase in config.in_phases))


def positions_trained(config: Config, step: int) -> int:
    """Returns the positions of the longest rows that a run has trained on up to a step."""
    phases = config.in_phases[: phase_at(config, step) + 1]
    return min(max(phase.data.sequence_length for phase in phases), config.model.max_positions)
