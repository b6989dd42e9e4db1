"""`help TOPIC`: explains commands, and sections and fields of the configuration."""

import contextlib
import dataclasses
import difflib
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from bert_jax.cli.commands import COMMANDS
from bert_jax.cli.flags import describe
from bert_jax.config import Config
from bert_jax.config.fields import element_section, field_meanings, section_variants
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.errors import BadInput

_ROOTS = {'config': Config, 'finetune-config': FinetuneConfig}
_WIDTH = 100
_FIELD = re.compile(r'(?:--)?(config(?:\.[a-z_]\w*)+)')


def explain(topic: str) -> str:
    """Returns what `bert-jax help TOPIC` prints.

    Args:
      topic: a command, `config` or `finetune-config`, or one of their sections or fields: `config.data.pairing`.

    Raises:
      BadInput: for a topic that does not exist, with the most similar one.
    """
    if topic in COMMANDS:
        return describe(COMMANDS[topic])
    root, *path = topic.split('.')
    if root in _ROOTS:
        return _explain_section(_ROOTS[root], root, path, topic)
    topics = [*COMMANDS, *_ROOTS]
    fix = _nearest_topic(topic, topics) or 'bert-jax help config.data.pairing'
    raise BadInput(f'help {topic}', 'is not a topic', ', '.join(topics), fix)


def help_command(command: str, where: str) -> str:
    """Returns the command that explains what an error is about: a config field if it names one, else the command.

    Args:
      command: the name of the command that failed.
      where: `BadInput.where`.
    """
    if command not in COMMANDS:
        return 'bert-jax --help'
    if found := _FIELD.match(where):
        topic = ('finetune-' if COMMANDS[command].config_type is FinetuneConfig else '') + found[1]
        with contextlib.suppress(BadInput):
            explain(topic)
            return f'bert-jax help {topic}'
    return f'bert-jax {command} --help'


def _nearest_topic(name: str, names: Iterable[str], prefix: str = '') -> str:
    """Returns the command that explains the most similar name, or '' if none is similar."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f'bert-jax help {prefix}{near[0]}' if near else ''


def _explain_section(section: type[Any], name: str, path: list[str], topic: str) -> str:
    fields = {field.name: field for field in dataclasses.fields(section)}
    if not path:
        return '\n'.join(_section_lines(section, name))
    field = fields.get(path[0])
    if field is None:
        fix = _nearest_topic(path[0], fields, f'{name}.') or f'bert-jax help {name}'
        raise BadInput(f'help {topic}', f'{name} has no field {path[0]!r}', ', '.join(fields), fix)
    variants = section_variants(field)
    if (element := element_section(field)) is not None:
        explained = _explain_section(element, f'{name}.{path[0]}[]', path[1:], topic)
        return explained if path[1:] else '\n'.join([*_field_lines(section, field, f'{name}.{path[0]}'), '', explained])
    if not variants:
        return '\n'.join(_field_lines(section, field, f'{name}.{path[0]}'))
    with_field = [each for each in variants.values() if not path[1:] or path[1] in each.__dataclass_fields__]
    sections = with_field or [*variants.values()][:1]  # the first one reports the unknown field
    explained = [_explain_section(each, f'{name}.{path[0]}', path[1:], topic) for each in sections]
    return '\n\n'.join(dict.fromkeys(explained))


def _section_lines(section: type[Any], name: str) -> Iterator[str]:
    yield f'{name}: {(section.__doc__ or "").splitlines()[0]}'
    nested = []
    for field in dataclasses.fields(section):
        if section_variants(field):
            nested.append(field.name)
        else:
            yield ''
            yield from _field_lines(section, field, f'{name}.{field.name}')
    if nested:
        yield ''
        yield 'Sections: ' + ', '.join(f'{name}.{inner}' for inner in nested)


def _field_lines(section: type[Any], field: dataclasses.Field, name: str) -> Iterator[str]:
    yield f'{name} = {field.default!r}'
    meaning = field_meanings(section).get(field.name, '')
    yield from textwrap.wrap(meaning[:1].upper() + meaning[1:], _WIDTH, initial_indent='  ', subsequent_indent='  ')
    if expected := field.metadata.get('expected'):
        yield from textwrap.wrap(f'allowed: {expected}', _WIDTH, initial_indent='  ', subsequent_indent='    ')
