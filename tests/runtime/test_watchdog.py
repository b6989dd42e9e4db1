"""Who hangs is named and ends all; what takes long by its nature does not."""

import subprocess
import sys

import pytest

from bert_jax.runtime.watchdog import Beat, Watchdog

_ALONE = """
import sys, time
from bert_jax.runtime.watchdog import Watchdog
with Watchdog(0.6, 60) as watchdog:
    watchdog.enter_long('compiling the step')
    time.sleep(1.5)
    print('compiled', flush=True)
    for step in range(int(sys.argv[1])):
        watchdog.began_to_save(step)
    watchdog.begin_step(7)
    time.sleep(60)
"""


@pytest.mark.processes
@pytest.mark.parametrize('saves, status', [(1, 1), (2, 75)])
def test_a_stuck_process_ends_with_its_stacks_and_75_only_if_running_again_gets_further(
    saves: int, status: int
) -> None:
    done = subprocess.run([sys.executable, '-c', _ALONE, str(saves)], capture_output=True, text=True, timeout=60)
    assert done.stdout == 'compiled\n'  # that took longer than a step may, and was let be
    assert done.returncode == status, done.stderr
    assert 'Stuck: ' in done.stderr and 'the step, step 7' in done.stderr
    assert 'File "<string>", line 11 in <module>' in done.stderr  # where it sleeps


class Ended(Exception):
    pass


class _Judging(Watchdog):
    """Process 0 of four, without threads or peers."""

    def __init__(self) -> None:
        super().__init__(10, 1000)
        self._num_processes = 4

    def _end(self, text: str, **_: object) -> None:
        raise Ended(text)


def _beats(**of_2: object) -> dict[int, Beat]:
    """Three processes wait in step 8 for process 2."""
    waiting = {'number': 5, 'step': 8, 'stage': 'the step', 'stages': 40, 'idle': 11.0, 'limit': 10.0}
    behind = waiting | {'stages': 39, 'stage': 'waiting for a batch', 'step': 7} | of_2
    return {rank: Beat(f'host{rank}', **(behind if rank == 2 else waiting)) for rank in range(4)}


def test_the_process_that_is_behind_is_named_not_those_that_wait_for_it() -> None:
    with pytest.raises(
        Ended, match='^Process 2 of 4 on host2 is stuck: 11 s in waiting for a batch, step 7; .* step 8'
    ):
        _Judging()._judge(_beats())


def test_one_that_still_compiles_is_waited_for_as_long_as_compiling_may_take() -> None:
    judge = _Judging()
    judge._judge(_beats(stage='compiling the step', limit=1000.0, idle=900.0))
    with pytest.raises(Ended, match='Process 2 .* compiling the step'):
        judge._judge(_beats(stage='compiling the step', limit=1000.0, idle=1001.0))


def test_when_nobody_is_behind_nobody_is_accused() -> None:
    with pytest.raises(Ended, match='All 4 processes .* none is behind'):
        _Judging()._judge(_beats(step=8, stages=40, stage='the step'))


def test_a_process_without_new_beats_is_named_after_the_limit_and_not_before() -> None:
    judge, rounds = _Judging(), 0
    with pytest.raises(Ended, match='^Process 2 of 4 on host2 has given no sign of life'):
        for rounds in range(100):
            judge._judge({rank: Beat(f'host{rank}', number=3 if rank == 2 else rounds) for rank in range(4)})
    assert rounds == pytest.approx(10 / judge._interval, abs=2)


def test_one_that_waits_for_a_silent_process_does_not_take_the_blame() -> None:
    judge, silent = _Judging(), Beat('host1', number=3, stage='the step', step=8)
    with pytest.raises(Ended, match='^Process 1 of 4 on host1 has given no sign of life'):
        for rounds in range(100):
            idle = 5.0 + rounds * judge._interval  # past its limit before the silence is
            judge._judge({0: Beat('host0', rounds, stage='the step', step=8, idle=idle, limit=10.0), 1: silent})


def test_one_that_has_finished_may_be_silent() -> None:
    judge = _Judging()
    for number in range(100):
        judge._judge({0: Beat('host0', number=number), 1: Beat('host1', number=3, stage='finished')})


def test_a_slow_step_is_given_five_times_the_slowest_so_far() -> None:
    watchdog = _Judging()
    watchdog._slowest = 7.0
    watchdog.enter('the step')
    assert watchdog._beat.limit == 35.0
    watchdog._slowest = 0.1
    watchdog.enter('the step')
    assert watchdog._beat.limit == 10.0
