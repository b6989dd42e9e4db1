"""Turns the values of a config file and the command line into a frozen, checked `Config`."""

from ml_collections import ConfigDict

from bert_jax.config.checks import check_phase, check_together
from bert_jax.config.fields import resolve_section
from bert_jax.config.names import unknown_field
from bert_jax.config.phases import with_durations_in_steps, with_phases
from bert_jax.config.pretraining import Config
from bert_jax.errors import BadInput


def resolve(config: ConfigDict | dict) -> Config:
    """Checks a config and freezes it.

    Raises:
      BadInput: names the first field that is unknown, of the wrong type, or out of range.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    if not isinstance(values, dict):
        raise BadInput('config', f'is {values!r}', 'a group of fields')
    phases = values.get('phases', ())
    single = {name: value for name, value in values.items() if name != 'phases'}
    resolved = resolve_section(Config, single, '', unknown_field)
    resolved = with_phases(with_durations_in_steps(resolved, has_phases=bool(phases)), phases)
    check_together(resolved)
    for index, phase in enumerate(resolved.in_phases):
        check_phase(phase, f'phases[{index}].' if resolved.phases else '')
    return resolved
