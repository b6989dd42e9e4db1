"""SIGKILL, or SIGTERM, at random moments, a third during saves: the end is the uninterrupted run's, bit for bit."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.soak.harness import Row, batches, prepare, random_numbers, train_command, tries
from tests.support.processes import Running, caching, environment
from tests.support.runs import final_state, metrics

_PATIENCE = 1800.0  # seconds for a run that takes ten on an idle machine


def _last_logged(workdir: Path) -> int:
    path = workdir / 'metrics.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            return json.loads(line)['step']
        except ValueError:
            continue  # cut by the kill
    return 0


class _Moment:
    """When to kill: at a random time of the run's life, or a few milliseconds after a save began."""

    def __init__(self, workdir: Path, rng: np.random.Generator, life: float, during_save: bool) -> None:
        self._folder, self._during_save = workdir / 'checkpoints', during_save
        self._before = self._names()
        self._wait = rng.uniform(0, 0.06) if during_save else rng.uniform(0.2, 1.0) * life
        self._since = None if during_save else time.monotonic()

    def _names(self) -> set[str]:
        return {path.name for path in self._folder.iterdir()} if self._folder.exists() else set()

    def has_come(self) -> bool:
        if self._since is None and self._names() - self._before:
            self._since = time.monotonic()
        return self._since is not None and time.monotonic() - self._since >= self._wait


def _losses(workdir: Path) -> dict[int, dict[str, float]]:
    """What was told of the training; an evaluation may have been given up for a signal."""
    found = metrics(workdir)
    return {
        step: {name: value for name, value in values.items() if not name.startswith('validation/')}
        for step, values in found.items()
    }


def _end(running: Running, number: int) -> None:
    """Sends the signal; one that asks is answered with 75, unless the run had just ended or not yet begun."""
    if number == signal.SIGKILL:
        running.kill()
        return
    running.send(number)
    status = running.wait(_PATIENCE)
    assert status in (75, 0) or (status == -number and not running.lines), running.text


def _live(
    running: Running, workdir: Path, moment: _Moment | None, number: int, killed_at: int | None, row: Row
) -> int | None:
    """One life of a run, to its end (None) or until it is killed (the last step that it told).

    Notes in the row, where the life before was killed, how long it took to be back there and what was done again.
    """
    while running.process.poll() is None:
        if killed_at is not None and any(line.startswith('Compiling') for line in running.lines):
            if _last_logged(workdir) >= killed_at:
                row.seconds.append(time.monotonic() - running.started)
                gone_on = [line for line in running.lines if line.startswith('Resuming')]
                restored = int(gone_on[0].rpartition('from step ')[2].split()[0]) if gone_on else 0
                row.steps_lost.append(max(killed_at - restored, 0))
                killed_at = None
        if moment is not None and moment.has_come():
            last = _last_logged(workdir)
            _end(running, number)
            return last
        time.sleep(0.002)
    assert running.wait(_PATIENCE) == 0, running.text
    return None


def kill_again_and_again(
    directory: Path, num_kills: int, rng: np.random.Generator, tell: Callable[[Row], None], number: int = signal.SIGKILL
) -> Row:
    """Kills runs until there were `num_kills`; each run is restarted until it is finished, then compared."""
    flags, env = prepare(directory), environment(**caching(directory / 'compiled'))
    whole, record = directory / 'whole', directory / 'whole.batches'
    running = Running(train_command(flags, whole, record), env)
    assert running.wait(_PATIENCE) == 0, running.text
    life = 0.7 * (time.monotonic() - running.started)  # of those to come, whose programs are compiled
    expected = final_state(whole), batches(record), _losses(whole)
    assert all(len(digests) == 1 for digests in expected[1].values())

    row, runs = Row(f'{signal.Signals(number).name} at a random moment, every third during a save'), 0
    while len(row.outcomes) < num_kills:
        runs += 1
        workdir, record = directory / f'run{runs}', directory / f'run{runs}.batches'
        kills, killed_at, finished = 0, None, False
        while not finished:
            tried = len(row.outcomes) + kills
            moment = _Moment(workdir, rng, life, during_save=tried % 3 == 0) if tried < num_kills else None
            running = Running(train_command(flags, workdir, record), env)
            killed_at = _live(running, workdir, moment, number, killed_at, row)
            finished = killed_at is None
            kills += not finished
        for what, found, wanted in zip(
            ('state', 'data', 'metrics'),
            (final_state(workdir), batches(record), _losses(workdir)),
            expected,
            strict=True,
        ):
            assert found == wanted, f'{what} of run {runs} after {kills} kills is not that of the uninterrupted run'
        row.outcomes += ['the same end, bit for bit'] * kills
        tell(row)
    return row


@pytest.mark.soak
def test_a_run_killed_anywhere_ends_as_the_uninterrupted_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with capsys.disabled():
        kill_again_and_again(tmp_path, tries(150), random_numbers('kills'), print)


@pytest.mark.soak
def test_a_run_asked_to_stop_anywhere_ends_as_the_uninterrupted_one(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with capsys.disabled():
        kill_again_and_again(tmp_path, tries(30), random_numbers('signals'), print, signal.SIGTERM)
