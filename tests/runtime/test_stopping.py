"""Signals and time limits: when a run stops, and how it cleans up."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bert_jax.runtime.stopping import StopRequest, exit_on_signals


def test_slurm_job_leaves_time_for_a_save_as_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('SLURM_JOB_END_TIME', str(time.time() + 100))
    stop = StopRequest()
    stop.set_time('')
    assert not stop.should_stop(seconds_to_save=1.0)
    assert not stop.should_stop(seconds_to_save=40.0)
    assert stop.should_stop(seconds_to_save=45.0) and stop.received == 'the time limit'
    unmeasured = StopRequest()
    unmeasured.set_time('')
    assert unmeasured.should_stop(seconds_to_save=None)  # two minutes until a save was measured


def test_explicit_time_limit_is_exact_and_overrides_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('SLURM_JOB_END_TIME', '1')
    stop = StopRequest()
    stop.set_time('2999-01-01T00:00')
    assert not stop.should_stop(seconds_to_save=1000.0)
    stop.set_time('2000-01-01')
    assert stop.should_stop(seconds_to_save=None)


def test_without_time_limit_only_signals_stop_and_handlers_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('SLURM_JOB_END_TIME', raising=False)
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with StopRequest() as stop:
        stop.set_time('')
        stop.enable_saving()
        assert not stop.should_stop(seconds_to_save=1000.0)
        signal.raise_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 30
        while not stop.should_stop(seconds_to_save=1.0):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert stop.received == 'SIGUSR1'
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGHUP])
def test_signal_raises_system_exit_so_that_commands_clean_up(signum: signal.Signals) -> None:
    before, cleaned = signal.getsignal(signum), []
    with pytest.raises(SystemExit) as ended, exit_on_signals():
        try:
            signal.raise_signal(signum)
        finally:
            cleaned.append(signal.getsignal(signum))
    assert ended.value.code == 128 + signum
    assert cleaned == [signal.SIG_DFL] and signal.getsignal(signum) is before  # a second signal would end it at once
    signal.signal(signum, signal.SIG_IGN)  # nohup
    try:
        with exit_on_signals():
            signal.raise_signal(signum)
    finally:
        signal.signal(signum, before)


@pytest.mark.processes
def test_stopping_does_not_import_jax_or_numpy() -> None:
    program = 'import bert_jax.runtime.stopping, sys; print([name for name in ("jax", "numpy") if name in sys.modules])'
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    assert done.stdout == '[]\n'


@pytest.mark.parametrize(
    'signum, ended_after',
    [(signal.SIGTERM, {5.0}), (signal.SIGINT, {0.05, 5.0})],
    ids=['SIGTERM-from-dying-launcher', 'SIGINT-from-user'],
)
def test_repeated_signals_of_a_dying_launcher_count_once(
    monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, ended_after: set[float]
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, '_exit', ended.append)
    now = time.monotonic()
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    with StopRequest() as stop:
        stop.enable_saving()
        for after in (0.0, 0.05, 5.0):
            ended.clear()
            monkeypatch.setattr(time, 'monotonic', lambda after=after: now + after)
            signal.raise_signal(signum)
            time.sleep(0.2)  # for the thread that reads the signals
            assert stop.received == signum.name and bool(ended) == (after in ended_after)
