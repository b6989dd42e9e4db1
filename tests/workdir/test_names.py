"""`WORKDIR@STEP` names a checkpoint, in the same way for every command."""

from pathlib import Path

import pytest

from bert_jax.cli import evaluate, export
from bert_jax.cli.flags import parse, workdir_and_step
from bert_jax.errors import BadInput
from bert_jax.pretrained.load import load_pretrained
from bert_jax.workdir.identity import split_step
from tests.support.models import write_model


def test_step_follows_the_last_at_sign_unless_the_directory_exists(tmp_path: Path) -> None:
    assert split_step('runs/a') == ('runs/a', None)
    assert split_step('runs/a@30') == ('runs/a', 30)
    assert split_step('runs/a@b@30') == ('runs/a@b', 30)
    (tmp_path / 'a@30').mkdir()
    assert split_step(f'{tmp_path}/a@30') == (f'{tmp_path}/a@30', None)
    assert split_step(f'{tmp_path}/a@30@5') == (f'{tmp_path}/a@30', 5)
    assert split_step('me@host') == ('me@host', None)
    with pytest.raises(BadInput, match="names the step 'last'"):
        split_step(f'{tmp_path}/a@30@last')


@pytest.mark.parametrize('command', [evaluate.COMMAND, export.COMMAND])
def test_command_takes_the_step_from_workdir_or_flag(command) -> None:
    def parsed(*flags: str) -> tuple[str, int | None]:
        return workdir_and_step(command, parse(command, list(flags))[0])

    assert parsed('--workdir=runs/a') == ('runs/a', None)
    assert parsed('--workdir=runs/a@5') == parsed('--workdir=runs/a', '--step=5') == ('runs/a', 5)
    assert parsed('--workdir=runs/a@5', '--step=5') == ('runs/a', 5)
    with pytest.raises(BadInput, match='differs from the step in --workdir=runs/a@5'):
        parsed('--workdir=runs/a@5', '--step=6')


def test_model_directory_has_no_steps(tmp_path: Path) -> None:
    directory = write_model(tmp_path / 'model')
    with pytest.raises(BadInput, match='it has no steps'):
        load_pretrained(f'{directory}@3')
