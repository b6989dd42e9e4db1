"""Prints everything: messages, results, JSON and progress bars; formats sizes and durations.

Printing never ends a run. A full disk, a closed stream, a reader that has exited or an unsuitable encoding loses text
and raises nothing, both here and, after `open_streams`, in any library that prints. Control characters are printed as
escapes, so text from files cannot steer the terminal.

Nothing here imports a large package or starts a backend: messages must also appear in environments without jax, when
packages are missing, and while the process is being stopped.
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

# C0 without newline and tab, DEL, C1; directional embeddings, overrides and isolates; lone surrogates.
_UNPRINTABLE = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]')
_SECONDS_FOR_A_SLOW_READER = 1.0

# --- Lines on standard error. ---


def say(text: str) -> None:
    """Prints a line on standard error, above any progress bar; on process 0 only."""
    if process_index() == 0:
        say_anywhere(text)


def say_anywhere(text: str) -> None:
    """Prints a line on standard error, above any progress bar, on any process."""
    _print(printable(text), sys.stderr)


def progress_bar(*, shown: bool = True, **options: Any) -> 'tqdm':
    """Returns a progress bar on standard error, to use as a context; it shows only on a terminal and on process 0.

    Args:
      shown: False disables it as well.
      options: passed to `tqdm`.
    """
    from tqdm import tqdm

    hidden = not (shown and process_index() == 0 and _is_terminal(sys.stderr))
    # The terminal of a container may have size 0, in which tqdm draws nothing.
    has_size = hidden or min(os.get_terminal_size(sys.stderr.fileno())) > 0
    shape: dict[str, Any] = {'dynamic_ncols': True} if has_size else {'ncols': 80, 'nrows': 24}
    return tqdm(file=sys.stderr or io.StringIO(), disable=hidden, **shape, **options)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


# --- Results on standard output. ---


class _JsonOutput:
    """Whether standard output is to hold one JSON object, and whether it does so already."""

    expected = written = False


_json_output = _JsonOutput()


def expect_json(expected: bool = True) -> None:
    """Makes `fail` write a JSON object to standard output, unless one has been written."""
    _json_output.expected, _json_output.written = expected, False


def print_text(text: str) -> str:
    """Prints a result on standard output; returns why it was lost, or '' if it was written or its reader has exited."""
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
    """Reports why the program ends, on standard error; with `expect_json` also as {"error": …} on standard output.

    Args:
      text: may have colours added to it.
      as_json: as from `BadInput.as_json`.
    """
    _print(_highlighted(printable(text)), sys.stderr)
    print_json_error(as_json)


def _highlighted(error: str) -> str:
    """Returns an error with its first line red and the label of its fix bold, if standard error shows colours."""
    if not _is_terminal(sys.stderr) or os.environ.get('NO_COLOR') or os.environ.get('TERM') == 'dumb':
        return error
    first, *others = error.split('\n')
    others = [re.sub('^  fix:', '  \x1b[1mfix:\x1b[0m', line) for line in others]
    return '\n'.join([f'\x1b[31m{first}\x1b[0m', *others])


def print_json_error(as_json: Mapping[str, str]) -> None:
    """Writes {"error": …} to standard output if JSON is expected there and none has been written."""
    if _json_output.expected and not _json_output.written and process_index() == 0:
        print_json({'error': dict(as_json)})


def json_text(value: Any, *, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Returns `value` as JSON in readable Unicode, with control characters escaped."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)
    return _UNPRINTABLE.sub(lambda found: f'\\u{ord(found[0]):04x}', text)  # these occur only in strings


def printable(text: str) -> str:
    r"""Returns text with escapes such as `\x1b` for characters that steer a terminal or reorder a line."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode('unicode_escape').decode(), text)


def _print(text: str, stream: TextIO | None) -> None:
    if stream is None:  # it was closed before the program began
        return
    encoding = getattr(stream, 'encoding', None) or 'utf-8'
    text = text.encode(encoding, 'backslashreplace').decode(encoding)
    # A full disk, an exited reader or a closed stream must not keep the run from saving.
    with contextlib.suppress(OSError, ValueError):
        if 'tqdm' in sys.modules:  # otherwise there is no progress bar
            from tqdm import tqdm

            tqdm.write(text, file=stream)
        else:
            print(text, file=stream)
        stream.flush()


# --- Streams that cannot fail. ---


class _Surviving(io.FileIO):
    """Writes to a file descriptor and drops what cannot be written, so that no layer above raises.

    Attributes:
      lost: why data was dropped; '' if none was, or only because the reader has exited.
      is_read: False once the reader has exited.
    """

    lost, is_read = '', True

    def write(self, data: Any, /) -> int:
        """Writes or drops bytes; returns how many were written or dropped."""
        try:
            written = super().write(data)
            if written is None:  # the descriptor is non-blocking and its reader is slow
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
    """Makes writing to the standard streams of this program never fail, also in libraries and at exit.

    Call it once, before opening any file: the next file would get the number of a closed descriptor, and libraries in
    C++ would log into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number, which is this one
    sys.stdout, sys.stderr = _surviving(1, sys.stdout), _surviving(2, sys.stderr)
    sys.excepthook = _print_exception
    threading.excepthook = lambda failed: _print_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)


def flush() -> None:
    """Writes the buffers of the standard streams."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # None if it was closed before the program began
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
    """Returns False once a write has found that the reader of standard output has exited."""
    return getattr(_raw(sys.stdout), 'is_read', True)


def _raw(stream: Any) -> Any:
    return getattr(getattr(stream, 'buffer', None), 'raw', None)


def _print_exception(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    say_anywhere(''.join(traceback.format_exception(kind, error, trace)).rstrip('\n'))


# --- Processes. ---


def process_index() -> int:
    """Returns the rank of this process, 0 if it is the only one. `jax.process_index()` would start a backend."""
    state = distributed_state()
    return state.process_id if state else 0


def distributed_state() -> Any | None:
    """Returns what `jax.distributed.initialize` stored (`process_id`, `client` of the coordinator); None without jax.

    jax has no public name for it, so no other module may use it.
    """
    module = sys.modules.get('jax._src.distributed')
    return module.global_state if module else None


# --- Numbers with units. ---


def quantity(count: int, noun: str, plural: str = '') -> str:
    """Returns a count with its noun: '1 chunk', '2,000 chunks'; an empty `plural` means the noun plus 's'."""
    return f'{count:,} {noun if count == 1 else plural or noun + "s"}'


def short(number: float) -> str:
    """Returns a number with three digits and a suffix: '820', '1.05K', '32.8M', '4.72B', '1.72T'."""
    for suffix, unit in (('T', 1e12), ('B', 1e9), ('M', 1e6), ('K', 1e3)):
        if number >= 0.9995 * unit:
            return f'{number / unit:.3g}{suffix}'
    return f'{number:.0f}'


def size(num_bytes: float) -> str:
    """Returns bytes in MiB or GiB: '512.00 MiB'."""
    return f'{num_bytes / 2**30:,.2f} GiB' if abs(num_bytes) >= 2**30 / 10 else f'{num_bytes / 2**20:,.2f} MiB'


def duration(seconds: float) -> str:
    """Returns seconds in a readable unit: '3.5 ms', '12.00 s', '5.0 minutes', '7.5 hours', '3.0 days'."""
    if seconds < 1:
        return f'{seconds * 1e3:.1f} ms'
    if seconds < 120:
        return f'{seconds:.2f} s'
    if seconds < 3600:
        return f'{seconds / 60:.1f} minutes'
    return f'{seconds / 3600:.1f} hours' if seconds < 2 * 86400 else f'{seconds / 86400:.1f} days'
