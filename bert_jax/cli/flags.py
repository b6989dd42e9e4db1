"""Flags of a command: defined, parsed, and turned into a checked config; whatever does not parse becomes `BadInput`."""

import dataclasses
import difflib
import re
import shlex
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from bert_jax import console
from bert_jax.cli.config_file import load_config_file
from bert_jax.config import Config, Phase, field_names, resolve, unknown_field
from bert_jax.errors import BadInput
from bert_jax.runtime.paths import check_path


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of a command.

    Attributes:
      name: as typed after `--`.
      meaning: its line in `--help`.
      define: the function of absl that defines it.
      default: the value without the flag.
      bounds: further arguments of `define`, such as `lower_bound`.
      group: where `--help` lists it, one of `GROUPS`.
    """

    name: str
    meaning: str
    define: Callable[..., Any] = flags.DEFINE_string
    default: Any = None
    bounds: dict[str, Any] = dataclasses.field(default_factory=dict)
    group: str = 'common'


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


GROUPS = ('essential', 'common', 'advanced')  # of flags, as `--help` lists them
AT_LEAST_0 = {'lower_bound': 0}
AT_LEAST_1 = {'lower_bound': 1}
_FLAG_WIDTH = 24  # columns of a flag's name in `--help`

# --- Flags that several commands share. ---

CONFIG = Flag(
    'config',
    'config file FILE.py[:VARIANT]: a path, or the name of a shipped one, such as bert.py:base',
    group='essential',
)
JSON = Flag('json', 'write one JSON object to standard output, nothing else', flags.DEFINE_boolean, False)
MODEL = Flag('model', 'a workdir, WORKDIR@STEP, an export or a Hugging Face directory', group='essential')
STEP = Flag('step', 'step of the checkpoint (default: the newest)', flags.DEFINE_integer)
WORKDIR = Flag('workdir', 'directory of a run', group='essential')


def define(command: Command, config: Any = None, overrides: Sequence[str] = ()) -> flags.FlagValues:
    """The flags that a command accepts.

    Args:
      config: the ConfigDict that `--config` names, None if it is not given.
      overrides: the arguments of the command; those of the form `--config.FIELD` become flags.
    """
    from ml_collections import config_flags

    values = flags.FlagValues()
    for flag in (*command.flags, JSON):
        if flag is CONFIG and config is not None:
            config_flags.DEFINE_config_dict(
                flag.name, config, flag.meaning, flag_values=values, sys_argv=['', *overrides]
            )
        else:
            flag.define(flag.name, flag.default, flag.meaning, flag_values=values, **flag.bounds)
    return values


def parse(command: Command, arguments: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """Parses the arguments of a command.

    Returns:
      The values of its flags, of which `config` is a ConfigDict or None, and the arguments that are not flags.

    Raises:
      BadInput: when a flag, a config file or an override cannot be used.
    """
    usage, known = f'python -m bert_jax {command.name} --help', []
    try:
        arguments = flags.FlagValues().read_flags_from_files(arguments, force_gnu=False)
        config = None
        if CONFIG in command.flags:
            config_file, arguments = _without_config_file(arguments)
            config = None if config_file is None else load_config_file(config_file)
        values = define(command, config, arguments)
        known = list(values)
        rest = values([command.name, *arguments])[1:]
    except (AttributeError, KeyError, IndexError) as error:  # an override sets a field that does not exist
        raise _unknown_override(command, arguments) or BadInput('--config', str(error).strip('"\'')) from error
    except flags.UnrecognizedFlagError as error:
        if CONFIG in command.flags and config is None and error.flagname.startswith('config.'):
            found = 'overrides a config, but no config is given'
            raise BadInput(f'--{error.flagname}', found, f'--config too: {CONFIG.meaning}') from error
        near = difflib.get_close_matches(error.flagname, known, n=1)
        suggestion = f'did you mean --{near[0]}?' if near else usage
        raise BadInput(f'--{error.flagname}', f'is not a flag of {command.name}', '', suggestion) from error
    except (flags.Error, OSError, TypeError, ValueError) as error:
        raise BadInput('command line', ' '.join(str(error).split()), '', usage) from error
    if rest and not command.arguments:
        raise BadInput('command line', f'{rest[0]!r} is not a flag', '--NAME=VALUE', usage)
    return values, rest


def _without_config_file(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of the last `--config`, None without one, and the other arguments."""
    config_file, others, remaining = None, [], iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition('=')
        if argument == '--':
            return config_file, [*others, argument, *remaining]
        if flag not in ('--config', '-config'):
            others.append(argument)
        elif not equals and (value := next(remaining, None)) is None:
            raise BadInput('--config', 'has no value', CONFIG.meaning, '--config=configs/demo.py')
        else:
            config_file = value
    return config_file, others


