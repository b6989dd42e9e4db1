"""Defines and parses the flags of a command, and turns them into a checked config; failures become `BadInput`."""

import dataclasses
import difflib
import re
import shlex
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from bert_jax import console
from bert_jax.cli.config_file import load_config_file
from bert_jax.config import Config, Phase, editable, field_names, resolve, unknown_field
from bert_jax.errors import BadInput, as_started, program
from bert_jax.runtime.paths import check_path

if TYPE_CHECKING:
    from bert_jax.pretrained.provenance import AveragedCheckpoint


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of a command.

    Attributes:
      name: as typed after `--`.
      meaning: its line in `--help`.
      define: the function of absl that defines it.
      default: the value if the flag is not given.
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
      name: as typed after `bert-jax`.
      run: takes the values of the flags and the remaining arguments; returns the exit status.
      summary: one line for `--help`, beginning with a verb.
      example: a command to paste, beginning with `bert-jax`.
      flags: those it accepts, besides `--json`.
      arguments: what follows the flags, as `--help` shows it; empty if nothing may follow.
      config_type: what its config file resolves to, for messages that name fields.
      overrides_run: whether `--config.FIELD` changes the config of the run in `--workdir`, if there is no `--config`.
    """

    name: str
    run: Callable[[flags.FlagValues, list[str]], int]
    summary: str
    example: str
    flags: tuple[Flag, ...]
    arguments: str = ''
    config_type: type = Config
    overrides_run: bool = False

    @property
    def takes_config(self) -> bool:
        return any(flag.name == CONFIG.name for flag in self.flags)

    def flags_of(self, group: str) -> list[Flag]:
        return [flag for flag in (*self.flags, JSON) if flag.group == group]


GROUPS = ('essential', 'common', 'advanced')  # of flags, in the order of `--help`
AT_LEAST_0 = {'lower_bound': 0}
AT_LEAST_1 = {'lower_bound': 1}
_RUN_FILES = ('config.json', 'finetune.json')  # one of them exists in the workdir of a run
_HELP_WIDTH = 100  # columns
_FLAG_WIDTH = 24  # columns for the name of a flag

# --- Flags that several commands share. ---

CONFIG = Flag(
    'config',
    'config file FILE.py[:VARIANT]: a path, or a shipped one, such as bert.py:base',
    group='essential',
)
JSON = Flag('json', 'print the result as one JSON object on standard output', flags.DEFINE_boolean, False)
MODEL = Flag('model', 'workdir, WORKDIR@STEP, export or Hugging Face directory', group='essential')
STEP = Flag('step', 'step of the checkpoint (default: the newest)', flags.DEFINE_integer)
AVERAGE = Flag(
    'average',
    'checkpoints whose weights are averaged: STEP,STEP of --workdir, or WORKDIR@STEP,WORKDIR@STEP; a weight follows a '
    'colon, STEP:WEIGHT',
)
WORKDIR = Flag('workdir', 'directory of the run', group='essential')
WORKDIR_OR_STEP = Flag('workdir', 'directory of a run, or WORKDIR@STEP for one of its checkpoints', group='essential')


def define(command: Command, config: Any = None, overrides: Sequence[str] = ()) -> flags.FlagValues:
    """Defines the flags that a command accepts.

    Args:
      config: the ConfigDict that `--config` names; None if it is not given.
      overrides: the arguments of the command; those of the form `--config.FIELD` become flags.
    """
    from ml_collections import config_flags

    values = flags.FlagValues()
    for flag in (*command.flags, JSON):
        if flag.name == CONFIG.name and config is not None:
            config_flags.DEFINE_config_dict(
                flag.name, config, flag.meaning, flag_values=values, sys_argv=['', *overrides]
            )
        else:
            flag.define(flag.name, flag.default, help=flag.meaning, flag_values=values, **flag.bounds)
    return values


def parse(command: Command, arguments: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """Parses the arguments of a command.

    Returns:
      The values of its flags, in which `config` is a ConfigDict or None, and the arguments that are not flags.

    Raises:
      BadInput: if a flag, a config file or an override cannot be used.
    """
    usage, known, config = f'bert-jax {command.name} --help', [], None
    try:
        arguments = flags.FlagValues().read_flags_from_files(arguments, force_gnu=False)
        if command.takes_config:
            config_file, arguments = _without_config_file(arguments)
            if config_file is not None:
                config = load_config_file(config_file)
            elif command.overrides_run and any(each.startswith('--config.') for each in arguments):
                config = _config_of_workdir(arguments)
        values = define(command, config, arguments)
        known = list(values)
        rest = values([command.name, *arguments])[1:]
    except (AttributeError, KeyError, IndexError) as error:  # an override sets a field that does not exist
        message = str(error).strip('"\'')
        raise _unknown_override(command, config, arguments) or BadInput(
            '--config', message, '', 'bert-jax help config'
        ) from error
    except flags.UnrecognizedFlagError as error:
        if command.takes_config and config is None and error.flagname.startswith('config.'):
            found = 'overrides a config, but no config is given'
            raise BadInput(f'--{error.flagname}', found, f'--config too: {CONFIG.meaning}', command.example) from error
        near = difflib.get_close_matches(error.flagname, known, n=1)
        fix = f'did you mean --{near[0]}?' if near else usage
        raise BadInput(f'--{error.flagname}', f'is not a flag of {command.name}', '', fix) from error
    except flags.IllegalFlagValueError as error:
        raise _illegal_value(command, error) from error
    except (flags.Error, OSError, TypeError, ValueError) as error:
        raise BadInput('command line', ' '.join(str(error).split()), '', usage) from error
    if rest and not command.arguments:
        raise BadInput('command line', f'{rest[0]!r} is not a flag', '--NAME=VALUE', usage)
    return values, rest


def _without_config_file(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Returns the value of the last `--config`, or None, and the other arguments."""
    config_file, others, remaining = None, [], iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition('=')
        if argument == '--':
            return config_file, [*others, argument, *remaining]
        if flag not in ('--config', '-config'):
            others.append(argument)
        elif not equals and (value := next(remaining, None)) is None:
            raise BadInput('--config', 'has no value', CONFIG.meaning, '--config=demo.py')
        else:
            config_file = value
    return config_file, others


