"""A process that hangs ends, and so do its peers; what may take long is let be."""

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
def test_a_stuck_process_ends_with_its_stacks_and_75_only_if_running_again_gets_further(
    saves: int, status: int, tmp_path: Path
) -> None:
    command = [sys.executable, '-c', _ALONE, str(saves), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == 'compiled\n'  # that took longer than a step may, and was let be
    assert done.returncode == status, done.stderr
    assert 'Stuck: ' in done.stderr and 'the step, step 7' in done.stderr
    assert 'File "<string>", line 12 in <module>' in done.stderr  # where it sleeps
    assert '"released": true' in (tmp_path / '.lease' / '1.json').read_text()


def test_a_slow_step_is_given_five_times_the_slowest_so_far() -> None:
    watchdog = Watchdog(10, 1000)
    watchdog._slowest_step = 7.0
    watchdog.enter('the step')
    assert watchdog._beat.limit == 35.0
    watchdog._slowest_step = 0.1
    watchdog.enter('the step')
    assert watchdog._beat.limit == 10.0


def test_steps_after_a_slow_first_one_are_not_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine a step takes minutes; the first, after compiling, shows how many."""
    now = [0.0]
    monkeypatch.setattr('bert_jax.runtime.watchdog.time.perf_counter', lambda: now[0])
    watchdog = Watchdog(120, 3600)
    watchdog.begin_step(1)
    watchdog.enter_long_stage('compiling the step')
    now[0] += 500
    watchdog.enter_first_step()
    assert watchdog._beat.limit == 3600
    now[0] += 150
    watchdog.end_step(jnp.zeros(()))
    watchdog.begin_step(2)
    assert watchdog._beat.limit == 5 * 150


class _Store:
    """The key-value store of `jax.distributed`, within this process."""

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
def board(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeartbeatStore]:
    """That of process 0 of two. The watchdogs of the test are those of process 1, whose end raises `_Ended`."""
    store = _Store()
    board = HeartbeatStore(store, 0, 2)
    board.post_beat(Heartbeat('host0'))
    monkeypatch.setattr(HeartbeatStore, 'of_run', lambda: HeartbeatStore(store, 1, 2))

    def end(status: int) -> None:
        raise _Ended(status)

    monkeypatch.setattr('os._exit', end)
    yield board


def test_what_a_process_posts_the_others_read(board: HeartbeatStore) -> None:
    beat, verdict = Heartbeat('host0', number=2, step=5), ShutdownReason('Process 0 is stuck.', 1)
    board.post_beat(beat)
    board.post_verdict(verdict)
    other = HeartbeatStore.of_run()
    assert other.beat_of_first() == beat and other.beats() == {0: beat} and other.verdicts() == {0: verdict}


def test_one_that_finishes_says_so_and_its_silence_means_nothing(board: HeartbeatStore) -> None:
    with Watchdog(60, 600) as watchdog:
        watchdog.begin_step(3)
    assert board.beats()[1].stage == FINISHED and board.beats()[1].step == 3
    assert not board.verdicts()


def test_an_error_of_one_process_ends_the_others_with_its_status(board: HeartbeatStore, capsys) -> None:
    freed = []
    watchdog = Watchdog(60, 600, before_ending=lambda: freed.append(True))
    with pytest.raises(_Ended, match='2'), watchdog:
        raise BadInput('train.steps', 'is 0')
    watchdog._stop.set()  # its threads, which a real end takes with it
    verdict = board.verdicts()[1]
    assert verdict.status == 2 and verdict.text.endswith('ended: train.steps: is 0') and not verdict.stacks
    assert freed and 'bert_jax: train.steps: is 0' in capsys.readouterr().err


def test_one_that_is_stopped_before_the_first_step_stops_the_others(board: HeartbeatStore) -> None:
    with Watchdog(60, 600) as watchdog:
        watchdog.stopped('SIGTERM')
    expected = 'Process 1 was stopped (SIGTERM) before a step was made.'
    assert board.verdicts()[1] == ShutdownReason(expected, 75, stacks=False)
