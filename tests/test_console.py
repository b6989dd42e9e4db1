"""Messages reach standard error from one process, and printing never fails."""

import ast
import errno
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from tqdm import tqdm

from bert_jax import console
from tests.support.terminals import terminal_as_stderr

ROOT = Path(__file__).parents[1]


def test_messages_come_from_process_zero_unless_requested(monkeypatch, capsys) -> None:
    state = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0))
    monkeypatch.setitem(sys.modules, 'jax._src.distributed', state)
    for rank in (0, 3):
        state.global_state.process_id = rank
        assert console.process_index() == rank
        console.say(f'said by {rank}')
        console.say_anywhere(f'printed by {rank}')
    out, err = capsys.readouterr()
    assert not out and err == 'said by 0\nprinted by 0\nprinted by 3\n'


def test_rank_agrees_with_jax() -> None:
    import jax
    from jax._src import distributed

    assert isinstance(distributed.global_state.process_id, int)
    assert console.process_index() == jax.process_index() == 0


@pytest.mark.processes
def test_printing_imports_no_other_package() -> None:
    program = "import sys; from bert_jax import console; console.say('a line'); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == 'a line\n' and not {'jax', 'tqdm'} & {*ast.literal_eval(done.stdout)}


def test_only_the_console_uses_private_parts_of_jax() -> None:
    sources = {path.name: path.read_text() for path in (ROOT / 'bert_jax').rglob('*.py')}
    assert [name for name, text in sources.items() if 'jax._src' in text] == ['console.py']


def test_message_is_printed_above_a_progress_bar(capsys) -> None:
    with tqdm(total=2, file=sys.stderr, mininterval=0) as bar:
        bar.update(1)
        console.say('a line')
    assert any(line.strip() == 'a line' for line in capsys.readouterr().err.replace('\r', '\n').split('\n'))


@pytest.mark.parametrize('error', [BrokenPipeError(), OSError(errno.ENOSPC, 'full'), ValueError('closed file')])
def test_failing_standard_streams_raise_no_error(monkeypatch, error: Exception) -> None:
    class Broken:
        def write(self, _: str = '') -> int:
            raise error

        flush = write
        closed, isatty = False, staticmethod(bool)

    monkeypatch.setattr(sys, 'stderr', Broken())
    monkeypatch.setattr(sys, 'stdout', Broken())
    console.say('a line')
    console.print_json({'a': 1})
    console.flush()
    monkeypatch.setattr(sys, 'stderr', None)
    monkeypatch.setattr(sys, 'stdout', None)
    console.say('a line')
    console.print_text('a result')
    console.flush()
    with console.progress_bar(total=2) as bar:
        bar.update(1)


_PRINTS_IN_EVERY_WAY = """
import ctypes, logging, sys, warnings
from bert_jax import console
console.open_streams()
from absl import logging as absl_logging
from tqdm import tqdm
for _ in range(2):
    print('é ▁ 😀' * 20_000)
    sys.stdout.flush()
    console.say('é ▁ 😀')
    console.print_json({'é': '▁'})
    logging.warning('é ▁')
    absl_logging.error('é ▁')
    warnings.warn('é ▁')
    list(tqdm(range(3), desc='é'))
    with console.progress_bar(total=2) as bar:
        bar.update(2)
ctypes.CDLL(None).write(2, b'as a library in C++ logs', 24)
with open(sys.argv[1], 'w') as file:
    assert file.fileno() > 2
    file.write('done')
print('not flushed')
ENDS
"""
_ENDS = {
    'leave': ('from bert_jax.runtime.stopping import leave; leave(7)', 7),
    'exit': ('sys.exit(7)', 7),
    'fault': ('raise RuntimeError("é ▁")', 1),
}


@pytest.mark.processes
@pytest.mark.parametrize(
    ('redirected', 'variables', 'ending'),
    [
        ('> /dev/full', {}, 'leave'),
        ('> /dev/full', {}, 'exit'),
        ('2> /dev/full', {}, 'fault'),
        ('> /dev/full 2>&1', {'PYTHONUNBUFFERED': '1'}, 'leave'),
        ('>&-', {}, 'exit'),
        ('2>&-', {}, 'fault'),
        ('<&- >&- 2>&-', {}, 'leave'),
        ('2>&1 | true', {}, 'exit'),
        ('> /dev/null 2>&1', {'PYTHONIOENCODING': 'ascii'}, 'fault'),
        ('> /dev/null 2>&1', {'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0', 'PYTHONUTF8': '0'}, 'leave'),
    ],
)
def test_lost_output_never_changes_the_exit_status(
    redirected: str, variables: dict[str, str], ending: str, tmp_path: Path
) -> None:
    ends, expected = _ENDS[ending]
    program, done = tmp_path / 'program.py', tmp_path / 'done'
    program.write_text(_PRINTS_IN_EVERY_WAY.replace('ENDS', ends))
    shell = f'set -o pipefail; {sys.executable} {program} {done} {redirected}'
    env = os.environ | {'PYTHONPATH': str(ROOT)} | variables
    ended = subprocess.run(['bash', '-c', shell], env=env, timeout=60, capture_output=True)
    assert ended.returncode == expected and done.read_text() == 'done', ended.stderr.decode()


