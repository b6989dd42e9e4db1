"""Computes losses and accuracies on held-out text: on its first rows during training, on all rows in `evaluate`."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from bert_jax.activity import counted
from bert_jax.data.batches import Stream
from bert_jax.data.device_batches import device_batches
from bert_jax.evaluation.evaluator import Evaluation, is_due_every
from bert_jax.train.program import TrainProgram


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The evaluator that measures a run on its validation streams.

    Attributes:
      programs: one per phase.
      streams: one per phase; None if too little text is held out for the phase.
      phase_at: maps a step to the index of its phase.
      every: steps between evaluations; 0 evaluates only at the last step.
      max_rows: number of rows to evaluate.
    """

    programs: Sequence[TrainProgram]
    streams: Sequence[Stream | None]
    phase_at: Callable[[int], int]
    every: int
    max_rows: int
    activity: str = 'evaluating'

    def is_due(self, step: int, *, is_final: bool) -> bool:
        return self.streams[self.phase_at(step)] is not None and is_due_every(self.every, step, is_final=is_final)

    def __call__(self, params: nnx.State, step: int, stop_now: Callable[[], bool]) -> Evaluation | None:
        phase = self.phase_at(step)
        stream = self.streams[phase]
        assert stream is not None  # see `is_due`
        result = evaluate_params(params, self.programs[phase], stream, self.max_rows, stop_now)
        if result is None:
            return None
        metrics = {name: value for name, value in result.items() if value is not None}
        return Evaluation({f'validation/{name}': value for name, value in metrics.items()}, _describe(metrics))


def _describe(metrics: dict[str, float]) -> str:
    names = [name for name in ('mlm', 'mntp', 'clm', 'rtd') if f'{name}_accuracy' in metrics]
    if not names:
        return 'the held-out text has no token to mask, so no loss was measured'
    name = names[0]
    loss = metrics.get(f'{name}_loss', math.nan)  # a model that has diverged may lack a finite loss
    text = f'held-out {name.upper()} loss {loss:.3f}, {name.upper()} accuracy {metrics[f"{name}_accuracy"]:.1%}'
    return text + (f', NSP accuracy {metrics["nsp_accuracy"]:.1%}' if 'nsp_accuracy' in metrics else '')


def evaluate_params(
    params: nnx.State,
    program: TrainProgram,
    stream: Stream,
    max_rows: int | None = None,
    stop_now: Callable[[], bool] = lambda: False,
) -> dict[str, float | None] | None:
    """Computes the objective's metrics, with losses in nats, over one pass of a stream or its first `max_rows` rows.

    Returns:
      {name: metric}. A metric is None if the rows contain nothing to measure it on, and so is `loss` if they contain
      nothing to predict. Returns None instead if interrupted because `stop_now`, called after every batch, returned
      True.
    """
    num_batches = len(stream) if max_rows is None else min(len(stream), -(-max_rows // stream.batch_size))
    num_batches = max(num_batches, 1)  # a stream without rows yields one batch of padding
    totals: Any = 0.0
    batches = device_batches(stream, program.device_mesh, 0, num_batches)
    for _, batch in counted(batches, num_batches, 'held-out text'):
        sums = program.evaluation_step(params, batch)
        totals += np.array(jax.device_get(sums), np.float64)
        if stop_now():
            return None
    metrics = {name: float(value) for name, value in program.evaluated.metrics(type(sums)(*totals)).items()}
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return {name: finite.get(name) if finite.keys() - {'loss'} else None for name in metrics}
