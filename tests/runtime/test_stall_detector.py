"""The process at fault is named, never one that waits for it; slow stages are allowed their time."""

import pytest

from bert_jax.runtime.stall_detector import FINISHED, Heartbeat, ShutdownReason, StallDetector

SECONDS, INTERVAL = 10.0, 1.25


def _detector(num_processes: int = 4) -> StallDetector:
    return StallDetector(num_processes, SECONDS, INTERVAL)


def _heartbeats(**of_2: object) -> dict[int, Heartbeat]:
    """Three processes wait in step 8 for process 2."""
    waiting = {'index': 5, 'step': 8, 'stage': 'the step', 'num_stages': 40, 'idle': 11.0, 'limit': 10.0}
    behind = waiting | {'num_stages': 39, 'stage': 'waiting for a batch', 'step': 7} | of_2
    return {rank: Heartbeat(f'host{rank}', **(behind if rank == 2 else waiting)) for rank in range(4)}


def _until_stall(detector: StallDetector, heartbeats_at) -> tuple[int, ShutdownReason]:
    """Returns the first round in which a stall is found, and its reason."""
    for round_index in range(100):
        if reason := detector.find_stall(heartbeats_at(round_index)):
            return round_index, reason
    raise AssertionError('no stall was found')


def test_heartbeats_and_reasons_survive_json() -> None:
    for heartbeat in (Heartbeat('host'), Heartbeat('host', 3, 8, 'the step', 40, 1.5, 10.0, 0.25)):
        assert Heartbeat.from_json(heartbeat.to_json()) == heartbeat
    reason = ShutdownReason('Process 1 is stuck.', 75, stacks=False)
    assert ShutdownReason.from_json(reason.to_json()) == reason


def test_process_that_is_behind_is_named() -> None:
    text = _detector().find_stall(_heartbeats()).text
    assert text.startswith('Process 2 of 4 on host2 is stuck: 11 s in waiting for a batch, step 7; ')
    assert text.endswith('the others wait for it in the step, step 8.')


def test_process_that_has_rolled_back_counts_as_ahead() -> None:
    rolled_back = {'step': 3, 'num_stages': 41, 'stage': 'the step'}
    text = _detector().find_stall(_heartbeats(**rolled_back)).text
    assert 'Process 0 of 4 on host0 is stuck' in text and 'Process 2' not in text


def test_compiling_process_has_the_limit_of_its_stage() -> None:
    detector, compiling = _detector(), {'stage': 'compiling the step', 'limit': 1000.0}
    assert detector.find_stall(_heartbeats(**compiling, idle=900.0)) is None
    assert (
        'Process 2 of 4 on host2 is stuck: 1001 s in compiling'
        in detector.find_stall(_heartbeats(**compiling, idle=1001)).text
    )


def test_no_process_is_blamed_when_none_is_behind() -> None:
    text = _detector().find_stall(_heartbeats(step=8, num_stages=40, stage='the step')).text
    assert text == 'All 4 processes have been stuck for 11 s in the step, step 8; no process is behind the others.'


def test_silent_process_is_named_when_its_limit_is_over() -> None:
    rounds, reason = _until_stall(
        _detector(), lambda now: {rank: Heartbeat(f'host{rank}', index=3 if rank == 2 else now) for rank in range(4)}
    )
    assert reason.text.startswith('Process 2 of 4 on host2 has given no sign of life')
    assert rounds == pytest.approx(SECONDS / INTERVAL, abs=2)


def test_process_waiting_for_a_silent_one_is_not_blamed() -> None:
    silent = Heartbeat('host1', index=3, stage='the step', step=8)

    def heartbeats(now: int) -> dict[int, Heartbeat]:
        idle = 5.0 + now * INTERVAL  # past its limit before the silence is
        return {0: Heartbeat('host0', now, stage='the step', step=8, idle=idle, limit=10.0), 1: silent}

    _, reason = _until_stall(_detector(2), heartbeats)
    assert reason.text.startswith('Process 1 of 2 on host1 has given no sign of life')


def test_finished_process_may_be_silent() -> None:
    detector = _detector(2)
    for index in range(100):
        heartbeats = {0: Heartbeat('host0', index=index), 1: Heartbeat('host1', index=3, stage=FINISHED)}
        assert detector.find_stall(heartbeats) is None


def test_failed_collective_is_blamed_on_the_silent_process() -> None:
    before, heartbeats = (
        _heartbeats(),
        {rank: Heartbeat(f'host{rank}', index=6 if rank != 2 else 5) for rank in range(4)},
    )
    reason = _detector().explain_error(before, heartbeats, heartbeats[0], 3.0)
    assert reason.text.startswith('Process 2 of 4 on host2 has given no sign of life for 3 s') and not reason.stacks


def test_failed_collective_is_blamed_on_a_lagging_process_only_if_it_is_idle() -> None:
    def reason(idle: float) -> ShutdownReason | None:
        before, heartbeats = _heartbeats(), _heartbeats(idle=idle)
        for heartbeat in heartbeats.values():
            heartbeat.index = 6
        return _detector().explain_error(before, heartbeats, heartbeats[0], 3.0)

    assert reason(idle=9.0) is None
    assert reason(idle=11.0).text.startswith('Process 2 of 4 on host2 is stuck')


def test_straggler_is_named_at_most_every_ten_minutes() -> None:
    detector, heartbeats = (
        _detector(),
        {rank: Heartbeat(f'host{rank}', host_seconds=0.3 if rank == 1 else 0.001) for rank in range(4)},
    )
    assert detector.straggler(heartbeats, 0.0, now=0.0) == ''  # no step was measured yet
    assert detector.straggler(heartbeats, 2.0, now=0.0) == ''  # 0.3 s of 2 s are not reported
    expected = 'Straggler: process 1 on host1 takes 300 ms of host time per step (others: 1 ms)'
    assert detector.straggler(heartbeats, 1.0, now=0.0).startswith(expected)
    assert detector.straggler(heartbeats, 1.0, now=599.0) == ''
    assert detector.straggler(heartbeats, 1.0, now=601.0).startswith(expected)
