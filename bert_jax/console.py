"""Everything that the program prints: lines for people, results, JSON, progress bars; sizes and durations in words.

Output is never worth a run. A full disk, a closed stream, a reader that has exited or an encoding without a character
loses text and raises nothing, here and, after `open_streams`, in whatever library prints. Text from files cannot steer
the terminal: control characters appear as escapes.

Nothing here imports another package or starts a backend: text is prepared where there is no jax, a missing package is
reported, and a process that is being stopped prints too.
"""

import contextlib
import errno
import io
import json
import os
import re
import select
import sys
import threading
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

# C0 without newline and tab, DEL, C1; directional embeddings, overrides and isolates; halves of surrogate pairs.
_UNPRINTABLE = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]')
_SECONDS_FOR_A_SLOW_READER = 1.0

# --- Lines on standard error. ---


def say(text: str) -> None:
    """Prints a line on standard error, above a progress bar; on process 0 only."""
    if process_index() == 0:
        say_anywhere(text)


def say_anywhere(text: str) -> None:
    """Prints a line on standard error, above a progress bar, on whatever process this is."""
    _print(printable(text), sys.stderr)


def progress_bar(*, shown: bool = True, **options: Any) -> 'tqdm':
    """A progress bar on standard error, for use as a context; disabled without a terminal and on processes but 0.

    Args:
      shown: False disables it too.
      options: of `tqdm`.
    """
    from tqdm import tqdm

    hidden = not (shown and process_index() == 0 and _is_terminal(sys.stderr))
    # The terminal of a container may have no size, and tqdm would draw nothing.
    has_size = hidden or min(os.get_terminal_size(sys.stderr.fileno())) > 0
    shape: dict[str, Any] = {'dynamic_ncols': True} if has_size else {'ncols': 80, 'nrows': 24}
    return tqdm(file=sys.stderr or io.StringIO(), disable=hidden, **shape, **options)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


# --- Results on standard output. ---


class _JsonOutput:
    """Whether standard output is to hold one JSON object, and whether it does."""

    expected = written = False


_json_output = _JsonOutput()


def expect_json(expected: bool = True) -> None:
    """From now on `fail` writes a JSON object to standard output, unless one was written."""
    _json_output.expected, _json_output.written = expected, False


def print_text(text: str) -> str:
    """Prints a result on standard output; returns why it could not be written, '' if it was or nobody reads it."""
    _print(printable(text), sys.stdout)
    return _lost(sys.stdout)


def print_json(value: Any) -> str:
    """Prints a result on standard output as one line of JSON; returns what `print_text` does."""
    _json_output.written = True
    text = json_text(value)
    try:
        text.encode(getattr(sys.stdout, 'encoding', None) or 'utf-8')
    except UnicodeEncodeError:
        text = json_text(value, ensure_ascii=True)
    return print_text(text)


def fail(text: str, as_json: Mapping[str, str]) -> None:
    """Reports why the program ends: on standard error, and where JSON is expected as {"error": …} on standard output.

    Args:
      as_json: where, found, expected and mend (how to fix it), as `BadInput.as_json` has them.
    """
    _print(_highlighted(printable(text)), sys.stderr)
    print_json_error(as_json)


def _highlighted(error: str) -> str:
    """An error with its first line in red and the label of its fix in bold, on a terminal that shows colours."""
    if not _is_terminal(sys.stderr) or os.environ.get('NO_COLOR') or os.environ.get('TERM') == 'dumb':
        return error
    first, *others = error.split('\n')
    others = [re.sub('^  fix:', '  \x1b[1mfix:\x1b[0m', line) for line in others]
    return '\n'.join([f'\x1b[31m{first}\x1b[0m', *others])


def print_json_error(as_json: Mapping[str, str]) -> None:
    """Writes {"error": …} to standard output if that is to hold one JSON object, and holds none yet."""
    if _json_output.expected and not _json_output.written and process_index() == 0:
        print_json({'error': dict(as_json)})