def _config_of_workdir(arguments: list[str]) -> Any:
    """Returns the config of the run in the last `--workdir`, to be overridden; None if there is none."""
    from bert_jax.workdir.identity import load_config, split_step

    values = flags.FlagValues()
    flags.DEFINE_string(WORKDIR.name, None, WORKDIR.meaning, flag_values=values)
    values(['', *arguments], known_only=True)
    if not values.workdir:
        return None
    return editable(load_config(split_step(values.workdir)[0]))


def _illegal_value(command: Command, error: flags.IllegalFlagValueError) -> BadInput:
    """Returns the error for a value of the wrong type or out of bounds, from `flag --NAME=VALUE: REASON` of absl."""
    message = ' '.join(str(error).split())
    flag, _, reason = message.removeprefix('flag ').partition(': ')
    name = flag.removeprefix('--').partition('=')[0]
    if reason.startswith('could not convert string to float'):
        reason = 'is not a number'
    elif reason.startswith('invalid literal for int'):
        reason = 'is not an integer'
    elif 'Non-boolean argument' in reason:
        reason = 'is neither true nor false'
    meanings = {each.name: each.meaning for each in command.flags}
    return BadInput(flag, re.sub(r'^[-+.\w]+ (?=is not)', '', reason), meanings.get(name, ''))


