"""The interface between the training loop and its evaluators, which are plain objects in an ordered list."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from flax import nnx


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of an evaluator at a step.

    Attributes:
      metrics: values by the name under which they are logged.
      description: the metrics as text for the terminal; '' prints nothing.
      examples: objects to append to examples.jsonl.
    """

    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    description: str = ''
    examples: Sequence[dict[str, Any]] = ()


class Evaluator(Protocol):
    """Measures the parameters of a run at some of its steps. Every process calls it at the same steps."""

    @property
    def activity(self) -> str:
        """What the evaluator does, as the watchdog reports it, such as 'evaluating'."""

    def is_due(self, step: int, *, is_final: bool) -> bool:
        """Returns whether to evaluate after a step; `is_final` marks the last step of the run."""

    def __call__(self, params: nnx.State, step: int, stop_now: Callable[[], bool]) -> Evaluation | None:
        """Evaluates the parameters; returns None if interrupted because `stop_now` returned True."""


def is_due_every(every: int, step: int, *, is_final: bool) -> bool:
    """Returns whether a step is a multiple of `every`, or the last step; with `every` 0 only the last step is due."""
    return is_final or bool(every and step % every == 0)
