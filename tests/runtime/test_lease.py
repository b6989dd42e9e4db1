"""A workdir has one holder: a second run is rejected, a dead one is replaced, one that lost its lease stops."""

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bert_jax.errors import BadInput
from bert_jax.runtime.lease import Lease, LeaseHolder, holder_of

HEARTBEAT_SECONDS, TIMEOUT_SECONDS = 0.1, 1.0


def _lease(workdir: Path) -> Lease:
    return Lease(str(workdir), heartbeat_seconds=HEARTBEAT_SECONDS, timeout_seconds=TIMEOUT_SECONDS)


def _files(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / '.lease').iterdir())


def _plant(workdir: Path, **changes: object) -> Path:
    """Writes the lease of a process on another machine."""
    holder = dataclasses.replace(
        LeaseHolder.this_process(), **({'machine': 'another', 'host': 'elsewhere', 'pid': 7} | changes)
    )
    (workdir / '.lease').mkdir(parents=True, exist_ok=True)
    path = workdir / '.lease' / '4.json'
    path.write_text(json.dumps(dataclasses.asdict(holder)))
    return path


def test_second_run_is_rejected_and_the_holder_named(tmp_path: Path) -> None:
    first = _lease(tmp_path)
    messages = []
    first.acquire(messages.append)
    with pytest.raises(BadInput, match=f'in use by process {os.getpid()} on '):
        _lease(tmp_path).acquire()
    first.check()
    first.close()
    with pytest.raises(BadInput, match='was released by this run'):
        first.check()
    second = _lease(tmp_path)
    second.acquire(messages.append)
    assert not messages  # released: nothing was taken over
    second.close()
    assert _files(tmp_path) == ['2.json']


@pytest.mark.processes
def test_dead_holder_on_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    program = (
        'import os, sys; from bert_jax.runtime.lease import Lease; '
        'Lease(sys.argv[1]).acquire(); os.kill(os.getpid(), 9)'
    )
    subprocess.run([sys.executable, '-c', program, tmp_path], timeout=60)
    lease = Lease(str(tmp_path))  # with the default heartbeat and timeout
    start = time.monotonic()
    messages = []
    lease.acquire(messages.append)
    assert time.monotonic() - start < 2 and 'exited without releasing its lease; taking over' in messages[0]
    lease.close()


def test_reused_process_id_is_not_mistaken_for_the_holder(tmp_path: Path) -> None:
    here = LeaseHolder.this_process()
    _plant(tmp_path, machine=here.machine, pid=os.getpid(), started=here.started - 1)
    lease = _lease(tmp_path)
    lease.acquire()
    lease.close()


@pytest.mark.parametrize('clock_offset', [0, -3600, 3600])
def test_silent_remote_holder_is_replaced_after_the_timeout_whatever_its_clock(
    tmp_path: Path, clock_offset: int
) -> None:
    path = _plant(tmp_path)
    os.utime(path, (time.time() + clock_offset, time.time() + clock_offset))
    lease, start, messages = _lease(tmp_path), time.monotonic(), []
    lease.acquire(messages.append)
    assert 'held by process 7 on elsewhere: waiting' in messages[0] and 'taking over' in messages[1]
    seconds = time.monotonic() - start
    assert seconds >= (2 * HEARTBEAT_SECONDS if clock_offset < 0 else 0.9 * TIMEOUT_SECONDS)
    lease.close()


@pytest.mark.processes
def test_remote_holder_with_heartbeats_is_alive_whatever_its_clock(tmp_path: Path) -> None:
    path = _plant(tmp_path)
    os.utime(path, (1e9, 1e9))
    beating = (
        'import os, sys, time\n'
        'for second in range(10**9, 10**9 + 2000): os.utime(sys.argv[1], (second, second)); time.sleep(0.02)'
    )
    other = subprocess.Popen([sys.executable, '-c', beating, path])
    try:
        while path.stat().st_mtime == 1e9:
            time.sleep(0.01)
        with pytest.raises(BadInput, match='in use by process 7 on elsewhere'):
            _lease(tmp_path).acquire()
    finally:
        other.kill()
        other.wait()


