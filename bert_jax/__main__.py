"""The command line: python -m bert_jax COMMAND [--config=FILE.py[:VARIANT]] [--workdir=DIR] [--config.a.b=VALUE …]

Exit status: 0 done; 2 bad input, explained in a message; 75 stopped and saved, rerun to resume; anything else a fault.
"""

import difflib
import errno
import os
import sys
import traceback
from typing import NoReturn

from bert_jax import console, version
from bert_jax.activity import activity
from bert_jax.errors import BadInput, DeviceFault, is_exhausted
from bert_jax.runtime import versions
from bert_jax.runtime.stopping import EXIT_BAD_INPUT, EXIT_RUN_AGAIN, leave

try:
    from bert_jax.cli.commands import COMMANDS
    from bert_jax.cli.flags import asks_for_json, describe, parse
    from bert_jax.cli.topics import explain
    from bert_jax.json_files import DamagedJson
except ModuleNotFoundError:
    try:
        versions.check(versions.requirements())
    except BadInput as error:
        console.say_anywhere(f'bert_jax: {error}')
        sys.exit(EXIT_BAD_INPUT)
    raise

EXIT_FAULT = 1
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
    """Runs the command that the program's arguments name, and ends the program with its exit status.

    `bert-jax` starts here. Like `python -m bert_jax`, it lets config files import modules of the current directory.
    """
    console.open_streams()
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    leave(main(sys.argv))


def main(argv: list[str]) -> int:
    """Runs one command.

    Args:
      argv: the program's name, the command, and its arguments.

    Returns:
      The exit status. Bad input is reported on standard error, and with `--json` on standard output; a fault raises.
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
            fault = BadInput(name, ''.join(traceback.format_exception_only(error)).strip(), 'no fault')
            console.print_json_error(fault.as_json())
            raise
        reported, status = explained
        console.fail(f'bert_jax: {reported}', reported.as_json())
        return status


def _explained(name: str, error: BaseException) -> tuple[BadInput, int] | None:
    """What to report of an error, and the exit status; None for a fault of the program."""
    match error:
        case DeviceFault():
            return error, EXIT_FAULT
        case BadInput():
            return error, EXIT_BAD_INPUT
        case DamagedJson():
            found = BadInput(error.path, str(error), 'the file as it was written', 'restore it, or delete it')
            return found, EXIT_BAD_INPUT
        case OSError() if error.errno in _UNUSABLE_PATH:
            return _unusable_path(error), EXIT_BAD_INPUT
        case MemoryError() | RuntimeError() if is_exhausted(error):
            return _out_of_memory(name, error), EXIT_BAD_INPUT
        case KeyboardInterrupt():
            again = 'rerun the same command to start again'
            return BadInput(name, 'was interrupted before training began', '', again), EXIT_RUN_AGAIN
    return None


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f'  {name:{width}}  {command.summary}' for name, command in COMMANDS.items()]
    return '\n'.join(
        [
            str(__doc__),
            *lines,
            '',
            'bert-jax COMMAND --help describes a command and its flags,',
            'bert-jax help config the configuration.',
        ]
    )


def _run(name: str, arguments: list[str]) -> int:
    """Runs a command by its name, or prints its help; returns the exit status."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        suggestion = f'did you mean {near[0]}?' if near else 'python -m bert_jax --help'
        raise BadInput(name, 'is not a command', ', '.join(COMMANDS), suggestion)
    command = COMMANDS[name]
    if '--help' in arguments or '-h' in arguments:
        console.print_text(describe(command))
        return 0
    _check_packages(name, arguments)
    values, rest = parse(command, arguments)
    with activity(name):
        return command.run(values, rest)


def _check_packages(name: str, arguments: list[str]) -> None:
    """Checks the installed packages; `prepare --beam` runs in an environment without jax."""
    if name == 'prepare' and any(argument.startswith('--beam') for argument in arguments):
        install = 'pip install -r requirements-beam.txt in a separate environment'
        versions.check(versions.beam_requirements(), install)
    else:
        versions.check(versions.requirements())


def _unusable_path(error: OSError) -> BadInput:
    path = error.filename or 'the disk'
    return BadInput(str(path), f'cannot be used ({error.strerror})', 'a path with free space and permission to use it')


def _out_of_memory(name: str, error: MemoryError | RuntimeError) -> BadInput:
    reason = (str(error).splitlines() or ['out of memory'])[0][:200]
    return BadInput(
        name,
        f'does not fit into memory ({reason})',
        'a smaller model or batch, more train.microbatches, or more devices to split over',
        'python -m bert_jax plan --target=… shows what fits',
    )


if __name__ == '__main__':
    console.open_streams()
    leave(main(sys.argv))
