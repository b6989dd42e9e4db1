"""A run lets go of what it holds however it ends, and takes over a stop request that listens already."""

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


def _is_released(workdir: Path, owner: int = 1) -> bool:
    return json.loads((workdir / '.lease' / f'{owner}.json').read_text())['released']


def test_a_workdir_is_held_until_the_next_one_or_the_end_of_the_context(tmp_path: Path) -> None:
    first, second = tmp_path / 'seed-0', tmp_path / 'seed-1'
    with _supervisor() as supervisor:
        supervisor.check_lease()  # nothing is held, so nothing was lost
        supervisor.acquire(str(first))
        with pytest.raises(BadInput, match='in use by process'):
            Lease(str(first)).acquire()
        supervisor.acquire(str(second))
        assert _is_released(first) and not _is_released(second)
        supervisor.check_lease()
    assert _is_released(second)


def test_a_held_workdir_is_refused_and_stays_with_its_holder(tmp_path: Path) -> None:
    holder = Lease(str(tmp_path))
    holder.acquire()
    with _supervisor() as supervisor, pytest.raises(BadInput, match='in use by process'):
        supervisor.acquire(str(tmp_path))
    holder.check()
    holder.close()


def test_a_lost_lease_forbids_the_next_write(tmp_path: Path) -> None:
    with _supervisor() as supervisor:
        supervisor.acquire(str(tmp_path))
        thief = json.loads((tmp_path / '.lease' / '1.json').read_text()) | {'token': 'other', 'host': 'elsewhere'}
        (tmp_path / '.lease' / '2.json').write_text(json.dumps(thief))
        with pytest.raises(BadInput, match='no longer held by this run'):
            supervisor.check_lease()


def test_what_ends_the_process_from_a_thread_also_forbids_the_main_thread_to_write(tmp_path: Path) -> None:
    with _supervisor() as supervisor:
        supervisor.acquire(str(tmp_path))
        supervisor.release()
        with pytest.raises(BadInput, match='was released by this run'):
            supervisor.check_lease()


def test_an_error_passes_through_and_frees_the_workdir_and_the_signals(tmp_path: Path) -> None:
    before, threads = [signal.getsignal(signum) for signum in _SIGNALS], threading.active_count()
    with pytest.raises(ZeroDivisionError), _supervisor(watchdog_seconds=60.0) as supervisor:
        supervisor.acquire(str(tmp_path))
        raise ZeroDivisionError
    assert _is_released(tmp_path) and [signal.getsignal(signum) for signum in _SIGNALS] == before
    deadline = time.monotonic() + 30
    while threading.active_count() > threads:  # the lease's own ends with its next beat
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_signal_with_nothing_to_save_frees_the_workdir_then_ends_with_75(tmp_path: Path, monkeypatch) -> None:
    ended, status = threading.Event(), []
    monkeypatch.setattr('os._exit', lambda code: (status.append((code, _is_released(tmp_path))), ended.set()))
    with StopRequest() as stop, _supervisor(stop) as supervisor:
        supervisor.acquire(str(tmp_path))
        signal.raise_signal(signal.SIGTERM)
        assert ended.wait(30) and status == [(75, True)]


def test_a_stop_request_that_listens_already_keeps_listening_and_has_one_supervisor(tmp_path: Path) -> None:
    with StopRequest() as stop:
        listening = [signal.getsignal(signum) for signum in _SIGNALS]
        for _ in range(2):
            with _supervisor(stop) as supervisor:
                assert [signal.getsignal(signum) for signum in _SIGNALS] == listening
                with pytest.raises(RuntimeError, match='already has a supervisor'):
                    _supervisor(stop).__enter__()
        assert [signal.getsignal(signum) for signum in _SIGNALS] == listening
        assert supervisor.received == ''


def test_the_time_limit_asks_with_what_a_save_takes() -> None:
    with _supervisor(stop_at='2999-01-01') as supervisor:
        assert not supervisor.should_stop(10.0) and supervisor.received == ''
    with _supervisor(stop_at='2000-01-01') as supervisor:
        assert supervisor.should_stop(None) and supervisor.received == 'the time limit'


def test_what_a_seed_has_saved_counts_for_the_status_and_is_not_named_as_the_next_seeds(tmp_path: Path) -> None:
    verdict = ShutdownReason('Stuck.')
    with _supervisor() as supervisor:
        for seed in ('seed-0', 'seed-1'):
            supervisor.acquire(str(tmp_path / seed))
            given = supervisor._watchdog._with_status(verdict)
            assert (given.status, 'is saved' in given.text) == (1 if seed == 'seed-0' else 75, False)
            supervisor.save_started(10)
        supervisor.save_started(20)
        assert '75; step 10 is saved' in supervisor._watchdog._with_status(verdict).text


def test_only_the_first_step_of_a_shape_may_take_as_long_as_compiling() -> None:
    with _supervisor(watchdog_seconds=10.0, watchdog_long_seconds=1000.0) as supervisor:
        beat = supervisor._watchdog._beat
        with supervisor.step(1, is_first_of_shape=True):
            assert (beat.step, beat.stage, beat.limit) == (1, 'compiling the step', 1000.0)
        assert (beat.stage, beat.limit) == ('the first step of its shape', 1000.0)
        with supervisor.step(2):
            assert (beat.step, beat.stage, beat.limit) == (2, 'the step', 10.0)
        assert beat.stage == 'the step'
        with supervisor.long_stage('saving'):
            assert (beat.stage, beat.limit) == ('saving', 1000.0)
        assert (beat.stage, beat.limit) == ('between steps', 10.0)
