"""What the training loop asks of an evaluator. Evaluators are plain objects in a list; the loop decides the order."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from flax import nnx


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluator found at a step.

    Attributes:
      metrics: by the name under which they are logged.
      description: the same in words, for the terminal; '' for nothing.
      examples: for examples.jsonl.
    """

    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    description: str = ''
    examples: Sequence[dict[str, Any]] = ()


class Evaluator(Protocol):
    """Looks at the parameters of a run every so often. Every process calls it at the same steps."""

    @property
    def activity(self) -> str:
        """What it does, as the watchdog reports it ('evaluating')."""

    def is_due(self, step: int, *, is_final: bool) -> bool:
        """Whether to evaluate after a step; `is_final` for the last step of the run."""

    def __call__(self, params: nnx.State, step: int, stop_now: Callable[[], bool]) -> Evaluation | None:
        """Evaluates; None when `stop_now` said yes before the end."""


def is_due_every(every: int, step: int, *, is_final: bool) -> bool:
    """Whether a step is a multiple of `every` (0: none is), or the last one."""
    return is_final or bool(every and step % every == 0)
