"""Losses and accuracies on held-out text: during training on its first rows, in `evaluate` on all of them."""

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
    """Evaluates a run on its validation streams, one for each phase; None where too little text is held out.

    Attributes:
      phase_at: step -> the index of its phase.
      every: steps between evaluations; 0: only at the last step.
      max_rows: rows looked at.
    """

    program: TrainProgram
    streams: Sequence[Stream | None]
    phase_at: Callable[[int], int]
    every: int
    max_rows: int
    activity: str = 'evaluating'

    def is_due(self, step: int, *, is_final: bool) -> bool:
        return self.streams[self.phase_at(step)] is not None and is_due_every(self.every, step, is_final=is_final)

    def __call__(self, params: nnx.State, step: int, stop_now: Callable[[], bool]) -> Evaluation | None:
        stream = self.streams[self.phase_at(step)]
        assert stream is not None  # see `is_due`
        found = evaluate_params(params, self.program, stream, self.max_rows, stop_now)
        if found is None:
            return None
        measured = {name: value for name, value in found.items() if value is not None}
        return Evaluation({f'validation/{name}': value for name, value in measured.items()}, _describe(measured))


def _describe(measured: dict[str, float]) -> str:
    if 'mlm_accuracy' not in measured:
        return 'the held-out text has no token to mask, so no loss was measured'
    loss = measured.get('mlm_loss', math.nan)  # a model that diverged has hits, but no finite loss
    words = f'held-out MLM loss {loss:.3f}, MLM accuracy {measured["mlm_accuracy"]:.1%}'
    return words + (f', NSP accuracy {measured["nsp_accuracy"]:.1%}' if 'nsp_accuracy' in measured else '')


def evaluate_params(
    params: nnx.State,
    program: TrainProgram,
    stream: Stream,
    max_rows: int | None = None,
    stop_now: Callable[[], bool] = lambda: False,
) -> dict[str, float | None] | None:
    """The objective's metrics (losses in nats) over one pass of an evaluation stream, or its first rows.

    Returns:
      The metrics by name, None for what the rows do not hold; `loss` too where they hold nothing to predict. None in
      their place when `stop_now`, asked once a batch, said yes before the end.
    """
    num_batches = len(stream) if max_rows is None else min(len(stream), -(-max_rows // stream.batch_size))
    num_batches = max(num_batches, 1)  # without rows, one of padding
    totals: Any = 0.0
    batches = device_batches(stream, program.device_mesh, 0, num_batches)
    for _, batch in counted(batches, num_batches, 'held-out text'):
        sums = program.evaluation_step(params, batch)
        totals += np.array(jax.device_get(sums), np.float64)
        if stop_now():
            return None
    found = {name: float(value) for name, value in program.objective.metrics(type(sums)(*totals)).items()}
    measured = {name: value for name, value in found.items() if math.isfinite(value)}
    return {name: measured.get(name) if measured.keys() - {'loss'} else None for name in found}
