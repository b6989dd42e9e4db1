"""Phases: consecutive parts of a run, each with its own length, batch size and learning rate."""

import dataclasses
import itertools
from typing import Any

from ml_collections import ConfigDict

from bert_jax.config.fields import resolve_section
from bert_jax.config.names import unknown_field
from bert_jax.config.pretraining import SECTION_OF, Config, Phase
from bert_jax.errors import BadInput


def with_phases(config: Config, values: Any) -> Config:
    """Returns a config with its phases, each complete, and their total number of steps in `train.steps`."""
    if not isinstance(values, (list, tuple)):
        raise BadInput('config.phases', f'is {values!r}', f'a tuple of groups of {", ".join(SECTION_OF)}')
    if not values:
        return config
    phases = []
    for index, given in enumerate(values):
        given = given.to_dict() if isinstance(given, ConfigDict) else given
        if isinstance(given, dict) and 'steps' not in given:
            raise BadInput(f'config.phases[{index}]', 'does not say how many steps', "'steps' among its fields")
        inherited = {name: getattr(getattr(config, section), name) for name, section in SECTION_OF.items()}
        given = inherited | given if isinstance(given, dict) else given
        phases.append(resolve_section(Phase, given, f'phases[{index}].', unknown_field))
    train = dataclasses.replace(config.train, steps=sum(phase.steps for phase in phases))
    return dataclasses.replace(config, phases=tuple(phases), train=train)


def phase_at(config: Config, step: int) -> int:
    """Returns the index of the phase that contains a step; steps count from 1, phases from 0."""
    ends = list(itertools.accumulate(phase.train.steps for phase in config.in_phases))
    return min(sum(end < step for end in ends), len(ends) - 1)


def positions_trained(config: Config, step: int) -> int:
    """Returns the positions of the longest rows that a run has trained on up to a step."""
    phases = config.in_phases[: phase_at(config, step) + 1]
    return min(max(phase.data.sequence_length for phase in phases), config.model.max_positions)
