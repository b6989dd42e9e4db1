"""Flags of a command: defined, parsed, and turned into a checked config; whatever does not parse becomes `BadInput`."""

import dataclasses
import difflib
import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from bert_jax.cli.shipped import find_config
from bert_jax.config import Config, Phase, field_names, resolve, unknown_field
from bert_jax.errors import BadInput
from bert_jax.files import is_local, unusable_path


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of a command.

    Attributes:
      name: as typed after `--`.
      meaning: its line in `--help`.
      define: the function of absl that defines it.
      default: the value without the flag.
      bounds: further arguments of `define`, such as `lower_bound`.
    """

    name: str
    meaning: str
    define: Callable[..., Any] = flags.DEFINE_string
    default: Any = None
    bounds: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
      name: as typed after `python -m bert_jax`.
      run: takes the flags' values and the remaining arguments; returns the exit status.
      summary: one line for `--help`.
      example: a command to paste.
      flags: those it accepts, besides `--json`.
      arguments: what follows the flags, for `--help`; empty: nothing may.
      config_type: what its config file is resolved to, for messages that name fields.
    """

    name: str
    run: Callable[[flags.FlagValues, list[str]], int]
    summary: str
    example: str
    flags: tuple[Flag, ...]
    arguments: str = ''
    config_type: type = Config


AT_LEAST_0 = {'lower_bound': 0}
AT_LEAST_1 = {'lower_bound': 1}

# --- Flags that several commands share. ---

CONFIG = Flag('config', 'config file FILE.py[:VARIANT]: a path, or the name of a shipped one, such as bert.py:base')
JSON = Flag('json', 'write one JSON object to standard output, nothing else', flags.DEFINE_boolean, False)
MODEL = Flag('model', 'a workdir, an export or a Hugging Face directory')
STEP = Flag('step', 'step of the checkpoint (default: the newest)', flags.DEFINE_integer)
WORKDIR = Flag('workdir', 'directory of a run')


def define(command: Command, arguments: Sequence[str] = ()) -> flags.FlagValues:
    """The flags that a command accepts; of those given in `arguments`, only the overrides of a config are looked at."""
    from ml_collections import config_flags

    values = flags.FlagValues()
    for flag in (*command.flags, JSON):
        if flag is CONFIG:
            config_flags.DEFINE_config_file(
                flag.name, None, flag.meaning, flag_values=values, sys_argv=['', *arguments]
            )
        else:
            flag.define(flag.name, flag.default, flag.meaning, flag_values=values, **flag.bounds)
    return values


def parse(command: Command, arguments: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """Parses the arguments of a command.

    Returns:
      The values of its flags, and the arguments that are not flags.

    Raises:
      BadInput: when a flag, a config file or an override cannot be used.
    """
    if CONFIG in command.flags:
        arguments = _with_paths_of_configs(arguments)
    values = define(command, arguments)
    usage = f'python -m bert_jax {command.name} --help'
    try:
        rest = values([command.name, *arguments])[1:]
    except (AttributeError, KeyError) as error:  # a config file or an override sets a field that does not exist
        raise _unknown_override(command, arguments) or BadInput('--config', str(error).strip('"\'')) from error
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(values), n=1)
        suggestion = f'did you mean --{near[0]}?' if near else usage
        raise BadInput(f'--{error.flagname}', f'is not a flag of {command.name}', '', suggestion) from error
    except (flags.Error, OSError, IndexError, TypeError, ValueError, SyntaxError, ImportError) as error:
        raise BadInput('command line', ' '.join(str(error).split()), '', usage) from error
    if rest and not command.arguments:
        raise BadInput('command line', f'{rest[0]!r} is not a flag', '--NAME=VALUE', usage)
    return values, rest


def _with_paths_of_configs(arguments: list[str]) -> list[str]:
    """The arguments, with the path of a shipped config file in place of its name."""
    found = list(arguments)
    for index, argument in enumerate(arguments):
        if argument == '--':
            break
        flag, equals, value = argument.partition('=')
        if flag not in ('--config', '-config'):
            continue
        if equals:
            found[index] = f'{flag}={find_config(value)}'
        elif index + 1 < len(arguments):
            found[index + 1] = find_config(arguments[index + 1])
    return found


def _unknown_override(command: Command, arguments: list[str]) -> BadInput | None:
    """The error for the first `--config.FIELD` that names no field."""
    known = {*field_names(command.config_type), *field_names(Phase, 'phases[].')}
    for argument in arguments:
        path = argument.partition('=')[0].removeprefix('--config.')
        if argument.startswith('--config.') and re.sub(r'\[\d+\]', '[]', path) not in known:
            return unknown_field(path, command.config_type)
    return None


def describe(command: Command) -> str:
    """What `--help` prints for a command."""
    values = define(command)
    lines = [f'python -m bert_jax {command.name} [--flag=VALUE …]{command.arguments}: {command.summary}', '']
    lines += [f'  --{flag}: {values[flag].help}' for flag in sorted(values)]
    lines += ['', f'Example: {command.example}']
    return '\n'.join(lines)


# --- What commands do with the values. ---


def print_result(values: flags.FlagValues, as_json: dict[str, Any], text: str) -> None:
    """Prints a command's result on standard output: JSON with `--json`, otherwise the text, if any."""
    if values.json:
        print(json.dumps(as_json, ensure_ascii=False))
    elif text:
        print(text)


def required(values: flags.FlagValues, name: str) -> str:
    """The value of a flag that names a path; raises BadInput when it is not given or cannot be used."""
    value = values[name].value
    if not value:
        raise BadInput(f'--{name}', 'is missing', values[name].help)
    check_path(name, value)
    return value


def check_path(name: str, path: str) -> None:
    """Raises BadInput for a path, the value of the flag `name`, that cannot be used."""
    if problem := unusable_path(path):
        raise BadInput(f'--{name}={path}', problem, 'a path without it')
    if not is_local(path) and importlib.util.find_spec('tensorflow') is None:  # which opens them by itself
        import fsspec

        try:
            fsspec.get_filesystem_class(path.partition('://')[0])
        except ImportError as error:
            raise BadInput(f'--{name}={path}', f'cannot be opened ({error})', 'the package for this store') from error


def config_of(values: flags.FlagValues) -> Config:
    """The config that `--config` and its overrides give, checked."""
    if values.config is None:
        raise BadInput('--config', 'is missing', 'a config file', '--config=configs/demo.py')
    return resolve(fields_of(values.config))


def config_of_run(values: flags.FlagValues, workdir: str) -> Config:
    """The config that `--config` gives, or else the one in the workdir."""
    if values.config is not None:
        return config_of(values)
    from bert_jax.workdir.identity import load_config

    return load_config(workdir)


def fields_of(config: Any) -> dict[str, Any]:
    """What a config file returned, as nested dicts."""
    try:
        return config.to_dict()
    except BadInput:
        raise
    except Exception as error:  # a config file is the user's own program: it may raise anything
        found = f'cannot be used ({type(error).__name__}: {error})'
        raise BadInput(
            '--config', found, 'a Python file whose get_config() returns a ConfigDict', '--config=configs/demo.py'
        ) from error
