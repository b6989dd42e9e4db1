"""The command line, `bert-jax COMMAND …` or `python -m bert_jax COMMAND …`: finds the command, runs it, reports errors.

Exit status: 0 done; 2 bad input, reported without a traceback; 75 stopped and saved, rerun to resume; anything else is
a bug or a hardware fault.
"""

import difflib
import errno
import os
import sys
import traceback
from typing import NoReturn

from bert_jax import console, version
from bert_jax.activity import activity
from bert_jax.errors import BadInput, DeviceFault, as_started, is_exhausted
from bert_jax.runtime import versions
from bert_jax.runtime.stopping import EXIT_BAD_INPUT, EXIT_RUN_AGAIN, leave

try:
    from bert_jax.cli.commands import COMMAND_GROUPS, COMMANDS
    from bert_jax.cli.flags import asks_for_json, describe, parse
    from bert_jax.cli.topics import explain, help_command
    from bert_jax.json_files import DamagedJson
except ModuleNotFoundError:
    try:
        versions.check(versions.requirements())
    except BadInput as error:
        console.say_anywhere(f'bert_jax: {error}')
        sys.exit(EXIT_BAD_INPUT)
    raise

EXIT_FAULT = 1
_FIRST_STEPS = """

First steps, on Python's own documentation:
  bert-jax prepare --config=demo.py
  bert-jax train --config=demo.py --workdir=runs/demo
  bert-jax fill-mask --model=runs/demo "the [MASK] of the file"

More help:
  bert-jax COMMAND --help
  bert-jax help TOPIC        a command, or the configuration: config, config.data, config.data.pairing, finetune-config

Exit status: 0 done; 2 bad input, see the message; 75 stopped and saved, rerun to resume; other: bug or hardware fault\
"""
_UNUSABLE_PATH = frozenset(
    {
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EBUSY,
        errno.ELOOP,
        errno.EXDEV,
    }
)


def start() -> NoReturn:
    """Runs the command that the arguments of the program name, and exits with its status.

    `bert-jax` starts here. As with `python -m bert_jax`, config files can import modules of the current directory.
    """
    console.open_streams()
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    leave(main(sys.argv))


def main(argv: list[str]) -> int:
    """Runs one command.

    Args:
      argv: the name of the program, the command, and its arguments.

    Returns:
      The exit status. Bad input is reported on standard error, and with `--json` also on standard output; a bug or a
      hardware fault raises.
    """
    if len(argv) < 2:
        console.print_text(_overview())
        return EXIT_BAD_INPUT
    if argv[1:] in (['help'], ['-h'], ['--help']):
        console.print_text(_overview())
        return 0
    if argv[1] in ('version', '--version'):
        console.print_text(f'bert_jax {version.__version__}')
        return 0
    name, arguments = argv[1], argv[2:]
    console.expect_json(asks_for_json(arguments))
    try:
        if name == 'help':
            console.print_text(explain(arguments[0]))
            return 0
        return _run(name, arguments)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if (explained := _explained(name, error)) is None:
            message = ''.join(traceback.format_exception_only(error)).strip()
            console.print_json_error(BadInput(name, message, fix='see the traceback on standard error').as_json())
            raise
        reported, status = explained
        reported.fix = reported.fix or as_started(help_command(name, reported.where))
        console.fail(f'bert_jax: {reported}', reported.as_json())
        return status


def _explained(name: str, error: BaseException) -> tuple[BadInput, int] | None:
    """Returns what to report for an error, and the exit status; None for a bug."""
    match error:
        case DeviceFault():
            return error, EXIT_FAULT
        case BadInput():
            return error, EXIT_BAD_INPUT
        case DamagedJson():
            damaged = BadInput(error.path, str(error), 'the file as it was written', 'restore it, or delete it')
            return damaged, EXIT_BAD_INPUT
        case OSError() if error.errno in _UNUSABLE_PATH:
            return _unusable_path(error), EXIT_BAD_INPUT
        case MemoryError() | RuntimeError() if is_exhausted(error):
            return _out_of_memory(name, error), EXIT_BAD_INPUT
        case KeyboardInterrupt():
            return BadInput(name, 'was interrupted', fix='rerun the same command'), EXIT_RUN_AGAIN
    return None


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = ['bert-jax COMMAND [--config=FILE.py[:VARIANT]] [--workdir=DIR] [--config.FIELD=VALUE …]']
    for group, commands in COMMAND_GROUPS.items():
        lines += ['', f'{group}:', *(f'  {command.name:{width}}  {command.summary}' for command in commands)]
    return as_started('\n'.join(lines) + _FIRST_STEPS)


def _run(name: str, arguments: list[str]) -> int:
    """Runs a command by its name, or prints its help; returns the exit status."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        fix = f'did you mean {near[0]}?' if near else 'bert-jax --help'
        raise BadInput(name, 'is not a command', ', '.join(COMMANDS), fix)
    command = COMMANDS[name]
    if '--help' in arguments or '-h' in arguments:
        console.print_text(describe(command))
        return 0
    _check_packages(name, arguments)
    values, rest = parse(command, arguments)
    with activity(name):
        return command.run(values, rest)


def _check_packages(name: str, arguments: list[str]) -> None:
    """Checks the versions of installed packages; `prepare --beam` runs in an environment without jax."""
    if name == 'prepare' and any(argument.startswith('--beam') for argument in arguments):
        install = 'pip install -r requirements-beam.txt in a separate environment'
        versions.check(versions.beam_requirements(), install)
    else:
        versions.check(versions.requirements())


def _unusable_path(error: OSError) -> BadInput:
    path = error.filename or 'the disk'
    expected = 'a path with free space and permission to use it'
    return BadInput(
        str(path), f'cannot be used ({error.strerror})', expected, 'fix its permissions, or use another path'
    )


def _out_of_memory(name: str, error: MemoryError | RuntimeError) -> BadInput:
    reason = (str(error).splitlines() or ['out of memory'])[0][:200]
    return BadInput(
        name,
        f'does not fit into memory ({reason})',
        'a smaller model or batch, more train.microbatches, or more devices to split over',
        'bert-jax plan --target=here --config=… shows what fits',
    )


if __name__ == '__main__':
    console.open_streams()
    leave(main(sys.argv))
