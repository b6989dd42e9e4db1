"""Bad input is reported with exit status 2 and a fix, before anything is written."""

from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.configs import as_flags, prepared
from tests.support.processes import ROOT

DEMO = f'--config={ROOT}/configs/demo.py'


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['trian'], 'did you mean train?'),
        (['train', '--workdri=x'], 'did you mean --workdir?'),
        (['train', '--workdir=no/such'], 'config.json'),
        (['prepare'], '--config'),
        (['prepare', '--config=no/such.py'], 'no/such.py'),
        (['train', DEMO, '--workdir=x', '--config.train.stepz=3'], 'config.train.steps'),
        (['train', DEMO, '--workdir=x', '--config.train.steps=many'], 'train.steps'),
        (['train', f'--config={ROOT}/configs/bert.py:huge', '--workdir=x'], 'huge'),
        (['train', DEMO, '--workdir=x', '--config.data.corpus=no/such'], 'no/such'),
        (['fill-mask', '--model=no/such', 'a [MASK]'], 'no/such'),
        (['evaluate'], '--workdir'),
        (['report'], '--workdir'),
        (['report', '--workdir=a\\b'], 'backslash'),
        (['train', DEMO, '--workdir=store://x'], 'none of gs://'),
        (['evaluate', '--workdir=az://x/y'], '--workdir=az://x/y: cannot be opened'),  # its package is not installed
    ],
)
def test_bad_input_exits_2_with_fix_and_writes_nothing(
    arguments: list[str], words: str, tmp_path: Path, capsys
) -> None:
    assert run(arguments, tmp_path) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope='module')
def settings(tmp_path_factory) -> list[str]:
    return as_flags(prepared(tmp_path_factory.mktemp('refused')))


@pytest.mark.parametrize(
    'change, words',
    [
        ({'train.global_batch_size': 12}, 'for example 8 or 16'),
        ({'mesh.tensor': 4}, 'one of 1, 2'),
        ({'mesh.data': 3}, 'there are 8 devices'),
    ],
)
def test_impossible_mesh_is_rejected_with_possible_ones(
    settings: list[str], tmp_path: Path, change: dict, words: str, capsys
) -> None:
    overrides = [f'--config.{name}={value}' for name, value in change.items()]
    assert run(['train', *settings, *overrides, '--workdir=run'], tmp_path) == 2
    assert words in capsys.readouterr().err and not (tmp_path / 'run').exists()


def test_unexpected_number_of_devices_is_rejected(settings: list[str], tmp_path: Path, capsys) -> None:
    assert run(['train', *settings, '--devices=16', '--workdir=run'], tmp_path) == 2
    assert 'is 16, but jax found 8 (per process: 8)' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'command, file', [('train', 'config.json'), ('report', 'config.json'), ('finetune', 'finetune.json')]
)
def test_step_of_existing_run_is_rejected_with_its_workdir(command: str, file: str, tmp_path: Path, capsys) -> None:
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / file).write_text('{}')
    assert run([command, '--workdir=run@3'], tmp_path) == 2
    error = capsys.readouterr().err
    assert f'names a step, but {command} takes a whole run' in error and '--workdir=run\n' in error
    assert not (tmp_path / 'run@3').exists()


def test_flags_that_a_fine_tuned_run_ignores_are_rejected(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr('bert_jax.finetune.workdirs.seeds_of', lambda workdir: [f'{workdir}/seed-0'])
    assert run(['evaluate', '--workdir=tuned', '--source=text:a'], tmp_path) == 2
    assert '--source: does not apply to a fine-tuned run' in capsys.readouterr().err


def test_help_of_a_command_has_an_example(tmp_path: Path, capsys) -> None:
    assert run(['train', '--help'], tmp_path) == 0
    assert 'Example:\n  python -m bert_jax train' in capsys.readouterr().out


def test_damaged_file_is_named_and_exits_2(tmp_path: Path, capsys) -> None:
    settings = as_flags(prepared(tmp_path))
    (tmp_path / 'corpus' / 'sources.json').write_text('[' * 100_000)
    capsys.readouterr()
    assert run(['prepare', *settings], tmp_path) == 2
    shown = capsys.readouterr().err
    assert f'{tmp_path}/corpus/sources.json: is not JSON' in shown and 'Traceback' not in shown
