"""The command line: python -m bert_jax COMMAND [--config=FILE.py[:VARIANT]] [--workdir=DIR] [--config.a.b=VALUE …]

Exit status: 0 finished; 2 bad input, told in a message; 75 stopped and saved, run me again; anything else a fault.
"""

import difflib
import errno
import sys

from bert_jax.errors import BadInput, DeviceFault, is_exhausted
from bert_jax.runtime import versions
from bert_jax.runtime.stopping import EXIT_BAD_INPUT, EXIT_RUN_AGAIN, leave

try:
    from bert_jax.cli.commands import COMMANDS
    from bert_jax.cli.flags import describe, parse
except ModuleNotFoundError:
    try:
        versions.check(versions.requirements())
    except BadInput as error:
        sys.exit(print(f'bert_jax: {error}', file=sys.stderr) or EXIT_BAD_INPUT)
    raise

EXIT_FAULT = 1
_CANNOT_BE_USED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG}
_CANNOT_BE_USED |= {errno.ENOTDIR, errno.EISDIR}


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f'  {name:{width}}  {command.does}' for name, command in COMMANDS.items()]
    return '\n'.join([__doc__, *lines, '', 'python -m bert_jax COMMAND --help tells more.'])


def main(argv: list[str]) -> int:
    """Runs one command; returns its exit status."""
    if len(argv) < 2 or argv[1] in ('help', '-h', '--help'):
        print(_overview())
        return 0 if len(argv) > 1 else EXIT_BAD_INPUT
    name, arguments = argv[1], argv[2:]
    try:
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            mend = f'did you mean {near[0]}?' if near else 'python -m bert_jax --help'
            raise BadInput(name, 'is not a command', ', '.join(COMMANDS), mend)
        if '--help' in arguments or '-h' in arguments:
            print(describe(COMMANDS[name]))
            return 0
        if name == 'prepare' and any(argument.startswith('--beam') for argument in arguments):
            versions.check(
                versions.requirements_of_beam(), 'pip install -r requirements-beam.txt into an environment of its own'
            )
        else:
            versions.check(versions.requirements())
        values, rest = parse(COMMANDS[name], arguments)
        return COMMANDS[name].run(values, rest)
    except BadInput as error:
        print(f'bert_jax: {error}', file=sys.stderr)
        return EXIT_FAULT if isinstance(error, DeviceFault) else EXIT_BAD_INPUT
    except OSError as error:
        if error.errno not in _CANNOT_BE_USED:
            raise
        place = error.filename or 'the disk'
        told = BadInput(str(place), f'cannot be used ({error.strerror})', 'a place with room, and the right to use it')
        print(f'bert_jax: {told}', file=sys.stderr)
        return EXIT_BAD_INPUT
    except (MemoryError, RuntimeError) as error:
        if not is_exhausted(error):
            raise
        told = BadInput(
            name,
            f'does not fit into memory ({(str(error).splitlines() or ["no room"])[0][:200]})',
            'a smaller model or batch, more train.microbatches, or more devices to split over',
            'python -m bert_jax plan --target=… says what fits',
        )
        print(f'bert_jax: {told}', file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print('bert_jax: interrupted before anything was trained; the same command starts again.', file=sys.stderr)
        return EXIT_RUN_AGAIN


if __name__ == '__main__':
    leave(main(sys.argv))
