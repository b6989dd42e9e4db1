"""No command is silent for long: lines or bars report what it is doing."""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bert_jax import activity as module
from bert_jax.__main__ import main
from bert_jax.activity import activity, counted, printed_a_line
from bert_jax.cli.commands import COMMANDS
from bert_jax.pretrain import pretrain
from bert_jax.workdir import progress
from bert_jax.workdir.progress import Progress
from tests.support.configs import as_config, prepared
from tests.support.terminals import terminal_as_stderr


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes lines appear every few hundredths of a second."""
    monkeypatch.setattr(module, '_TICK_S', 0.005)
    monkeypatch.setattr(module, '_FIRST_GAP_S', 0.02)
    monkeypatch.setattr(module, '_SHARE_OF_TIME', 0.0)


def wait_for(capsys: pytest.CaptureFixture, text: str) -> str:
    """Waits until a text is printed, for at most 20 seconds; returns everything printed until then."""
    found, end = '', time.monotonic() + 20
    while text not in found:
        assert time.monotonic() < end, found
        time.sleep(0.005)
        found += capsys.readouterr().err
    return found


@pytest.mark.parametrize('name', sorted(COMMANDS))
def test_every_command_reports_that_it_is_still_working(
    impatient: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    def work(*_: object) -> int:
        wait_for(capsys, f'{name} (')
        return 0

    monkeypatch.setitem(COMMANDS, name, dataclasses.replace(COMMANDS[name], run=work))
    assert main(['bert_jax', name]) == 0


def test_line_names_open_activities_and_their_progress(impatient: None, capsys: pytest.CaptureFixture) -> None:
    with activity('evaluate'):
        for item in counted('abc', 3, 'held-out text'):
            if item == 'c':
                assert 'evaluate: held-out text, 2 of 3 batches, about' in wait_for(capsys, '2 of 3')
        wait_for(capsys, 'evaluate (')  # activities that have ended are not named
        with activity('step 5/10', begins_line=True), activity('saving'):
            assert 'evaluate: step' not in wait_for(capsys, 'step 5/10: saving')


def test_counted_items_show_a_bar_with_rate_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, '_SECONDS_TO_A_BAR', 0.0)
    with terminal_as_stderr() as shown:
        for _ in counted('abc', 3, 'held-out text'):
            time.sleep(0.15)
    assert re.search(r'held-out text: .*\| 2/3 \[00:00<00:00, .*batches/s\]', shown[0])


def test_lines_come_every_ten_seconds_then_less_often() -> None:
    def lines(seconds: float) -> Iterator[float]:
        now = 0.0
        while (now := now + module._gap(now)) <= seconds:
            yield now

    first_minute = [0.0, *lines(60)]
    assert max(b - a for a, b in zip(first_minute, first_minute[1:], strict=False)) <= 10
    assert len([*lines(3600)]) < 40 and len([*lines(86_400)]) < 200


def test_progress_printed_otherwise_delays_the_next_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(module, '_TICK_S', 0.005)
    monkeypatch.setattr(module, '_FIRST_GAP_S', 5.0)
    with activity('training'):
        for _ in range(20):
            printed_a_line()
            time.sleep(0.01)
    assert not capsys.readouterr().err


@pytest.mark.parametrize('shown', [True, False])
def test_progress_is_printed_as_lines_without_a_terminal(
    impatient: None, capsys: pytest.CaptureFixture, shown: bool
) -> None:
    with module.progress(lambda: '2 of 3 lines', shown=shown, total=3) as bar:
        bar.update(2)
        assert bar.disable
        if shown:
            wait_for(capsys, '2 of 3 lines (')
        else:
            time.sleep(0.1)
            assert not capsys.readouterr().err


# --- Slow steps of training. ---


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Returns a function that moves the clock of `Progress` forward."""
    now = [100.0]

    def forward(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(progress.time, 'perf_counter', lambda: now[0])
    return forward


def _progress(num_steps: int = 1_000_000, stage: str = '') -> Progress:
    return Progress(0, num_steps, str, lambda: stage, lambda share: f'--config.train.steps={share * num_steps:.0f}')


def test_slow_steps_are_reported_with_loss_and_time_left(clock: Callable[[float], None]) -> None:
    shown = _progress(stage='compiling the step')
    assert shown._describe_now() == 'step 0/1000000  compiling the step'
    shown = _progress()
    for step in (1, 2):
        clock(56.0)
        shown.update_progress(step, 10.5)
    clock(30.0)  # into the next step
    assert shown._describe_now() == 'step 2/1000000  loss 10.500  56.00 s per step  648.1 days left'


@pytest.mark.parametrize('seconds, is_too_long', [(56.0, True), (0.9, False)])
def test_duration_of_run_is_estimated_once_after_first_steps(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture, seconds: float, is_too_long: bool
) -> None:
    shown = _progress()
    for step in range(1, 20):
        shown.update_progress(step, 10.5)
        clock(seconds)
    err = capsys.readouterr().err
    assert err.count('per step: the ') == 1
    assert ('warning' in err) == is_too_long
    assert not is_too_long or ('648.1 days' in err and 'With --config.train.steps=1543 it takes about a day' in err)


def test_duration_of_a_short_run_is_not_estimated(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture
) -> None:
    shown = _progress(num_steps=20)
    for step in range(1, 20):
        shown.update_progress(step, 10.5)
        clock(0.01)
    assert not capsys.readouterr().err


@pytest.mark.compiles
@pytest.mark.usefixtures('one_device')
def test_progress_by_time_does_not_change_logged_metrics(
    impatient: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr('bert_jax.pretrain.MOST_EPOCHS', 0.1)
    only_steps = {'train__examples': (), 'data__validation_fraction': 0.0}  # compiles only the step
    pretrain(as_config(prepared(tmp_path, train__log_every=1000, train__steps=50, **only_steps)), str(tmp_path / 'run'))
    shown = capsys.readouterr().err
    assert 'step 0/50  compiling the step (' in shown and 'per step  ' in shown and 'epochs' in shown
    assert 'warning: the run trains for' in shown and '--config.train.steps=' in shown
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines if 'loss' in line] == [50]
