"""Lines for people reach standard error, from one process, whatever else is going on."""

import ast
import subprocess
import sys
import types
from pathlib import Path

import pytest
from tqdm import tqdm

from bert_jax import console

ROOT = Path(__file__).parents[1]


def test_only_process_zero_says_and_any_process_can(monkeypatch, capsys) -> None:
    state = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0))
    monkeypatch.setitem(sys.modules, 'jax._src.distributed', state)
    for rank in (0, 3):
        state.global_state.process_id = rank
        assert console.process_index() == rank
        console.say(f'said by {rank}')
        console.say_anywhere(f'printed by {rank}')
    out, err = capsys.readouterr()
    assert not out and err == 'said by 0\nprinted by 0\nprinted by 3\n'


def test_the_rank_is_where_jax_keeps_it() -> None:
    import jax
    from jax._src import distributed

    assert isinstance(distributed.global_state.process_id, int)
    assert console.process_index() == jax.process_index() == 0


@pytest.mark.processes
def test_a_line_is_printed_without_any_other_package() -> None:
    program = "import sys; from bert_jax import console; console.say('a line'); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == 'a line\n' and not {'jax', 'tqdm'} & {*ast.literal_eval(done.stdout)}


def test_only_the_console_looks_into_jax() -> None:
    sources = {path.name: path.read_text() for path in (ROOT / 'bert_jax').rglob('*.py')}
    assert [name for name, text in sources.items() if 'jax._src' in text] == ['console.py']


def test_a_line_goes_above_a_progress_bar(capsys) -> None:
    with tqdm(total=2, file=sys.stderr, mininterval=0) as bar:
        bar.update(1)
        console.say('a line')
    assert any(line.strip() == 'a line' for line in capsys.readouterr().err.replace('\r', '\n').split('\n'))


def test_a_reader_that_has_exited_is_no_error(monkeypatch) -> None:
    class Broken:
        def write(self, _: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, 'stderr', Broken())
    console.say('a line')
    console.say_anywhere('a line')


@pytest.mark.parametrize(
    ('num_bytes', 'text'),
    [(0, '0.00 MiB'), (2**20, '1.00 MiB'), (2**29, '0.50 GiB'), (-(2**31), '-2.00 GiB'), (2**50, '1,048,576.00 GiB')],
)
def test_sizes(num_bytes: float, text: str) -> None:
    assert console.size(num_bytes) == text


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
def test_durations(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text
