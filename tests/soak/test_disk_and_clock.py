"""A disk that is full or cannot be written, a clock that jumps, batches that are not finite."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.soak.harness import Row, prepare, random_numbers, train_command, tries
from tests.support.processes import ROOT, Running, caching, environment
from tests.support.runs import final_state, metrics

pytestmark = pytest.mark.soak
_DISK_BYTES = 24 << 20


def _env(place: Path) -> dict[str, str]:
    return environment(**caching(place / 'cache'))


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('disk')


@pytest.fixture(scope='module')
def flags(place: Path) -> list[str]:
    return prepare(place, train__steps=40, train__max_bad_steps=2, train__max_rollbacks=40)


@pytest.fixture(scope='module')
def whole(place: Path, flags: list[str]) -> Path:
    """The workdir of an uninterrupted run."""
    running = Running(train_command(flags, place / 'whole'), _env(place))
    assert running.wait() == 0, running.text
    return place / 'whole'


@contextlib.contextmanager
def _small_disk(path: Path) -> Iterator[Path]:
    if os.getuid() != 0:
        pytest.skip('mounting a small disk takes root')
    path.mkdir()
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={_DISK_BYTES}', 'tmpfs', str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(['umount', str(path)], check=True)


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open('wb', buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))


def _assert_told(running: Running) -> None:
    # Orbax and TensorStore print tracebacks of their own when the disk fills in the middle of a save; ours are none.
    assert 'File "' + str(ROOT / 'bert_jax') not in running.text, running.text


def test_a_full_disk_is_told_and_nothing_is_lost(place: Path, flags: list[str], whole: Path) -> None:
    row, rng = Row('a full disk, at a random moment, for a while or for good'), random_numbers('disk')
    for number in range(tries(30)):
        with _small_disk(place / f'disk-{number}') as disk:
            running = Running(train_command(flags, disk / 'run'), _env(place))
            assert running.wait_for(f'step {rng.integers(1, 38)}/')
            _fill(disk / 'filler')
            if for_a_while := bool(rng.random() < 0.5):
                time.sleep(rng.uniform(0.05, 1.0))
                (disk / 'filler').unlink()
            status = running.wait()
            _assert_told(running)
            told = 'could not be' in running.text
            assert status in (0, 2) and (told or status == 0), running.text
            (disk / 'filler').unlink(missing_ok=True)
            began = time.monotonic()
            if status:
                again = Running(train_command(flags, disk / 'run'), _env(place))
                assert again.wait() == 0, again.text
                _assert_told(again)
                row.seconds.append(time.monotonic() - began)
            assert final_state(disk / 'run') == final_state(whole)
            what = 'for a while' if for_a_while else 'for good'
            ended = 'trained on' if status == 0 else 'ended with a message, went on when there was room'
            row.outcomes.append(f'{what}: {ended}{"" if told else " (no save fell into it)"}')
    print(row)


def test_a_disk_that_cannot_be_written_is_told(place: Path, flags: list[str], whole: Path) -> None:
    row = Row('a read-only workdir, new or begun')
    for number in range(min(tries(4), 4)):
        with _small_disk(place / f'read-only-{number}') as disk:
            if number % 2:
                shutil.copytree(whole, disk / 'run')
                shutil.rmtree(disk / 'run' / 'checkpoints' / '40')
            subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
            running = Running(train_command(flags, disk / 'run'), _env(place))
            assert running.wait() == 2, running.text
            _assert_told(running)
            row.outcomes.append('told, exit status 2')
    print(row)


def test_a_clock_that_jumps_changes_nothing(place: Path, flags: list[str], whole: Path) -> None:
    row, rng = Row('a clock that jumps by up to two days, several times a second'), random_numbers('clock')
    for number in range(tries(10)):
        workdir, ended_early = place / f'clock-{number}', False
        fault = [sys.executable, '-m', 'tests.soak.faulty', f'clock:{rng.integers(1 << 30)}']
        for _ in range(5):  # Orbax measures its patience by the clock: a save may fail, is told, and tried again
            running = Running([*fault, *train_command(flags, workdir)[3:]], _env(place))
            if (status := running.wait()) == 0:
                break
            assert status == 2 and 'could not be written' in running.text, running.text
            ended_early = True
        assert status == 0, running.text
        assert final_state(workdir) == final_state(whole) and metrics(workdir) == metrics(whole)
        failed = ended_early or 'could not be saved' in running.text
        row.outcomes.append('the same run, bit for bit' + ', a save failed and was told' * failed)
    print(row)


def test_batches_that_are_not_finite_are_passed_over(place: Path, flags: list[str]) -> None:
    row, rng = Row('batches that are not finite, in pairs'), random_numbers('batches')
    for number in range(tries(10)):
        workdir, seed = place / f'batches-{number}', rng.integers(1 << 30)
        fault = [sys.executable, '-m', 'tests.soak.faulty', f'batches:{seed}:0.1']
        running = Running([*fault, *train_command(flags, workdir)[3:]], _env(place))
        assert running.wait(300) == 0, running.text
        _assert_told(running)
        record = json.loads((workdir / 'checkpoints' / '40' / 'record.json').read_text())
        values = [np.frombuffer(array, np.float32) for name, array in final_state(workdir).items() if 'params' in name]
        assert all(np.isfinite(array).all() for array in values)
        windows = ''.join(f'({phase},{first},{stop}),' for phase, first, stop in record['passed_over'])
        row.outcomes.append(f'{record["rollbacks"]} roll-backs' if record['rollbacks'] else 'none met')
        if not record['skipped_updates'] and windows:  # then it is the run that left them out from the start
            skipping = [*flags, f'--config.train.skip=({windows})']
            other = Running(train_command(skipping, place / f'without-{number}'), _env(place))
            assert other.wait() == 0, other.text
            assert final_state(workdir) == final_state(place / f'without-{number}')
            row.outcomes[-1] += ', then as a run that left them out from the start, bit for bit'
    print(row)