def test_slow_reader_loses_lines_but_blocks_nothing(monkeypatch) -> None:
    monkeypatch.setattr(console, '_SECONDS_FOR_A_SLOW_READER', 0.01)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        stream = console._surviving(writing, sys.stdout)
        for _ in range(3):
            stream.write('x' * 100_000)
            stream.flush()
        assert console._lost(stream) == 'its reader is too slow' and os.read(reading, 10) == b'x' * 10
    finally:
        os.close(reading)
        os.close(writing)


def test_exited_reader_of_standard_output_is_noticed(monkeypatch) -> None:
    reading, writing = os.pipe()
    try:
        monkeypatch.setattr(sys, 'stdout', console._surviving(writing, sys.stdout))
        assert console.print_text('a result') == '' and console.output_is_read()
        os.close(reading)
        assert console.print_text('another') == '' and not console.output_is_read()
    finally:
        os.close(writing)


@pytest.mark.parametrize(('rows', 'columns'), [(0, 0), (0, 70), (20, 70)])
def test_bar_is_shown_in_terminals_of_any_size(rows: int, columns: int) -> None:
    with terminal_as_stderr(rows, columns) as shown, console.progress_bar(total=2, mininterval=0) as bar:
        bar.update(1)
    assert '| 1/2 [' in shown[0]


STEERING = [*map(chr, [*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)])]


def test_printed_text_never_steers_the_terminal(capsys) -> None:
    text = 'kept:\t\n é ▁ 😀 שלום ' + ''.join(STEERING) + '\udc9b'
    console.say(text)
    console.print_text(text)
    console.print_json({text: text})
    console.fail(text, {})
    out, err = capsys.readouterr()
    assert not {*STEERING, '\udc9b'} & {*out, *err} and 'kept:\t\n é ▁ 😀 שלום \\x00' in out and r'\x1b' in err
    assert json.loads(out.splitlines()[-1]) == {text: text}
    assert json.loads(console.json_text({text: [text]}, indent=2)) == {text: [text]}


def test_json_is_valid_in_every_encoding(monkeypatch) -> None:
    for encoding in ('ascii', 'latin-1', 'utf-8'):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, 'stdout', stream)
        console.print_json({'é ▁ 😀 \x1b\x9b\x7f': '\ud800'})
        assert json.loads(stream.buffer.getvalue().decode(encoding)) == {'é ▁ 😀 \x1b\x9b\x7f': '\ud800'}


def test_failure_is_the_only_json_object_if_expected(capsys) -> None:
    console.expect_json()
    console.fail('first', {'where': 'a'})
    console.fail('second', {'where': 'b'})
    console.expect_json(False)
    console.fail('third', {'where': 'c'})
    out, err = capsys.readouterr()
    assert json.loads(out) == {'error': {'where': 'a'}} and err == 'first\nsecond\nthird\n'


def _printing_calls(tree: ast.AST) -> list[int]:
    """Returns the lines that print without the console."""
    found = []
    for node in ast.walk(tree):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ''
        parts = called.split('.')
        prints = called in ('print', 'input') or parts[0] in ('tqdm', 'trange') and parts[-1] != 'format_interval'
        writes = parts[-1] in ('write', 'writelines', 'isatty') and 'std' in called
        if prints or writes or parts[-1] in ('print_exc', 'print_exception', 'print_stack', 'pprint'):
            found.append(node.lineno)
    return found


def test_only_the_console_prints() -> None:
    for text in (
        'print(1)',
        'sys.stderr.write(a)',
        'tqdm.tqdm(a)',
        'tqdm(a)',
        'tqdm.write(a)',
        'traceback.print_exc()',
    ):
        assert _printing_calls(ast.parse(text)), text
    sources = {path.relative_to(ROOT): path.read_text() for path in (ROOT / 'bert_jax').glob('**/*.py')}
    own = {ROOT / 'bert_jax' / 'console.py', *(ROOT / 'bert_jax' / 'launch').glob('*.py')}  # scripts to be copied
    found = {
        str(path): lines
        for path, text in sources.items()
        if ROOT / path not in own and (lines := _printing_calls(ast.parse(text)))
    }
    assert len(sources) > 100 and not found


@pytest.mark.parametrize(
    ('num_bytes', 'text'),
    [(0, '0.00 MiB'), (2**20, '1.00 MiB'), (2**29, '0.50 GiB'), (-(2**31), '-2.00 GiB'), (2**50, '1,048,576.00 GiB')],
)
def test_sizes_are_printed_in_mib_or_gib(num_bytes: float, text: str) -> None:
    assert console.size(num_bytes) == text


@pytest.mark.parametrize(
    'arguments, text',
    [((1, 'chunk'), '1 chunk'), ((0, 'chunk'), '0 chunks'), ((2000, 'batch', 'batches'), '2,000 batches')],
)
def test_nouns_agree_with_their_counts(arguments: tuple, text: str) -> None:
    assert console.quantity(*arguments) == text


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [
        (0.0351, '35.1 ms'),
        (1, '1.00 s'),
        (119.5, '119.50 s'),
        (150, '2.5 minutes'),
        (2 * 3600, '2.0 hours'),
        (47 * 3600, '47.0 hours'),
        (84 * 3600, '3.5 days'),
    ],
)
def test_durations_are_printed_in_readable_units(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text