def test_holder_sends_heartbeats(tmp_path: Path) -> None:
    lease = _lease(tmp_path)
    lease.acquire()
    path = tmp_path / '.lease' / '1.json'
    os.utime(path, (1e9, 1e9))
    deadline = time.monotonic() + 10
    while path.stat().st_mtime < 1.1e9:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lease.close()


def test_run_that_lost_its_lease_cannot_write(tmp_path: Path) -> None:
    lease = _lease(tmp_path)
    lease.acquire()
    _plant(tmp_path)
    with pytest.raises(BadInput, match='no longer held by this run .*: process 7 on elsewhere took it over'):
        lease.check()
    lease.close()
    assert not json.loads((tmp_path / '.lease' / '4.json').read_text())['released']


def test_damaged_lease_counts_as_a_silent_holder(tmp_path: Path) -> None:
    _plant(tmp_path).write_text('{"host": ')
    lease = _lease(tmp_path)
    messages = []
    lease.acquire(messages.append)
    assert 'an unknown host' in messages[0]
    lease.close()


def test_copied_workdir_is_free_but_a_moved_one_is_held(tmp_path: Path) -> None:
    original, copy, moved = tmp_path / 'original', tmp_path / 'copy', tmp_path / 'moved'
    first = _lease(original)
    first.acquire()
    shutil.copytree(original, copy)
    assert holder_of(str(original)).startswith(f'process {os.getpid()} on ') and not holder_of(str(copy))
    second, reported = _lease(copy), []
    second.acquire(reported.append)
    assert reported == [f'{copy} is a copy of {original}; no run holds the copy.']
    first.check()
    second.check()
    second.close()
    (tmp_path / 'link').symlink_to(original)
    with pytest.raises(BadInput, match='in use by process'):
        _lease(tmp_path / 'link').acquire()
    original.rename(moved)
    with pytest.raises(BadInput, match='in use by process'):
        _lease(moved).acquire()


@pytest.mark.parametrize('code', [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_workdir_has_one_holder_even_without_hard_links(code: int, tmp_path: Path, monkeypatch) -> None:
    def link(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, 'link', link)
    first = _lease(tmp_path)
    first.acquire()
    first.check()
    with pytest.raises(BadInput, match=f'in use by process {os.getpid()}'):
        _lease(tmp_path).acquire()
    assert not _lease(tmp_path)._create(1) and _files(tmp_path) == ['1.json']
    first.close()


def test_holder_of_returns_at_once_and_ignores_silent_remote_holders(tmp_path: Path) -> None:
    assert not holder_of(str(tmp_path))
    path = _plant(tmp_path)
    assert holder_of(str(tmp_path)) == 'process 7 on elsewhere'
    os.utime(path, (1e9, 1e9))
    assert not holder_of(str(tmp_path)) and _files(tmp_path) == ['4.json']
    _plant(tmp_path, released=True)
    assert not holder_of(str(tmp_path))


def _compete(workdir: str, together: object, results: object) -> None:
    lease = Lease(workdir)
    together.wait(60)
    try:
        lease.acquire()
    except BadInput:
        results.put('rejected')
        together.wait(60)
    else:
        results.put('holder')
        together.wait(60)
        lease.check()
        results.put('still holder')


@pytest.mark.processes
@pytest.mark.parametrize('has_dead_holder', [False, True])
def test_of_several_simultaneous_starts_one_gets_the_workdir(tmp_path: Path, has_dead_holder: bool) -> None:
    if has_dead_holder:
        here = LeaseHolder.this_process()
        _plant(tmp_path, machine=here.machine, pid=os.getpid(), started=here.started - 1)
    context = multiprocessing.get_context('spawn')
    together, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_compete, args=(str(tmp_path), together, results)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    outcomes = [results.get(timeout=5) for _ in range(5)]
    assert sorted(outcomes) == ['holder', 'rejected', 'rejected', 'rejected', 'still holder']
