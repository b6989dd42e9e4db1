"""The loop does what is due at each step, and a request to stop ends a run properly."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from bert_jax import config
from bert_jax.evaluation.evaluator import Evaluation, is_due_every
from bert_jax.loop import Due, Fitted, TrainingRun, fit
from bert_jax.train.divergence import DivergenceMonitor, TrainingRecord
from bert_jax.train.state import TrainState

SETTINGS = SimpleNamespace(log_every=5, checkpoint_every=10, replica_check_every=4)
NUM_STEPS = 23


@dataclasses.dataclass(frozen=True)
class Every:
    """An evaluator that does nothing."""

    steps: int
    activity: str = 'evaluating'

    def is_due(self, step: int, *, is_final: bool) -> bool:
        return is_due_every(self.steps, step, is_final=is_final)


def due_at(step: int, *evaluators: Every, stopping: bool = False) -> Due:
    return Due.at(step, NUM_STEPS, SETTINGS, evaluators, stopping=stopping)


@pytest.mark.parametrize(
    ('what', 'steps'),
    [
        ('log', [5, 10, 15, 20, 23]),
        ('save', [10, 20, 23]),
        ('compare_replicas', [4, 8, 10, 12, 16, 20, 23]),  # also before every save
        ('is_last', [23]),
    ],
)
def test_intervals_are_kept_and_the_last_step_does_everything(what: str, steps: list[int]) -> None:
    assert [step for step in range(1, NUM_STEPS + 1) if getattr(due_at(step), what)] == steps


def test_evaluators_are_due_in_list_order() -> None:
    often, seldom, at_the_end = Every(6), Every(12), Every(0)
    due = {step: due_at(step, seldom, often, at_the_end).evaluators for step in (5, 6, 12, 23)}
    assert due == {5: (), 6: (often,), 12: (seldom, often), 23: (seldom, often, at_the_end)}


def test_stopping_step_logs_and_saves_without_evaluating() -> None:
    due = due_at(6, Every(6), Every(0), stopping=True)
    assert (due.is_last, due.log, due.save, due.compare_replicas, due.evaluators) == (True, True, True, True, ())


def test_stop_request_at_last_step_keeps_final_evaluation() -> None:
    due = due_at(NUM_STEPS, Every(6), Every(0), stopping=True)
    assert due.is_final and due.evaluators == (Every(6), Every(0))


def test_stop_request_during_evaluation_still_saves() -> None:
    due = due_at(6, Every(6))
    assert not due.save
    assert (due.stopped().save, due.stopped().is_last, due.stopped().compare_replicas) == (True, True, True)


def test_losses_are_awaited_only_when_needed() -> None:
    waits = [step for step in range(1, NUM_STEPS + 1) if due_at(step, Every(6)).needs_losses]
    assert waits == [5, 6, 10, 12, 15, 18, 20, 23]


@dataclasses.dataclass(frozen=True)
class Asking(Every):
    """An evaluator that calls `stop_now` once."""

    def __call__(self, params: object, step: int, stop_now: Callable[[], bool]) -> Evaluation | None:
        return None if stop_now() else Evaluation({'validation/loss': 1.0})


def _update(state: TrainState, batch: dict[str, float]) -> tuple[TrainState, dict[str, jax.Array]]:
    metrics = {'tokens': 1, 'squared_lengths': 1, 'loss': jnp.float32(1), 'is_skipped': jnp.asarray(False)}
    return state._replace(step=state.step + 1), metrics


def _fit_two_steps(
    monkeypatch: pytest.MonkeyPatch, asked: list[bool], every: int
) -> tuple[Fitted, mock.MagicMock, mock.MagicMock]:
    """Trains for two steps with these answers to `should_stop`; also returns `save` and the log."""
    run = _run_of(monkeypatch, 2, asked, every)
    params = {'kernel': jnp.ones(2)}
    return fit(run, TrainState(jnp.int32(0), params, params), TrainingRecord()), run.checkpoints.save, run.log


def _run_of(monkeypatch: pytest.MonkeyPatch, num_steps: int, asked: list[bool], every: int) -> TrainingRun:
    speed, answers = mock.MagicMock(waiting=iter), iter(asked)
    speed.read.return_value = {}
    monkeypatch.setattr('bert_jax.loop.Speedometer', lambda *_: speed)
    monkeypatch.setattr('bert_jax.loop.Replicas', mock.MagicMock())
    monkeypatch.setattr('bert_jax.loop.AnyProcessFlag', lambda _: lambda _: next(answers))
    return TrainingRun(
        workdir='run',
        programs=[mock.MagicMock(num_steps=num_steps)],
        updates=[_update],
        batches=[(step, 0, {}) for step in range(1, num_steps + 1)],
        evaluators=[Asking(every)],
        settings=config.Train(steps=num_steps, log_every=10, checkpoint_every=10),
        new_state=mock.MagicMock(),
        supervisor=mock.MagicMock(received='SIGTERM'),
        checkpoints=mock.MagicMock(),
        log=mock.MagicMock(),
    )


def test_stopped_run_saves_without_evaluating(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, save, log = _fit_two_steps(monkeypatch, [True], every=1)
    assert (fitted.step, fitted.stopped_by) == (1, 'SIGTERM')
    assert save.call_count == log.log_step.call_count == 1 and not log.log_evaluation.called


def test_progress_never_waits_for_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is not logged does not wait for its loss; the progress shows a loss that the monitor has read."""
    read, steps, read_step = [], 6, DivergenceMonitor._read
    monkeypatch.setattr(DivergenceMonitor, '_read', lambda *arguments: read.append(1) or read_step(*arguments))
    run = _run_of(monkeypatch, steps, [False] * steps, every=steps)
    shown: list[tuple[int, int]] = []
    run.log.update_progress.side_effect = lambda step, loss: shown.append((step, len(read)))
    params = {'kernel': jnp.ones(2)}
    fit(run, TrainState(jnp.int32(0), params, params), TrainingRecord())
    assert shown == [(1, 1), (2, 2), (3, 3)]  # at steps 3, 4, 5; the last step is logged


def test_interrupted_evaluation_logs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, save, log = _fit_two_steps(monkeypatch, [False, True], every=1)
    assert (fitted.step, fitted.stopped_by) == (1, 'SIGTERM') and save.call_count == 1 and not log.log_evaluation.called


def test_final_evaluation_is_never_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, save, log = _fit_two_steps(monkeypatch, [False, True], every=0)
    assert (fitted.step, fitted.stopped_by) == (2, None)
    assert save.call_count == log.log_evaluation.call_count == 1
