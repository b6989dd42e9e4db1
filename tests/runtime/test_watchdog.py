"""A process that hangs ends, and so do its peers; slow stages are allowed their time."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import pytest

from bert_jax.errors import BadInput
from bert_jax.runtime.heartbeat_store import HeartbeatStore
from bert_jax.runtime.stall_detector import FINISHED, Heartbeat, ShutdownReason
from bert_jax.runtime.watchdog import Watchdog

_ALONE = """
import sys, time
from bert_jax.runtime.supervisor import Supervisor
with Supervisor(watchdog_seconds=0.6, watchdog_long_seconds=60) as supervisor:
    supervisor.acquire(sys.argv[2])
    supervisor.enter_long_stage('compiling the step')
    time.sleep(1.5)
    print('compiled', flush=True)
    for step in range(int(sys.argv[1])):
        supervisor.save_started(step)
    with supervisor.step(7):
        time.sleep(60)
"""


@pytest.mark.processes
@pytest.mark.parametrize('saves, status', [(1, 1), (2, 75)])
def test_stuck_process_dumps_stacks_and_exits_75_only_after_a_save(saves: int, status: int, tmp_path: Path) -> None:
    command = [sys.executable, '-c', _ALONE, str(saves), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == 'compiled\n'  # took longer than the limit of a step
    assert done.returncode == status, done.stderr
    assert 'Stuck: ' in done.stderr and 'the step, step 7' in done.stderr
    assert 'File "<string>", line 12 in <module>' in done.stderr  # where it sleeps
    assert '"released": true' in (tmp_path / '.lease' / '1.json').read_text()


def test_step_may_take_five_times_as_long_as_the_slowest() -> None:
    watchdog = Watchdog(10, 1000)
    watchdog._slowest_step = 7.0
    watchdog.enter('the step')
    assert watchdog._heartbeat.limit == 35.0
    watchdog._slowest_step = 0.1
    watchdog.enter('the step')
    assert watchdog._heartbeat.limit == 10.0


def test_slow_first_step_raises_the_limit_of_later_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine a step takes minutes; the first one after compiling is measured."""
    now = [0.0]
    monkeypatch.setattr('bert_jax.runtime.watchdog.time.perf_counter', lambda: now[0])
    watchdog = Watchdog(120, 3600)
    watchdog.begin_step(1)
    watchdog.enter_long_stage('compiling the step')
    now[0] += 500
    watchdog.enter_first_step()
    assert watchdog._heartbeat.limit == 3600
    now[0] += 150
    watchdog.end_step(jnp.zeros(()))
    watchdog.begin_step(2)
    assert watchdog._heartbeat.limit == 5 * 150


class _Client:
    """A stand-in for the key-value store of `jax.distributed`, within this process."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        assert allow_overwrite or key not in self._values
        self._values[key] = value

    def key_value_try_get(self, key: str) -> str:
        return self._values[key]

    def key_value_dir_get(self, prefix: str) -> list[tuple[str, str]]:
        return [(key, value) for key, value in self._values.items() if key.startswith(f'{prefix}/')]


class _Ended(BaseException):
    pass


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeartbeatStore]:
    """The store of process 0 of two. The watchdogs of the tests belong to process 1; its exit raises `_Ended`."""
    client = _Client()
    store = HeartbeatStore(client, 0, 2)
    store.post_heartbeat(Heartbeat('host0'))
    monkeypatch.setattr(HeartbeatStore, 'for_run', lambda: HeartbeatStore(client, 1, 2))

    def end(status: int) -> None:
        raise _Ended(status)

    monkeypatch.setattr('os._exit', end)
    yield store


def test_posted_heartbeats_and_shutdowns_are_read_by_other_processes(store: HeartbeatStore) -> None:
    heartbeat, reason = Heartbeat('host0', index=2, step=5), ShutdownReason('Process 0 is stuck.', 1)
    store.post_heartbeat(heartbeat)
    store.post_shutdown(reason)
    other = HeartbeatStore.for_run()
    assert (
        other.heartbeat_of_process_zero() == heartbeat
        and other.heartbeats() == {0: heartbeat}
        and other.shutdowns() == {0: reason}
    )


def test_finished_process_posts_it_and_may_be_silent(store: HeartbeatStore) -> None:
    with Watchdog(60, 600) as watchdog:
        watchdog.begin_step(3)
    assert store.heartbeats()[1].stage == FINISHED and store.heartbeats()[1].step == 3
    assert not store.shutdowns()


def test_error_in_one_process_ends_the_others_with_its_status(store: HeartbeatStore, capsys) -> None:
    freed = []
    watchdog = Watchdog(60, 600, before_ending=lambda: freed.append(True))
    with pytest.raises(_Ended, match='2'), watchdog:
        raise BadInput('train.steps', 'is 0')
    watchdog._stop.set()  # ends its threads, as a real exit would
    reason = store.shutdowns()[1]
    assert reason.status == 2 and reason.text.endswith('ended: train.steps: is 0') and not reason.stacks
    assert freed and 'bert_jax: train.steps: is 0' in capsys.readouterr().err


def test_process_stopped_before_its_first_step_stops_the_others(store: HeartbeatStore) -> None:
    with Watchdog(60, 600) as watchdog:
        watchdog.stopped('SIGTERM')
    expected = 'Process 1 was stopped (SIGTERM) before its first step.'
    assert store.shutdowns()[1] == ShutdownReason(expected, 75, stacks=False)