def _unknown_override(command: Command, arguments: list[str]) -> BadInput | None:
    """The error for the first `--config.FIELD` that names no field, or an element that the field does not have."""
    known = {*field_names(command.config_type), *field_names(Phase, 'phases[].')}
    for argument in arguments:
        path = argument.partition('=')[0].removeprefix('--config.')
        if not argument.startswith('--config.'):
            continue
        if re.sub(r'\[\d+\]', '[]', path) not in known:
            return unknown_field(path, command.config_type)
        if '[' in path:
            field = path.partition('[')[0]
            return BadInput(f'config.{path}', 'does not exist', f'an element of config.{field} in the config file')
    return None


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether `--json` is among the arguments of a command, which need not parse."""
    asked = False
    for argument in arguments:
        if argument == '--':
            break
        flag, _, value = argument.lstrip('-').partition('=') if argument.startswith('-') else ('', '', '')
        if flag in ('json', 'nojson'):
            asked = flag == 'json' and value.lower() not in ('false', 'f', '0', 'no', 'n')
    return asked


def describe(command: Command) -> str:
    """What `--help` prints for a command: its flags by group, with their defaults, and an example."""
    lines = [f'bert-jax {command.name} [--flag=VALUE …]{command.arguments}', f'  {command.summary}']
    for group in GROUPS:
        members = [flag for flag in (*command.flags, JSON) if flag.group == group]
        if members:
            lines += ['', f'{group.capitalize()} flags:']
            lines += [line for flag in members for line in _describe_flag(flag)]
    if CONFIG in command.flags:
        section = 'config' if command.config_type is Config else 'finetune-config'
        lines += [
            '',
            f'--config.FIELD=VALUE changes a field of the config; `bert-jax help {section}` explains them all.',
        ]
    return '\n'.join([*lines, '', 'Example:', f'  {command.example}'])


def _describe_flag(flag: Flag) -> list[str]:
    default = '' if flag.default in (None, [], False) or 'default' in flag.meaning else f' (default: {flag.default})'
    text = textwrap.wrap(flag.meaning + default, 100 - _FLAG_WIDTH)
    name = f'  --{flag.name}'
    first = [f'{name:{_FLAG_WIDTH}}{text[0]}'] if len(name) < _FLAG_WIDTH else [name, ' ' * _FLAG_WIDTH + text[0]]
    return first + [' ' * _FLAG_WIDTH + line for line in text[1:]]


# --- What commands do with the values. ---


def print_result(values: flags.FlagValues, as_json: dict[str, Any], text: str, *, is_in_files: bool = False) -> None:
    """Prints a command's result on standard output: JSON with `--json`, otherwise the text, if any.

    Args:
      is_in_files: the command has written what matters to files, so a result that cannot be printed is no failure.

    Raises:
      BadInput: when standard output cannot be written to, other than because its reader has exited.
    """
    lost = console.print_json(as_json) if values.json else console.print_text(text) if text else ''
    if not lost:
        return
    error = BadInput('standard output', f'could not be written ({lost})', 'a file or a reader that takes the result')
    if not is_in_files:
        raise error
    console.say(f'bert_jax: {error}')


def command_to_paste(name: str, **options: str) -> str:
    """A command of this program as a shell takes it: brackets and blanks in a path are quoted."""
    return shlex.join(['python', '-m', 'bert_jax', name, *(f'--{key}={value}' for key, value in options.items())])


def required(values: flags.FlagValues, name: str) -> str:
    """The value of a flag that names a path; raises BadInput when it is not given or cannot be used."""
    value = values[name].value
    if not value:
        raise BadInput(f'--{name}', 'is missing', values[name].help)
    check_path(name, value)
    return value


def workdir_and_step(values: flags.FlagValues) -> tuple[str, int | None]:
    """The workdir of `--workdir=DIR` or `--workdir=DIR@STEP`, and the step named there or by `--step`.

    Raises:
      BadInput: when there is no workdir, or two steps are named.
    """
    from bert_jax.workdir.identity import split_step

    workdir, step = split_step(required(values, 'workdir'))
    if step is not None and values.step not in (None, step):
        raise BadInput(f'--step={values.step}', f'and --workdir={workdir}@{step} name two steps', 'one of them')
    return workdir, values.step if step is None else step


def check_names_no_step(command: Command, workdir: str) -> None:
    """Raises BadInput for `WORKDIR@STEP` of an existing run: the command is about the whole run."""
    from bert_jax.files import as_path
    from bert_jax.workdir.identity import split_step

    directory, step = split_step(workdir)
    if step is not None and (as_path(directory) / 'config.json').exists():
        found = f'names a step, and {command.name} takes a whole run'
        raise BadInput(f'--workdir={workdir}', found, 'the workdir without @STEP', f'--workdir={directory}')


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
