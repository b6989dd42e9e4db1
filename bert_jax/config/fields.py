"""Defines the fields of a config, each with default, meaning and check, and checks values against them."""

import ast
import dataclasses
import difflib
import enum
import functools
import inspect
import io
import shlex
import tokenize
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict, FieldReference, config_dict

from bert_jax.errors import BadInput

SectionT = TypeVar('SectionT', bound=Any)


class Role(enum.Enum):
    """What a field means when a run resumes. A field without a role has that of its section (`ROLE`)."""

    IDENTITY = 'part of the identity of the run: may change only with --allow_change'
    IDENTITY_IF_SET = 'as IDENTITY, if it differs from the value of runs from before the field existed'
    SHAPES = 'part of the identity of the run, and determines the arrays of its checkpoints: never changes'
    SHAPES_IF_SET = 'as SHAPES, if it differs from the value of runs from before the field existed'
    CONTENT = 'a source of the data: a hash of the data is compared instead'
    CONTENT_IF_SET = 'as CONTENT, if it differs from the value of corpora from before the field existed'
    EXECUTION = 'how the run is executed: may change at any time'


def setting(
    default: Any,
    expected: str = '',
    check: Callable[[Any], bool] | None = None,
    choices: tuple = (),
    role: Role | None = None,
    before: Any = None,
    is_written: bool = False,
    suggest: Callable[[str], str] | None = None,
):
    """Defines a dataclass field with its default, check and role.

    Args:
      before: the value of runs from before the field existed or had its present default. They keep it
        (`with_values_before`). By default, the present default.
      is_written: whether it names a place that commands write to, or a program that they start. Such a field is read
        only from a config file or the command line, never from a workdir, which may come from someone else.
      suggest: returns a value that a rejected text was probably meant to be, or ''.
    """
    if choices:
        expected, check = 'one of ' + ', '.join(map(repr, choices)), lambda value: value in choices
    metadata = {
        'expected': expected,
        'check': check,
        'choices': choices,
        'role': role,
        'before': default if before is None else before,
        'is_written': is_written,
        'suggest': suggest,
    }
    return dataclasses.field(default=default, metadata=metadata)


def _before(field: dataclasses.Field) -> Any:
    return field.metadata.get('before', field.default)


def with_values_before(section: Any, recorded: dict[str, Any], changing: Collection[str] = (), prefix: str = '') -> Any:
    """Returns a section for a run that began earlier, with the run's value where a default is newer than the run.

    Args:
      section: a config, or a section of one.
      recorded: the same section as the run's config.json holds it, without the fields that are newer than the run.
      changing: dotted names of fields, or of sections, that keep their new value.
    """
    kept: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        name, value = prefix + field.name, getattr(section, field.name)
        if name in changing:
            continue
        if dataclasses.is_dataclass(value):
            inner = recorded.get(field.name, {})
            kept[field.name] = with_values_before(value, inner, changing, f'{name}.')
        elif value == field.default != _before(field) == recorded.get(field.name, _before(field)):
            kept[field.name] = _before(field)
    return dataclasses.replace(section, **kept)


def roles(section: type[Any]) -> dict[str, Role]:
    """Returns the role of each field of a section."""
    return {field.name: field.metadata.get('role') or section.ROLE for field in dataclasses.fields(section)}


def identity_of(config: Any) -> dict[str, Any]:
    """Returns {`section.field` or `field`: JSON value} of the fields that belong to the identity of a run."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            names = (inner for inner in dataclasses.fields(value) if _is_identity(value, inner))
            found |= {f'{field.name}.{inner.name}': _as_json(getattr(value, inner.name)) for inner in names}
        elif _is_identity(config, field):
            found[field.name] = _as_json(value)
    return found


def _is_identity(section: Any, field: dataclasses.Field) -> bool:
    role = roles(type(section))[field.name]
    is_set = role in (Role.IDENTITY_IF_SET, Role.SHAPES_IF_SET) and getattr(section, field.name) != _before(field)
    return is_set or role in (Role.IDENTITY, Role.SHAPES)


def _as_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_json(item) for item in value]
    if dataclasses.is_dataclass(value):
        named = (field for field in dataclasses.fields(value) if _is_identity(value, field))
        return {field.name: _as_json(getattr(value, field.name)) for field in named}
    return value


def names_with(role: Role, section: type[Any]) -> tuple[str, ...]:
    """Returns the names of the fields of a section that have a role."""
    return tuple(name for name, found in roles(section).items() if found is role)


def content_of(section: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {field: value} of the fields of a section that determine the data; newer fields only if they are set.

    Args:
      values: of its fields by name; a newer one may be absent.
    """
    found = {}
    for field in dataclasses.fields(section):
        role, value = roles(section)[field.name], values.get(field.name, _before(field))
        if role is Role.CONTENT or (role is Role.CONTENT_IF_SET and value != _before(field)):
            found[field.name] = value
    return found


