"""A run releases its workdir and signals however it ends, and can use an existing stop request."""

import json
import signal
import threading
import time
from pathlib import Path

import pytest

from bert_jax.errors import BadInput
from bert_jax.runtime.lease import Lease
from bert_jax.runtime.stall_detector import ShutdownReason
from bert_jax.runtime.stopping import StopRequest
from bert_jax.runtime.supervisor import Supervisor

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def _supervisor(stop: StopRequest | None = None, **options: object) -> Supervisor:
    return Supervisor(stop, **{'watchdog_seconds': 0.0, 'watchdog_long_seconds': 60.0} | options)


def _is_released(workdir: Path, generation: int = 1) -> bool:
    return json.loads((workdir / '.lease' / f'{generation}.json').read_text())['released']


def test_workdir_is_held_until_the_next_acquire_or_exit(tmp_path: Path) -> None:
    first, second = tmp_path / 'seed-0', tmp_path / 'seed-1'
    with _supervisor() as supervisor:
        supervisor.check_lease()  # no workdir is held, so none was lost
        supervisor.acquire(str(first))
        with pytest.raises(BadInput, match='in use by process'):
            Lease(str(first)).acquire()
        supervisor.acquire(str(second))
        assert _is_released(first) and not _is_released(second)
        supervisor.check_lease()
    assert _is_released(second)


def test_held_workdir_cannot_be_acquired_by_a_second_run(tmp_path: Path) -> None:
    holder = Lease(str(tmp_path))
    holder.acquire()
    with _supervisor() as supervisor, pytest.raises(BadInput, match='in use by process'):
        supervisor.acquire(str(tmp_path))
    holder.check()
    holder.close()


def test_lost_lease_prevents_the_next_write(tmp_path: Path) -> None:
    with _supervisor() as supervisor:
        supervisor.acquire(str(tmp_path))
        thief = json.loads((tmp_path / '.lease' / '1.json').read_text()) | {'token': 'other', 'host': 'elsewhere'}
        (tmp_path / '.lease' / '2.json').write_text(json.dumps(thief))
        with pytest.raises(BadInput, match='no longer held by this run'):
            supervisor.check_lease()


def test_released_workdir_is_no_longer_writable_by_the_main_thread(tmp_path: Path) -> None:
    with _supervisor() as supervisor:
        supervisor.acquire(str(tmp_path))
        supervisor.release()
        with pytest.raises(BadInput, match='was released by this run'):
            supervisor.check_lease()


def test_error_propagates_and_releases_workdir_and_signal_handlers(tmp_path: Path) -> None:
    before, threads = [signal.getsignal(signum) for signum in _SIGNALS], threading.active_count()
    with pytest.raises(ZeroDivisionError), _supervisor(watchdog_seconds=60.0) as supervisor:
        supervisor.acquire(str(tmp_path))
        raise ZeroDivisionError
    assert _is_released(tmp_path) and [signal.getsignal(signum) for signum in _SIGNALS] == before
    deadline = time.monotonic() + 30
    while threading.active_count() > threads:  # the thread of the lease ends with its next heartbeat
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_signal_before_first_step_releases_workdir_and_exits_75(tmp_path: Path, monkeypatch) -> None:
    ended, status = threading.Event(), []
    monkeypatch.setattr('os._exit', lambda code: (status.append((code, _is_released(tmp_path))), ended.set()))
    with StopRequest() as stop, _supervisor(stop) as supervisor:
        supervisor.acquire(str(tmp_path))
        signal.raise_signal(signal.SIGTERM)
        assert ended.wait(30) and status == [(75, True)]


def test_existing_stop_request_keeps_listening_and_allows_one_supervisor(tmp_path: Path) -> None:
    with StopRequest() as stop:
        listening = [signal.getsignal(signum) for signum in _SIGNALS]
        for _ in range(2):
            with _supervisor(stop) as supervisor:
                assert [signal.getsignal(signum) for signum in _SIGNALS] == listening
                with pytest.raises(RuntimeError, match='already has a supervisor'):
                    _supervisor(stop).__enter__()
        assert [signal.getsignal(signum) for signum in _SIGNALS] == listening
        assert supervisor.received == ''


def test_time_limit_stops_the_run() -> None:
    with _supervisor(stop_at='2999-01-01') as supervisor:
        assert not supervisor.should_stop(10.0) and supervisor.received == ''
    with _supervisor(stop_at='2000-01-01') as supervisor:
        assert supervisor.should_stop(None) and supervisor.received == 'the time limit'


def test_saves_of_earlier_seeds_count_for_the_exit_status_only(tmp_path: Path) -> None:
    reason = ShutdownReason('Stuck.')
    with _supervisor() as supervisor:
        for seed in ('seed-0', 'seed-1'):
            supervisor.acquire(str(tmp_path / seed))
            completed = supervisor._watchdog._with_status(reason)
            assert (completed.status, 'is saved' in completed.text) == (1 if seed == 'seed-0' else 75, False)
            supervisor.save_started(10)
        supervisor.save_started(20)
        assert '75; step 10 is saved' in supervisor._watchdog._with_status(reason).text


def test_only_the_first_step_of_a_shape_has_the_long_limit() -> None:
    with _supervisor(watchdog_seconds=10.0, watchdog_long_seconds=1000.0) as supervisor:
        heartbeat = supervisor._watchdog._heartbeat
        with supervisor.step(1, is_first_of_shape=True):
            assert (heartbeat.step, heartbeat.stage, heartbeat.limit) == (1, 'compiling the step', 1000.0)
        assert (heartbeat.stage, heartbeat.limit) == ('the first step of its shape', 1000.0)
        with supervisor.step(2):
            assert (heartbeat.step, heartbeat.stage, heartbeat.limit) == (2, 'the step', 10.0)
        assert heartbeat.stage == 'the step'
        with supervisor.long_stage('saving'):
            assert (heartbeat.stage, heartbeat.limit) == ('saving', 1000.0)
        assert (heartbeat.stage, heartbeat.limit) == ('between steps', 10.0)
