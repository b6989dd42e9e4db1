"""The dotted names of all fields, and the error for a name that does not exist."""

import dataclasses
import difflib
import re
import typing

from bert_jax.config.families import FAMILIES, Bert
from bert_jax.config.fields import section_of, section_variants
from bert_jax.config.pretraining import Config, Phase
from bert_jax.errors import BadInput


def unknown_field(path: str, root: type[typing.Any] | None = None, family: str = '') -> BadInput:
    """Returns the error for a field that does not exist, with the nearest name.

    Args:
      root: the config of another command.
      family: of the model section; '' for the default family.
    """
    root = root or Config
    phase = re.match(r'phases\[\d+\]\.', path)
    names = list(field_names(Phase, phase[0]) if phase else field_names(root, family=family))
    leaf = {name.rpartition('.')[2]: name for name in names}
    close = difflib.get_close_matches(path, names, n=1, cutoff=0.6) or [
        leaf[name] for name in difflib.get_close_matches(path.rpartition('.')[2], leaf, n=1, cutoff=0.5)
    ]
    section = path.rpartition('.')[0]
    siblings = [name for name in names if name.rpartition('.')[0] == section] or names
    if owners := [name for name in FAMILIES if path in field_names(root, family=name)]:
        found = f'is not a field of family {family or Bert.family!r}, but of {" and ".join(owners)}'
        return BadInput(f'config.{path}', found, ', '.join(siblings), _how_to_set(path, owners[0], root))
    fix = f'did you mean config.{close[0]}?' if close else ''
    return BadInput(f'config.{path}', 'there is no such field', ', '.join(siblings), fix)


def _how_to_set(path: str, family: str, root: type[typing.Any]) -> str:
    """Returns the fix for a field of the model that only another family has."""
    if root is Config:
        return f'start from a config of that family, such as bert_jax.config.defaults({family!r})'
    section, _, name = path.partition('.')
    [variants] = [section_variants(field) for field in dataclasses.fields(root) if field.name == section]
    [default] = [field.default for field in dataclasses.fields(variants[family]) if field.name == name]
    if default is None:  # a fine-tune may change it
        return f'--config.model.family={family} too, if the initial model is of that family'
    return 'leave it out: the initial model determines it'


def field_names(section: type[typing.Any] = Config, prefix: str = '', family: str = '') -> typing.Iterator[str]:
    """Yields the dotted names of all fields, for example `train.steps`; family: as for `unknown_field`."""
    for field in dataclasses.fields(section):
        if (inner := section_variants(field).get(family) or section_of(field)) is not None:
            yield from field_names(inner, f'{prefix}{field.name}.', family)
        else:
            yield prefix + field.name