def json_text(value: Any, *, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """`value` as JSON in readable Unicode; control characters are escaped as JSON has it."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)
    return _UNPRINTABLE.sub(lambda found: f'\\u{ord(found[0]):04x}', text)  # they occur in strings only


def printable(text: str) -> str:
    r"""`text` with escapes such as `\x1b` for what would steer a terminal or reorder a line; the rest as it is."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode('unicode_escape').decode(), text)


def _print(text: str, stream: TextIO | None) -> None:
    if stream is None:  # closed before the program began
        return
    encoding = getattr(stream, 'encoding', None) or 'utf-8'
    text = text.encode(encoding, 'backslashreplace').decode(encoding)
    # A full disk, an exited reader, a closed stream: the run must still save.
    with contextlib.suppress(OSError, ValueError):
        if 'tqdm' in sys.modules:  # else there is no progress bar
            from tqdm import tqdm

            tqdm.write(text, file=stream)
        else:
            print(text, file=stream)
        stream.flush()


# --- Streams that cannot fail. ---


class _Surviving(io.FileIO):
    """Writes to a file descriptor; what cannot be written is dropped, so that nothing above it raises.

    Attributes:
      lost: why something was dropped; '' if nothing was, or only because the reader exited.
      is_read: False once the reader has exited.
    """

    lost, is_read = '', True

    def write(self, data: Any, /) -> int:
        """Writes bytes, or drops them; returns how many are dealt with."""
        try:
            written = super().write(data)
            if written is None:  # the descriptor does not block, and its reader is slow
                select.select([], [self], [], _SECONDS_FOR_A_SLOW_READER)
                written = super().write(data)
        except OSError as error:
            if error.errno == errno.EPIPE:
                self.is_read = False
            else:
                self.lost = error.strerror or str(error)
            return len(data)
        if written is None:
            self.lost = 'its reader is too slow'
            return len(data)
        return written


def open_streams() -> None:
    """Makes the standard streams of this program survive everything, for libraries and at its end too.

    To be called once, before a file is opened: a closed descriptor would be given to the next file that is opened, and
    libraries in C++ would log into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free, so this one
    sys.stdout, sys.stderr = _surviving(1, sys.stdout), _surviving(2, sys.stderr)
    sys.excepthook = _print_exception
    threading.excepthook = lambda failed: _print_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)


def flush() -> None:
    """Writes what is buffered of the standard streams."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # None: closed before the program began
            stream.flush()


def _surviving(descriptor: int, replaced: TextIO | None) -> TextIO:
    buffered = io.BufferedWriter(_Surviving(descriptor, 'w', closefd=False))
    is_unbuffered = getattr(replaced, 'write_through', False)  # PYTHONUNBUFFERED
    return io.TextIOWrapper(
        buffered,
        encoding=getattr(replaced, 'encoding', 'utf-8'),
        errors='backslashreplace',
        newline='\n',
        line_buffering=is_unbuffered or getattr(replaced, 'line_buffering', False),
        write_through=is_unbuffered,
    )


def _lost(stream: Any) -> str:
    return getattr(_raw(stream), 'lost', '')


def output_is_read() -> bool:
    """Whether somebody may still read standard output; False once its reader was found to have exited."""
    return getattr(_raw(sys.stdout), 'is_read', True)


def _raw(stream: Any) -> Any:
    return getattr(getattr(stream, 'buffer', None), 'raw', None)


def _print_exception(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    say_anywhere(''.join(traceback.format_exception(kind, error, trace)).rstrip('\n'))


# --- Processes. ---


def process_index() -> int:
    """Rank of this process among those of its run, 0 if it is alone; `jax.process_index()` would start a backend."""
    state = distributed_state()
    return state.process_id if state else 0


def distributed_state() -> Any | None:
    """What `jax.distributed.initialize` stored: `process_id`, and the coordinator's `client`; None without jax.

    jax has no public name for it: this is the only place that looks.
    """
    module = sys.modules.get('jax._src.distributed')
    return module.global_state if module else None


# --- Words. ---


def quantity(count: int, noun: str, plural: str = '') -> str:
    """A count with its noun in the right number: '1 chunk', '2,000 chunks'; `plural` is the noun plus 's' if empty."""
    return f'{count:,} {noun if count == 1 else plural or noun + "s"}'


def size(num_bytes: float) -> str:
    """Bytes in MiB or GiB: '512.00 MiB'."""
    return f'{num_bytes / 2**30:,.2f} GiB' if abs(num_bytes) >= 2**30 / 10 else f'{num_bytes / 2**20:,.2f} MiB'


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best: '3.5 ms', '12.00 s', '5.0 minutes', '7.5 hours', '3.0 days'."""
    if seconds < 1:
        return f'{seconds * 1e3:.1f} ms'
    if seconds < 120:
        return f'{seconds:.2f} s'
    if seconds < 3600:
        return f'{seconds / 60:.1f} minutes'
    return f'{seconds / 3600:.1f} hours' if seconds < 2 * 86400 else f'{seconds / 86400:.1f} days'
