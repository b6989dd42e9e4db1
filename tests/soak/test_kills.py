"""Runs killed or stopped at random moments, a third during saves, end like the uninterrupted run, bit for bit."""

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
    """When to kill: at a random time of the run, or a few milliseconds after a save began."""

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
    """Returns the logged training metrics. Evaluations are left out, because a signal may cut one short."""
    logged = metrics(workdir)
    return {
        step: {name: value for name, value in values.items() if not name.startswith('validation/')}
        for step, values in logged.items()
    }


def _end(running: Running, signum: int) -> None:
    """Sends the signal. A stop request must give status 75, unless the run had just ended or not yet started."""
    if signum == signal.SIGKILL:
        running.kill()
        return
    running.send(signum)
    status = running.wait(_PATIENCE)
    assert status in (75, 0) or (status == -signum and not running.lines), running.text


def _live(
    running: Running, workdir: Path, moment: _Moment | None, signum: int, killed_at: int | None, row: Row
) -> int | None:
    """Follows one start of a run; returns None if it finishes, or the last logged step if it is killed.

    Adds to the row how long it took to reach the step of the previous kill again, and how many steps were repeated.
    """
    while running.process.poll() is None:
        if killed_at is not None and any(line.startswith('Compiling') for line in running.lines):
            if _last_logged(workdir) >= killed_at:
                row.seconds.append(time.monotonic() - running.started)
                resuming = [line for line in running.lines if line.startswith('Resuming')]
                restored = int(resuming[0].rpartition('from step ')[2].split()[0]) if resuming else 0
                row.steps_lost.append(max(killed_at - restored, 0))
                killed_at = None
        if moment is not None and moment.has_come():
            last = _last_logged(workdir)
            _end(running, signum)
            return last
        time.sleep(0.002)
    assert running.wait(_PATIENCE) == 0, running.text
    return None


def kill_again_and_again(
    directory: Path, num_kills: int, rng: np.random.Generator, tell: Callable[[Row], None], signum: int = signal.SIGKILL
) -> Row:
    """Kills runs `num_kills` times in all; each run is restarted until it has finished, then compared."""
    flags, env = prepare(directory), environment(**caching(directory / 'compiled'))
    whole, record = directory / 'whole', directory / 'whole.batches'
    running = Running(train_command(flags, whole, record), env)
    assert running.wait(_PATIENCE) == 0, running.text
    life = 0.7 * (time.monotonic() - running.started)  # later starts use the compilation cache
    expected = final_state(whole), batches(record), _losses(whole)
    assert all(len(digests) == 1 for digests in expected[1].values())

    row, runs = Row(f'{signal.Signals(signum).name} at a random moment, one in three during a save'), 0
    while len(row.outcomes) < num_kills:
        runs += 1
        workdir, record = directory / f'run{runs}', directory / f'run{runs}.batches'
        kills, killed_at, finished = 0, None, False
        while not finished:
            tried = len(row.outcomes) + kills
            moment = _Moment(workdir, rng, life, during_save=tried % 3 == 0) if tried < num_kills else None
            running = Running(train_command(flags, workdir, record), env)
            killed_at = _live(running, workdir, moment, signum, killed_at, row)
            finished = killed_at is None
            kills += not finished
        for what, actual, reference in zip(
            ('state', 'data', 'metrics'),
            (final_state(workdir), batches(record), _losses(workdir)),
            expected,
            strict=True,
        ):
            assert actual == reference, f'{what} of run {runs} after {kills} kills is not that of the uninterrupted run'
        row.outcomes += ['same final state, bit for bit'] * kills
        tell(row)
    return row


@pytest.mark.soak
def test_killed_run_ends_like_the_uninterrupted_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with capsys.disabled():
        kill_again_and_again(tmp_path, tries(150), random_numbers('kills'), print)


@pytest.mark.soak
def test_stopped_run_ends_like_the_uninterrupted_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with capsys.disabled():
        kill_again_and_again(tmp_path, tries(30), random_numbers('signals'), print, signal.SIGTERM)
