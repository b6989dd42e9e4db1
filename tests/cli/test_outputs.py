"""Lost messages never end a run, a lost result is an error, and `--json` prints exactly one object."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from bert_jax.__main__ import main
from bert_jax.cli.commands import COMMANDS
from bert_jax.cli.flags import Command, Flag, asks_for_json, command_to_paste, print_result
from tests.support.configs import as_flags, prepared
from tests.support.processes import command, environment
from tests.support.runs import metrics


@pytest.mark.slow
@pytest.mark.processes
def test_run_finishes_even_if_its_output_is_lost(tmp_path: Path) -> None:
    flags = as_flags(prepared(tmp_path, train__examples=(), train__evaluate_every=0))
    for index, redirected in enumerate(('> /dev/full 2>&1', '<&- >&- 2>&-', '2>&1 | head -1')):
        workdir = tmp_path / str(index)
        train = shlex.join(command('train', *flags, f'--workdir={workdir}', '--json'))
        shell = f'set -o pipefail; {train} {redirected}'
        assert subprocess.run(['bash', '-c', shell], env=environment(), timeout=300).returncode == 0
        assert max(metrics(workdir)) == 12 and (workdir / 'checkpoints' / '12' / 'manifest.json').exists()


@pytest.mark.parametrize('is_in_files', [False, True])
def test_lost_result_is_an_error_unless_in_files(
    is_in_files: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run(values: object, _: object) -> int:
        print_result(values, {'a': 1}, 'a', is_in_files=is_in_files)
        return 0

    monkeypatch.setitem(COMMANDS, 'bench', Command('bench', run, '', '', ()))
    monkeypatch.setattr('bert_jax.console._lost', lambda _: 'No space left on device')
    assert main(['bert-jax', 'bench']) == (0 if is_in_files else 2)
    assert 'standard output: could not be written (No space left on device)' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'asks'),
    [
        (['--json'], True),
        (['-json'], True),
        (['--json=true', '--bad=flag'], True),
        (['--nojson'], False),
        (['--json=False'], False),
        (['--json', '--nojson'], False),
        (['--', '--json'], False),
        (['json', '--jsonl'], False),
    ],
)
def test_json_flag_is_recognized_in_invalid_arguments(arguments: list[str], asks: bool) -> None:
    assert asks_for_json(arguments) is asks


@pytest.mark.parametrize(
    ('arguments', 'where', 'status'),
    [
        (['trian', '--json'], 'trian', 2),
        (['train', '--json', '--workdri=x'], '--workdri', 2),
        (['train', '--json'], '--workdir', 2),
        (['doctor', '--json', '--config=no/such.py'], '--config', 2),
        (['evaluate', '--json', '--workdir=no/such'], 'no/such', 2),
    ],
)
def test_failure_with_json_is_one_json_object(
    arguments: list[str], where: str, status: int, capsys: pytest.CaptureFixture
) -> None:
    assert main(['bert-jax', *arguments]) == status
    out, err = capsys.readouterr()
    error = json.loads(out)['error']
    assert error.keys() == {'where', 'found', 'expected', 'mend'} and where in error['where']
    assert all(value in err for value in error.values())
    assert main(['bert-jax', *(argument for argument in arguments if argument != '--json')]) == status
    assert not capsys.readouterr().out


def test_bug_with_json_prints_one_object_and_raises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run(values: object, _: object) -> int:
        if values.first:
            print_result(values, {'a': 1}, '')
        raise ValueError('a bug')

    first = Flag('first', 'prints first', default='')
    monkeypatch.setitem(COMMANDS, 'bench', Command('bench', run, '', '', (first,)))
    with pytest.raises(ValueError, match='a bug'):
        main(['bert-jax', 'bench', '--json'])
    error = json.loads(capsys.readouterr().out)['error']
    assert (error['where'], error['found']) == ('bench', 'ValueError: a bug')
    with pytest.raises(ValueError, match='a bug'):
        main(['bert-jax', 'bench', '--json', '--first=yes'])
    assert json.loads(capsys.readouterr().out) == {'a': 1}


def test_exit_by_signal_with_json_prints_one_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run(*_: object) -> int:
        raise SystemExit(143)

    monkeypatch.setitem(COMMANDS, 'bench', Command('bench', run, '', '', ()))
    with pytest.raises(SystemExit, match='143'):
        main(['bert-jax', 'bench', '--json'])
    assert json.loads(capsys.readouterr().out)['error']['found'] == 'SystemExit: 143'


def test_version_is_printed(capsys: pytest.CaptureFixture) -> None:
    from bert_jax import __version__

    assert main(['bert-jax', '--version']) == main(['bert-jax', 'version']) == 0
    assert capsys.readouterr().out == f'bert_jax {__version__}\n' * 2


def test_suggested_command_is_quoted_for_the_shell(tmp_path: Path) -> None:
    workdir = f"{tmp_path}/it's my [1] run"
    assert shlex.split(command_to_paste('export', workdir=workdir))[3:] == ['export', f'--workdir={workdir}']
    assert command_to_paste('export', workdir='runs/a@3') == 'python -m bert_jax export --workdir=runs/a@3'
