"""`advise` from the command line: with and without a corpus, and commands that can be pasted."""

import json
import shlex
from pathlib import Path

import pytest

from bert_jax.cli.commands import COMMANDS
from bert_jax.cli.flags import config_of, parse
from tests.support.commands import run
from tests.support.configs import as_flags, tiny_run
from tests.support.processes import ROOT
from tests.support.texts import write_text


def _advise(directory: Path, *flags: str) -> list[str]:
    fields = as_flags(tiny_run(directory))
    return ['advise', *fields, '--target=h100:1x1', '--hours=2', *flags]


def test_advice_on_a_text_ends_in_commands_that_resolve(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_text(tmp_path / 'text.txt')
    assert run(_advise(tmp_path, '--price=3', '--json'), tmp_path) == 0
    advice = json.loads(capsys.readouterr().out)
    assert advice['start'] == 'continue' and advice['text']['is_complete']
    assert advice['nats_per_character_low'] <= advice['nats_per_character'] <= advice['nats_per_character_high']
    assert advice['cost'] == pytest.approx(advice['seconds'] / 3600 * 3)
    assert 0 < advice['epochs'] <= advice['useful_epochs'] + 1e-6
    prepare, train, evaluate = map(shlex.split, advice['commands']['scratch'])
    values, _ = parse(COMMANDS['train'], train[2:])
    config = config_of(values)
    assert config.train.steps == advice['steps'] and config.model.num_layers == advice['num_layers']
    assert config.data.source == f'text:{tmp_path}/text.txt' and prepare[1] == 'prepare' and evaluate[1] == 'evaluate'
    for command in advice['commands']['continue'][1:3]:
        values, _ = parse(COMMANDS[shlex.split(command)[1]], shlex.split(command)[2:])
        assert config_of(values).init == f'models/{advice["commands"]["continue"][0].rpartition("/")[2]}'


def test_text_of_an_existing_corpus_gets_another_directory(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_text(tmp_path / 'text.txt')
    fields = as_flags(tiny_run(tmp_path))
    assert run(['prepare', *fields], tmp_path) == 0
    assert run(_advise(tmp_path), tmp_path) == 0
    text = capsys.readouterr().out
    assert 'Start: continue' in text and 'Expected:' in text and 'Epochs:' in text
    assert f'{ROOT}' not in text.partition('Recommended')[2]


@pytest.mark.parametrize(
    'flags, expected',
    [
        (['--config.data.source=text:none/*.txt'], 'no file matches'),
        (['--target=h100'], 'h100:HOSTSxGPUS'),
        (['--hours=0'], '--hours'),
    ],
)
def test_bad_input_is_reported(flags: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_text(tmp_path / 'text.txt')
    assert run(_advise(tmp_path, *flags), tmp_path) == 2
    assert expected in capsys.readouterr().err