def _unknown_override(command: Command, config: Any, arguments: list[str]) -> BadInput | None:
    """Returns the error for the first `--config.FIELD` whose field or element does not exist; None if all do."""
    family = config.get('model', {}).get('family', '') if config else ''
    known = {*field_names(command.config_type, family=family), *field_names(Phase, 'phases[].')}
    for argument in arguments:
        path = argument.partition('=')[0].removeprefix('--config.')
        if not argument.startswith('--config.'):
            continue
        if re.sub(r'\[\d+\]', '[]', path) not in known:
            return unknown_field(path, command.config_type, family)
        if '[' in path:
            field = path.partition('[')[0]
            expected = f'an element of config.{field} in the config file'
            return BadInput(f'config.{path}', 'does not exist', expected, f'bert-jax help config.{field}')
    return None


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Returns whether the arguments of a command, which need not parse, include `--json`."""
    asked = False
    for argument in arguments:
        if argument == '--':
            break
        flag, _, value = argument.lstrip('-').partition('=') if argument.startswith('-') else ('', '', '')
        if flag in ('json', 'nojson'):
            asked = flag == 'json' and value.lower() not in ('false', 'f', '0', 'no', 'n')
    return asked


def describe(command: Command) -> str:
    """Returns what `--help` prints for a command: its flags by group, with their defaults, and an example."""
    lines = [f'{program()} {command.name} [--FLAG=VALUE …]{command.arguments}', f'  {command.summary}']
    for group in GROUPS:
        if members := command.flags_of(group):
            lines += ['', f'{group.capitalize()} flags:']
            lines += [line for flag in members for line in _describe_flag(flag)]
    if command.takes_config:
        section = 'config' if command.config_type is Config else 'finetune-config'
        lines += [
            '',
            f'--config.FIELD=VALUE changes a field of the config; `{program()} help {section}` explains the fields.',
        ]
    return '\n'.join([*lines, '', 'Example:', f'  {as_started(command.example)}'])


def _describe_flag(flag: Flag) -> list[str]:
    default = '' if flag.default in (None, [], False) or 'default' in flag.meaning else f' (default: {flag.default})'
    text = textwrap.wrap(flag.meaning + default, _HELP_WIDTH - _FLAG_WIDTH, break_on_hyphens=False)
    name = f'  --{flag.name}'
    first = [f'{name:{_FLAG_WIDTH}}{text[0]}'] if len(name) < _FLAG_WIDTH else [name, ' ' * _FLAG_WIDTH + text[0]]
    return first + [' ' * _FLAG_WIDTH + line for line in text[1:]]


# --- What commands do with the values. ---


def print_result(values: flags.FlagValues, as_json: dict[str, Any], text: str, *, is_in_files: bool = False) -> None:
    """Prints the result of a command on standard output: JSON with `--json`, otherwise the text, if any.

    Args:
      is_in_files: the command has written its result to files, so failing to print it is only reported.

    Raises:
      BadInput: if standard output cannot be written to, unless its reader has exited.
    """
    lost = console.print_json(as_json) if values.json else console.print_text(text) if text else ''
    if not lost:
        return
    error = BadInput(
        'standard output', f'could not be written ({lost})', 'a pipe or a file with free space', 'redirect it elsewhere'
    )
    if not is_in_files:
        raise error
    console.say(f'bert_jax: {error}')


def command_to_paste(name: str, **options: str) -> str:
    """Returns a command of this program as the user started it, quoted for the shell."""
    return f'{program()} {shlex.join([name, *(f"--{key}={value}" for key, value in options.items())])}'


def required(command: Command, values: flags.FlagValues, name: str) -> str:
    """Returns the value of a flag that names a path; raises BadInput if it is missing or unusable."""
    value = values[name].value
    if not value:
        raise BadInput(f'--{name}', 'is missing', values[name].help, command.example)
    check_path(name, value)
    return value


def workdir_and_step(command: Command, values: flags.FlagValues) -> tuple[str, int | None]:
    """Returns the workdir of `--workdir=DIR` or `--workdir=DIR@STEP`, and the step named there or by `--step`.

    Raises:
      BadInput: if there is no workdir, or two different steps are named.
    """
    from bert_jax.workdir.identity import split_step

    workdir, step = split_step(required(command, values, 'workdir'))
    if step is not None and values.step not in (None, step):
        found = f'differs from the step in --workdir={workdir}@{step}'
        raise BadInput(f'--step={values.step}', found, 'one step', f'--workdir={workdir} --step={values.step}')
    return workdir, values.step if step is None else step


def averaged_checkpoints(command: Command, values: flags.FlagValues) -> 'tuple[AveragedCheckpoint, ...]':
    """Returns the checkpoints that `--average` names; () if it is not given.

    Raises:
      BadInput: if they do not exist or do not fit together, or if a step is named elsewhere too.
    """
    from bert_jax.pretrained.average import parse
    from bert_jax.workdir.identity import split_step

    if values.average is None:
        return ()
    workdir, step = split_step(values.workdir or '')
    if step is not None or values.step is not None:
        found, fix = 'names the steps, and another flag names a step too', f'bert-jax {command.name} --help'
        raise BadInput(f'--average={values.average}', found, 'steps in --average only', fix)
    return parse(values.average, workdir)


def check_names_no_step(command: Command, workdir: str) -> None:
    """Raises BadInput for `WORKDIR@STEP` of an existing run: the command takes a whole run."""
    from bert_jax.files import as_path
    from bert_jax.workdir.identity import split_step

    directory, step = split_step(workdir)
    if step is not None and any((as_path(directory) / name).exists() for name in _RUN_FILES):
        found = f'names a step, but {command.name} takes a whole run'
        raise BadInput(f'--workdir={workdir}', found, 'the workdir without @STEP', f'--workdir={directory}')


def config_of(values: flags.FlagValues) -> Config:
    """Returns the checked config of `--config` and its overrides."""
    if values.config is None:
        raise BadInput('--config', 'is missing', CONFIG.meaning, '--config=demo.py')
    return resolve(fields_of(values.config))


def config_of_run(values: flags.FlagValues, workdir: str) -> Config:
    """Returns the config of `--config`, or by default the one in the workdir."""
    if values.config is not None:
        return config_of(values)
    from bert_jax.workdir.identity import load_config

    return load_config(workdir)


def fields_of(config: Any) -> dict[str, Any]:
    """Returns what a config file returned, as nested dicts."""
    try:
        return config.to_dict()
    except BadInput:
        raise
    except Exception as error:  # a config file is a program of the user, which may raise anything
        found = f'cannot be used ({type(error).__name__}: {error})'
        raise BadInput('--config', found, 'a ConfigDict of plain values', 'bert-jax help config') from error
