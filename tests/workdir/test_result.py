"""A result is written where the user says, and is not lost if the workdir is not writable."""

import json
import os
import stat
from pathlib import Path

import pytest

from bert_jax.__main__ import main
from bert_jax.errors import BadInput
from bert_jax.workdir.result import check_output, save
from tests.support.pages import write_run


def _block(path: Path) -> None:
    """Makes a file unwritable, even for root."""
    (path / 'in the way').mkdir(parents=True)


def test_result_goes_to_the_workdir_or_to_output(tmp_path: Path, capsys) -> None:
    assert save('text', str(tmp_path), 'result.json') == tmp_path / 'result.json'
    assert save('other', str(tmp_path), 'result.json', str(tmp_path / 'elsewhere.json')) == tmp_path / 'elsewhere.json'
    assert (tmp_path / 'result.json').read_text() == 'text' and (tmp_path / 'elsewhere.json').read_text() == 'other'
    assert not capsys.readouterr().err


def test_unwritable_workdir_is_reported_and_unchanged(tmp_path: Path, capsys) -> None:
    _block(tmp_path / 'result.json')
    assert save('text', str(tmp_path), 'result.json') is None
    assert 'result.json could not be written' in (shown := capsys.readouterr().err) and '--output=FILE' in shown
    assert os.listdir(tmp_path) == ['result.json']


def test_unwritable_output_is_rejected_before_the_work(tmp_path: Path) -> None:
    check_output('')
    check_output(str(tmp_path / 'new.json'))
    for output, words in ((tmp_path, 'is a directory'), (tmp_path / 'none' / 'new.json', 'is not a directory')):
        with pytest.raises(BadInput, match=words):
            check_output(str(output))
    assert not os.listdir(tmp_path)


def test_report_prints_a_run_with_an_unwritable_workdir(tmp_path: Path, capsys) -> None:
    workdir = Path(write_run(tmp_path / 'run'))
    _block(workdir / 'report.html')
    before = {path: stat.S_IFMT(path.stat().st_mode) for path in tmp_path.rglob('*')}
    assert main(['bert_jax', 'report', f'--workdir={workdir}']) == 0
    shown = capsys.readouterr()
    assert 'step' in shown.out and 'Wrote' not in shown.out and 'could not be written' in shown.err
    assert {path: stat.S_IFMT(path.stat().st_mode) for path in tmp_path.rglob('*')} == before
    output = tmp_path / 'page.html'
    assert main(['bert_jax', 'report', f'--workdir={workdir}', f'--output={output}', '--json']) == 0
    assert json.loads(capsys.readouterr().out) == {'report': str(output)}
    assert '<svg' in output.read_text()
