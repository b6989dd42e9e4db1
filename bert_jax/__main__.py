"""The command line: python -m bert_jax COMMAND [--config=FILE.py[:VARIANT]] [--workdir=DIR] [--config.a.b=VALUE …]

Exit status: 0 done; 2 bad input, explained in a message; 75 stopped and saved, rerun to resume; anything else a fault.
"""

import difflib
import errno
import os
import sys
from typing import NoReturn

from bert_jax.console import say_anywhere
from bert_jax.errors import BadInput, DeviceFault, is_exhausted
from bert_jax.runtime import versions
from bert_jax.runtime.stopping import EXIT_BAD_INPUT, EXIT_RUN_AGAIN, leave

try:
    from bert_jax.cli.commands import COMMANDS
    from bert_jax.cli.flags import describe, parse
    from bert_jax.files import DamagedJson
except ModuleNotFoundError:
    try:
        versions.check(versions.requirements())
    except BadInput as error:
        say_anywhere(f'bert_jax: {error}')
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
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    leave(main(sys.argv))


def main(argv: list[str]) -> int:
    """Runs one command.

    Args:
      argv: the program's name, the command, and its arguments.

    Returns:
      The exit status. Bad input is reported on standard error; a fault raises.
    """
    if len(argv) < 2:
        print(_overview())
        return EXIT_BAD_INPUT
    if argv[1] in ('help', '-h', '--help'):
        print(_overview())
        return 0
    name, arguments = argv[1], argv[2:]
    try:
        return _run(name, arguments)
    except DeviceFault as error:
        _report(error)
        return EXIT_FAULT
    except BadInput as error:
        _report(error)
        return EXIT_BAD_INPUT
    except DamagedJson as error:
        _report(BadInput(error.path, str(error), 'the file as it was written', 'restore it, or delete it'))
        return EXIT_BAD_INPUT
    except OSError as error:
        if error.errno not in _UNUSABLE_PATH:
            raise
        _report(_unusable_path(error))
        return EXIT_BAD_INPUT
    except (MemoryError, RuntimeError) as error:
        if not is_exhausted(error):
            raise
        _report(_out_of_memory(name, error))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        say_anywhere('bert_jax: interrupted before training began; rerun the same command to start again.')
        return EXIT_RUN_AGAIN


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f'  {name:{width}}  {command.summary}' for name, command in COMMANDS.items()]
    return '\n'.join([str(__doc__), *lines, '', 'python -m bert_jax COMMAND --help describes a command and its flags.'])


def _run(name: str, arguments: list[str]) -> int:
    """Runs a command by its name, or prints its help; returns the exit status."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        suggestion = f'did you mean {near[0]}?' if near else 'python -m bert_jax --help'
        raise BadInput(name, 'is not a command', ', '.join(COMMANDS), suggestion)
    command = COMMANDS[name]
    if '--help' in arguments or '-h' in arguments:
        print(describe(command))
        return 0
    _check_packages(name, arguments)
    values, rest = parse(command, arguments)
    return command.run(values, rest)


def _check_packages(name: str, arguments: list[str]) -> None:
    """Checks the installed packages; `prepare --beam` runs in an environment without jax."""
    if name == 'prepare' and any(argument.startswith('--beam') for argument in arguments):
        install = 'pip install -r requirements-beam.txt in a separate environment'
        versions.check(versions.requirements_of_beam(), install)
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


def _report(error: BadInput) -> None:
    say_anywhere(f'bert_jax: {error}')


if __name__ == '__main__':
    leave(main(sys.argv))
