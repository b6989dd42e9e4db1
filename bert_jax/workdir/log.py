"""Everything that a run reports: metrics.jsonl, TensorBoard events, history.jsonl, and lines on the terminal."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import Mesh

from bert_jax.console import say
from bert_jax.runtime.supervisor import Supervisor
from bert_jax.workdir.history import History, hardware
from bert_jax.workdir.metrics import MetricsWriter
from bert_jax.workdir.progress import Progress


class RunLog:
    """The log of one run, from the step it starts or resumes at.

    Attributes:
      metrics: of the last logged training step, and of the evaluations since; None for a non-finite value, such as a
        mean over nothing.
    """

    def __init__(
        self,
        workdir: str,
        start: int,
        num_steps: int,
        mesh: Mesh,
        describe_step: Callable[[dict[str, float]], str],
        supervisor: Supervisor,
        flags_of_shorter: Callable[[float], str],
    ):
        """Opens the log and removes what was logged after `start`.

        Args:
          describe_step: turns the metrics of a training step into a few words for the terminal.
          supervisor: checks before every write whether the run may still write, and knows what it is doing.
          flags_of_shorter: see `Progress`.

        Raises:
          BadInput: here and later, if the run may no longer write.
        """
        self._check = supervisor.check_lease
        self._check()
        self._writer, self._history = MetricsWriter(workdir, start), History(workdir)
        self._history.add('start', start, lost_steps=self._writer.lost_steps, **hardware(mesh))
        self._progress = Progress(start, num_steps, describe_step, lambda: supervisor.stage, flags_of_shorter)
        self._num_steps = num_steps
        self.metrics: dict[str, float | None] = {}

    def __enter__(self) -> 'RunLog':
        self._progress.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.__exit__()
        self._writer.close()

    def update_progress(self, step: int, loss: float) -> None:
        """Updates the progress shown on the terminal after a finished step; writes nothing."""
        self._progress.update_progress(step, loss)

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        """Writes and prints the metrics of a training step."""
        self._check()
        self._writer.write(step, metrics)
        self._progress.show(step, metrics)
        self.metrics = _finite(metrics)

    def log_evaluation(
        self, step: int, metrics: dict[str, float], description: str = '', examples: Sequence[dict[str, Any]] = ()
    ) -> None:
        """Writes the results of an evaluator and prints their description."""
        self._check()
        if metrics:
            self._writer.write(step, metrics)
            self.metrics |= _finite(metrics)
        if examples:
            self._writer.write_examples(step, list(examples))
        if description:
            say(f'step {step}: {description}')

    def roll_back(self, to_step: int, from_step: int, why: str) -> None:
        """Removes what was logged after `to_step`, and records why the run rolled back."""
        self._check()
        say(f'Step {from_step}: {why}. Rolled back to step {to_step}; skipping the batches read since.')
        self._history.add('back', to_step, **{'from': from_step}, why=why)
        self._writer.rewind(to_step)
        self._progress.rewind(to_step)

    def end(self, step: int, stopped_by: str | None = None) -> None:
        """Records the end of the run: its last step, or the earlier `step` at which a request stopped it."""
        self._check()
        self._progress.close()
        if stopped_by:
            say(f'Stopped by {stopped_by}: saved step {step} of {self._num_steps}. Rerun the same command to resume.')
            self._history.add('stop', step, why=stopped_by)
        else:
            self._history.add('finish', step)


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
