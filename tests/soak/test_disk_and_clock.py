"""Full and read-only disks, a jumping clock, and non-finite batches."""

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


def _env(directory: Path) -> dict[str, str]:
    return environment(**caching(directory / 'cache'))


@pytest.fixture(scope='module')
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('disk')


@pytest.fixture(scope='module')
def flags(directory: Path) -> list[str]:
    return prepare(directory, train__steps=40, train__max_bad_steps=2, train__max_rollbacks=40)


@pytest.fixture(scope='module')
def whole(directory: Path, flags: list[str]) -> Path:
    """Trains an uninterrupted run; returns its workdir."""
    running = Running(train_command(flags, directory / 'whole'), _env(directory))
    assert running.wait() == 0, running.text
    return directory / 'whole'


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


def _assert_no_traceback(running: Running) -> None:
    # Orbax and TensorStore print their own tracebacks when the disk fills during a save; bert_jax prints none.
    assert 'File "' + str(ROOT / 'bert_jax') not in running.text, running.text


def test_full_disk_is_reported_and_nothing_is_lost(directory: Path, flags: list[str], whole: Path) -> None:
    row, rng = Row('full disk at a random moment, temporarily or permanently'), random_numbers('disk')
    for attempt in range(tries(30)):
        with _small_disk(directory / f'disk-{attempt}') as disk:
            running = Running(train_command(flags, disk / 'run'), _env(directory))
            assert running.wait_for(f'step {rng.integers(1, 38)}/')
            _fill(disk / 'filler')
            if is_temporary := bool(rng.random() < 0.5):
                time.sleep(rng.uniform(0.05, 1.0))
                (disk / 'filler').unlink()
            status = running.wait()
            _assert_no_traceback(running)
            is_reported = 'could not be' in running.text
            assert status in (0, 2) and (is_reported or status == 0), running.text
            (disk / 'filler').unlink(missing_ok=True)
            began = time.monotonic()
            if status:
                again = Running(train_command(flags, disk / 'run'), _env(directory))
                assert again.wait() == 0, again.text
                _assert_no_traceback(again)
                row.seconds.append(time.monotonic() - began)
            assert final_state(disk / 'run') == final_state(whole)
            kind = 'temporary' if is_temporary else 'permanent'
            outcome = 'kept training' if status == 0 else 'stopped with a message, resumed when there was space'
            row.outcomes.append(f'{kind}: {outcome}{"" if is_reported else " (no save met the full disk)"}')
    print(row)


def test_read_only_disk_is_reported(directory: Path, flags: list[str], whole: Path) -> None:
    row = Row('read-only workdir, new or resumed')
    for attempt in range(min(tries(4), 4)):
        with _small_disk(directory / f'read-only-{attempt}') as disk:
            if attempt % 2:
                shutil.copytree(whole, disk / 'run')
                shutil.rmtree(disk / 'run' / 'checkpoints' / '40')
            subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
            running = Running(train_command(flags, disk / 'run'), _env(directory))
            assert running.wait() == 2, running.text
            _assert_no_traceback(running)
            row.outcomes.append('rejected with a message')
    print(row)


def test_jumping_clock_changes_nothing(directory: Path, flags: list[str], whole: Path) -> None:
    row, rng = Row('clock that jumps by up to two days, several times a second'), random_numbers('clock')
    for attempt in range(tries(10)):
        workdir, ended_early = directory / f'clock-{attempt}', False
        fault = [sys.executable, '-m', 'tests.soak.faulty', f'clock:{rng.integers(1 << 30)}']
        for _ in range(5):  # Orbax's timeouts use the clock, so a save may fail; it is reported and tried again
            running = Running([*fault, *train_command(flags, workdir)[3:]], _env(directory))
            if (status := running.wait()) == 0:
                break
            assert status == 2 and 'could not be written' in running.text, running.text
            ended_early = True
        assert status == 0, running.text
        assert final_state(workdir) == final_state(whole) and metrics(workdir) == metrics(whole)
        failed = ended_early or 'could not be saved' in running.text
        row.outcomes.append('same run, bit for bit' + ' (a failed save was reported)' * failed)
    print(row)


def test_non_finite_batches_are_skipped(directory: Path, flags: list[str]) -> None:
    row, rng = Row('non-finite batches, in pairs'), random_numbers('batches')
    for attempt in range(tries(10)):
        workdir, seed = directory / f'batches-{attempt}', rng.integers(1 << 30)
        fault = [sys.executable, '-m', 'tests.soak.faulty', f'batches:{seed}:0.1']
        running = Running([*fault, *train_command(flags, workdir)[3:]], _env(directory))
        assert running.wait(300) == 0, running.text
        _assert_no_traceback(running)
        record = json.loads((workdir / 'checkpoints' / '40' / 'record.json').read_text())
        values = [np.frombuffer(array, np.float32) for name, array in final_state(workdir).items() if 'params' in name]
        assert all(np.isfinite(array).all() for array in values)
        windows = ''.join(f'({phase},{first},{stop}),' for phase, first, stop in record['passed_over'])
        row.outcomes.append(_rollbacks(record['rollbacks']))
        if not record['skipped_updates'] and windows:  # then it equals a run that skipped them from the start
            skipping = [*flags, f'--config.train.skip=({windows})']
            other = Running(train_command(skipping, directory / f'without-{attempt}'), _env(directory))
            assert other.wait() == 0, other.text
            assert final_state(workdir) == final_state(directory / f'without-{attempt}')
            row.outcomes[-1] += ', same as a run that skipped these batches from the start, bit for bit'
    print(row)


def _rollbacks(count: int) -> str:
    return f'{count} rollback{"s" if count != 1 else ""}' if count else 'no such batch was met'
