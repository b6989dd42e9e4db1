"""The process at fault is named, never one that waits for it; what may take long is given the time."""

import pytest

from bert_jax.runtime.stall_detector import FINISHED, Heartbeat, ShutdownReason, StallDetector

SECONDS, INTERVAL = 10.0, 1.25


def _judge(num_processes: int = 4) -> StallDetector:
    return StallDetector(num_processes, SECONDS, INTERVAL)


def _beats(**of_2: object) -> dict[int, Heartbeat]:
    """Three processes wait in step 8 for process 2."""
    waiting = {'number': 5, 'step': 8, 'stage': 'the step', 'stages': 40, 'idle': 11.0, 'limit': 10.0}
    behind = waiting | {'stages': 39, 'stage': 'waiting for a batch', 'step': 7} | of_2
    return {rank: Heartbeat(f'host{rank}', **(behind if rank == 2 else waiting)) for rank in range(4)}


def _until_verdict(judge: StallDetector, beats_at) -> tuple[int, ShutdownReason]:
    """The round in which the first verdict is reached."""
    for round_index in range(100):
        if verdict := judge.verdict(beats_at(round_index)):
            return round_index, verdict
    raise AssertionError('no verdict')


def test_heartbeats_and_verdicts_survive_json() -> None:
    for beat in (Heartbeat('host'), Heartbeat('host', 3, 8, 'the step', 40, 1.5, 10.0, 0.25)):
        assert Heartbeat.from_json(beat.to_json()) == beat
    verdict = ShutdownReason('Process 1 is stuck.', 75, stacks=False)
    assert ShutdownReason.from_json(verdict.to_json()) == verdict


def test_the_process_that_is_behind_is_named_not_those_that_wait_for_it() -> None:
    text = _judge().verdict(_beats()).text
    assert text.startswith('Process 2 of 4 on host2 is stuck: 11 s in waiting for a batch, step 7; ')
    assert text.endswith('the others wait for it in the step, step 8.')


def test_a_process_that_has_rolled_back_is_ahead_of_those_that_have_not() -> None:
    rolled_back = {'step': 3, 'stages': 41, 'stage': 'the step'}
    text = _judge().verdict(_beats(**rolled_back)).text
    assert 'Process 0 of 4 on host0 is stuck' in text and 'Process 2' not in text


def test_one_that_still_compiles_is_waited_for_as_long_as_compiling_may_take() -> None:
    judge, compiling = _judge(), {'stage': 'compiling the step', 'limit': 1000.0}
    assert judge.verdict(_beats(**compiling, idle=900.0)) is None
    assert 'Process 2 of 4 on host2 is stuck: 1001 s in compiling' in judge.verdict(_beats(**compiling, idle=1001)).text


def test_when_nobody_is_behind_nobody_is_accused() -> None:
    text = _judge().verdict(_beats(step=8, stages=40, stage='the step')).text
    assert text == 'All 4 processes have been stuck in the step, step 8 for 11 s: none is behind.'


def test_a_process_without_new_heartbeats_is_named_after_the_limit_and_not_before() -> None:
    rounds, verdict = _until_verdict(
        _judge(), lambda now: {rank: Heartbeat(f'host{rank}', number=3 if rank == 2 else now) for rank in range(4)}
    )
    assert verdict.text.startswith('Process 2 of 4 on host2 has given no sign of life')
    assert rounds == pytest.approx(SECONDS / INTERVAL, abs=2)


def test_one_that_waits_for_a_silent_process_does_not_take_the_blame() -> None:
    silent = Heartbeat('host1', number=3, stage='the step', step=8)

    def beats(now: int) -> dict[int, Heartbeat]:
        idle = 5.0 + now * INTERVAL  # past its limit before the silence is
        return {0: Heartbeat('host0', now, stage='the step', step=8, idle=idle, limit=10.0), 1: silent}

    _, verdict = _until_verdict(_judge(2), beats)
    assert verdict.text.startswith('Process 1 of 2 on host1 has given no sign of life')


def test_one_that_has_finished_may_be_silent() -> None:
    judge = _judge(2)
    for number in range(100):
        beats = {0: Heartbeat('host0', number=number), 1: Heartbeat('host1', number=3, stage=FINISHED)}
        assert judge.verdict(beats) is None


def test_a_failed_collective_is_blamed_on_the_process_that_fell_silent() -> None:
    before, beats = _beats(), {rank: Heartbeat(f'host{rank}', number=6 if rank != 2 else 5) for rank in range(4)}
    verdict = _judge().verdict_on_error(before, beats, beats[0], 3.0)
    assert verdict.text.startswith('Process 2 of 4 on host2 has given no sign of life for 3 s') and not verdict.stacks


def test_a_failed_collective_is_blamed_on_one_behind_only_if_it_has_been_idle_for_long() -> None:
    def verdict(idle: float) -> ShutdownReason | None:
        before, beats = _beats(), _beats(idle=idle)
        for beat in beats.values():
            beat.number = 6
        return _judge().verdict_on_error(before, beats, beats[0], 3.0)

    assert verdict(idle=9.0) is None
    assert verdict(idle=11.0).text.startswith('Process 2 of 4 on host2 is stuck')


def test_a_process_whose_own_work_holds_up_the_others_is_named_every_ten_minutes() -> None:
    judge, beats = _judge(), {rank: Heartbeat(f'host{rank}', own=0.3 if rank == 1 else 0.001) for rank in range(4)}
    assert judge.straggler(beats, 0.0, now=0.0) == ''  # no step was measured yet
    assert judge.straggler(beats, 2.0, now=0.0) == ''  # 0.3 s of 2 s is no matter
    expected = 'Straggler: process 1 on host1 takes 300 ms of host time per step (others: 1 ms)'
    assert judge.straggler(beats, 1.0, now=0.0).startswith(expected)
    assert judge.straggler(beats, 1.0, now=599.0) == ''
    assert judge.straggler(beats, 1.0, now=601.0).startswith(expected)