def without_places_to_write(section: type[Any], values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (values without those of fields marked `is_written`, the values left out by dotted name).

    Args:
      section: of a config, with nested sections.
      values: its JSON values, unchecked.
    """
    kept, left_out = dict(values), {}
    for field in dataclasses.fields(section):
        value = values.get(field.name)
        if (inner_section := section_of(field)) is not None and isinstance(value, dict):
            kept[field.name], inner = without_places_to_write(inner_section, value)
            left_out |= {f'{field.name}.{name}': each for name, each in inner.items()}
        elif field.metadata.get('is_written') and field.name in values:
            del kept[field.name]
            if value != field.default:
                left_out[field.name] = value
    return kept, left_out


def at_least(default: Any, low: float, role: Role | None = None):
    """Defines a number of at least `low` that fits in 32 bits."""
    return setting(default, f'a number of at least {low}, below 2**31', lambda value: low <= value < 2**31, role=role)


def fraction(default: float, role: Role | None = None):
    """Defines a number from 0 up to, not including, 1."""
    return setting(default, 'a number from 0 up to, not including, 1', lambda value: 0 <= value < 1, role=role)


def as_in(section: type[Any], name: str, default: Any = dataclasses.MISSING):
    """Defines a field with the check of a field in another section, and with its default unless one is given."""
    field = section.__dataclass_fields__[name]
    default = field.default if default is dataclasses.MISSING else default
    return dataclasses.field(default=default, metadata={**field.metadata, 'same_as': (section, name)})


def optional(section: type[Any], name: str, role: Role = Role.IDENTITY_IF_SET):
    """Defines a field that may be None, for the value of a field in another section, with the check of that field."""
    field = as_in(section, name, None)
    return dataclasses.field(default=None, metadata={**field.metadata, 'role': role, 'before': None})


def overridden(section: SectionT, by: Any) -> SectionT:
    """Returns a section with the values of a record that has some of its fields, by `as_in` or `optional`.

    Fields of the record that are None, or belong to another section, are ignored.
    """
    values = {}
    for field in dataclasses.fields(by):
        owner, name = field.metadata.get('same_as', (None, ''))
        if owner is not None and isinstance(section, owner) and getattr(by, field.name) is not None:
            values[name] = getattr(by, field.name)
    return dataclasses.replace(section, **values)


def variants(default: Any, sections: Mapping[str, type[Any]], by: str) -> Any:
    """Defines a field that holds one of several sections.

    Args:
      sections: by the value of their field `by`, which selects one; `default` is of one of them.
    """
    return dataclasses.field(default=default, metadata={'variants': sections, 'by': by})


def section_of(field: dataclasses.Field) -> type[Any] | None:
    """Returns the section that a field holds, the default one if there are variants; None for a single value."""
    if 'variants' in field.metadata:
        return type(field.default)
    return typing.cast(type, field.type) if dataclasses.is_dataclass(field.type) else None


def section_variants(field: dataclasses.Field) -> dict[str, type[Any]]:
    """Returns the sections that a field may hold, by name; {} for a single value."""
    section = section_of(field)
    return field.metadata.get('variants') or ({} if section is None else {field.name: section})


def element_section(field: dataclasses.Field) -> type[Any] | None:
    """Returns the section of the elements of a field that is a tuple of sections; None for other fields."""
    elements = [each for each in typing.get_args(field.type) if dataclasses.is_dataclass(each)]
    return typing.cast(type, elements[0]) if elements else None


@functools.cache
def field_meanings(section: type[Any]) -> dict[str, str]:
    """Returns {field: the comment above it}; a field defined as in another section has the comment from there."""
    found: dict[str, str] = {}
    for each in reversed(section.__mro__):
        if dataclasses.is_dataclass(each):
            found |= _comments_of_fields(inspect.getsource(each))
    for field in dataclasses.fields(section):
        if field.name not in found and (original := field.metadata.get('same_as')):
            found[field.name] = field_meanings(original[0])[original[1]]
    return found


def _comments_of_fields(source: str) -> dict[str, str]:
    """Returns the comments on the fields of a dataclass: those above a field, then the one beside it."""
    found: dict[str, str] = {}
    above: list[str] = []
    field_at: dict[int, str] = {}  # by line
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            field_at |= dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), node.target.id)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            text = token.string.removeprefix('#').strip()
            if line in field_at:
                found[field_at[line]] = ' '.join(filter(None, (found.get(field_at[line], ''), text)))
            else:
                above.append(text)
        elif line in field_at and above:
            found[field_at[line]] = ' '.join(above)
            above = []
    return found


def config_dict_of(section: Any) -> ConfigDict:
    """Returns a section as a ConfigDict, which a config file and the command line may change.

    A field that may be None is a placeholder; otherwise the command line could not set it. A section with variants has
    the placeholders of all variants. `resolve_section` checks the values.
    """
    return ConfigDict(_entries(section))


def _entries(section: Any) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value, types = getattr(section, field.name), typing.get_args(field.type)
        if dataclasses.is_dataclass(value):
            inner = _entries(value)
            for variant in field.metadata.get('variants', {}).values():
                others = _entries(variant()).items()
                inner = {name: entry for name, entry in others if isinstance(entry, FieldReference)} | inner
            entries[field.name] = ConfigDict(inner)
        elif value is None and type(None) in types:
            entries[field.name] = config_dict.placeholder(types[0])
        else:
            entries[field.name] = value
    return entries


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns 'did you mean …?', or '' if no name is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f'did you mean {close[0]!r}?' if close else ''


def _parsed_tuple(text: str, path: str) -> Any:
    """Parses a tuple that the command line gave as text."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        expected = "a tuple as Python writes it, such as (('text:a.txt', 1.0), ('text:b.txt', 2.0))"
        raise BadInput(f'config.{path}', f'is {text!r}', expected) from None


def _resolve_inner(
    field: dataclasses.Field, section: type[Any], values: Any, path: str, unknown: Callable[[str], BadInput]
) -> Any:
    sections, by = field.metadata.get('variants'), field.metadata.get('by')
    if sections and isinstance(values, dict):  # without the placeholders of other variants
        chosen = next((each for name, each in sections.items() if name == values.get(by)), section)
        values = {name: value for name, value in values.items() if value is not None or name in _names(chosen)}
    if not sections or not isinstance(values, dict) or by not in values:  # the default, or no section at all
        return resolve_section(section, values, path + '.', unknown)
    chosen = values[by]
    if not isinstance(chosen, str) or chosen not in sections:
        where, names = f'config.{path}.{by}', ', '.join(sections)
        raise BadInput(where, f'is {chosen!r}', f'one of {names}', nearest(str(chosen), sections))
    if sections[chosen] is section:
        return resolve_section(section, values, path + '.', unknown)
    names = _names(sections[chosen])

    def unknown_here(name: str) -> BadInput:
        leaf = name.rpartition('.')[2]
        fix = nearest(leaf, names) or f'bert-jax help config.{path}'
        if leaf in _names(section) and values[leaf] == section.__dataclass_fields__[leaf].default:
            # The field came with the config file, whose section is of another family.
            fix = f'start from a config of this {by}, such as bert_jax.config.defaults({chosen!r})'
        return BadInput(f'config.{name}', f'is not a field of {by} {chosen!r}', ', '.join(names), fix)

    return resolve_section(sections[chosen], values, path + '.', unknown_here)


def _names(section: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(section)]


def _fix(field: dataclasses.Field, path: str, value: Any) -> str:
    """Returns how to fix a value that its check rejects; '' where nothing is close."""
    if not isinstance(value, str):
        return ''
    if (suggest := field.metadata.get('suggest')) and (better := suggest(value)):
        return shlex.join([f'--config.{path}={better}'])
    return nearest(value, field.metadata.get('choices', ()))


def resolve_section(section: type[Any], values: Any, prefix: str, unknown: Callable[[str], BadInput]) -> Any:
    """Checks values by name and returns a frozen section.

    Args:
      prefix: dotted name of the section, ending in a dot; '' for a whole config.
      unknown: dotted name -> the error for a field that the section does not have.

    Raises:
      BadInput: names the first field that is unknown, of the wrong type, or out of range.
    """
    if not isinstance(values, dict):
        raise BadInput(f'config.{prefix[:-1]}', f'is {values!r}', 'a group of fields')
    fields = {field.name: field for field in dataclasses.fields(section)}
    for name in values:
        if name not in fields:
            raise unknown(prefix + name)
    resolved = {}
    for name, field in fields.items():
        if name not in values:
            continue
        path, value = f'{prefix}{name}', values[name]
        if (inner := section_of(field)) is not None:
            resolved[name] = _resolve_inner(field, inner, value, path, unknown)
            continue
        types = typing.get_args(field.type) or (field.type,)
        if float in types and type(value) is int:
            value = float(value)
        if tuple in typing.get_args(field.type) and isinstance(value, str) and value.lstrip().startswith('('):
            value = _parsed_tuple(value, path)
        if tuple in types and isinstance(value, list | tuple):
            value = tuple(tuple(item) if isinstance(item, list) else item for item in value)  # JSON knows no tuples
        if type(value) not in types or value != value or value in (float('inf'), -float('inf')):
            kind = 'a finite float' if float in types else f'of type {getattr(field.type, "__name__", field.type)}'
            raise BadInput(f'config.{path}', f'is {value!r}', kind)
        check = field.metadata.get('check')
        if check and value is not None and not check(value):
            raise BadInput(f'config.{path}', f'is {value!r}', field.metadata['expected'], _fix(field, path, value))
        resolved[name] = value
    return section(**resolved)
