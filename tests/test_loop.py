"""What is due at a step."""

import dataclasses
from types import SimpleNamespace

import pytest

from bert_jax.evaluation.evaluator import is_due_every
from bert_jax.loop import Due

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
        ('compare_replicas', [4, 8, 10, 12, 16, 20, 23]),  # before every save too
        ('is_last', [23]),
    ],
)
def test_each_interval_is_kept_and_the_last_step_does_all(what: str, steps: list[int]) -> None:
    assert [step for step in range(1, NUM_STEPS + 1) if getattr(due_at(step), what)] == steps


def test_evaluators_are_due_in_the_order_of_the_list() -> None:
    often, seldom, at_the_end = Every(6), Every(12), Every(0)
    due = {step: due_at(step, seldom, often, at_the_end).evaluators for step in (5, 6, 12, 23)}
    assert due == {5: (), 6: (often,), 12: (seldom, often), 23: (seldom, often, at_the_end)}


def test_a_run_that_stops_logs_and_saves_but_does_not_evaluate_early() -> None:
    due = due_at(6, Every(6), Every(0), stopping=True)
    assert (due.is_last, due.log, due.save, due.compare_replicas, due.evaluators) == (True, True, True, True, ())


def test_a_request_to_stop_at_the_last_step_does_not_cost_the_final_evaluation() -> None:
    due = due_at(NUM_STEPS, Every(6), Every(0), stopping=True)
    assert due.is_final and due.evaluators == (Every(6), Every(0))


def test_a_request_to_stop_during_an_evaluation_still_saves() -> None:
    due = due_at(6, Every(6))
    assert not due.save
    assert (due.stopped().save, due.stopped().is_last, due.stopped().compare_replicas) == (True, True, True)


def test_losses_are_waited_for_only_where_something_depends_on_them() -> None:
    waits = [step for step in range(1, NUM_STEPS + 1) if due_at(step, Every(6)).needs_losses]
    assert waits == [5, 6, 10, 12, 15, 18, 20, 23]
