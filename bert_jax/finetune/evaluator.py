"""A fine-tuned model's metrics and predictions on the splits of its task."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from bert_jax.activity import counted
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.data.device_batches import device_batches
from bert_jax.evaluation.evaluator import Evaluation, is_due_every
from bert_jax.finetune.heads import BertForTask
from bert_jax.finetune.metrics import shown
from bert_jax.finetune.rows import Packing, Rows, TaskBatch, TaskStream, choose_examples_per_row, round_up
from bert_jax.finetune.splits import Split
from bert_jax.finetune.tasks import TaskData
from bert_jax.model.layer_stack import Gather


@dataclasses.dataclass(frozen=True)
class TaskEvaluator:
    """Evaluates a model on a task during training; the last step is evaluated once it is saved (`evaluate`).

    Attributes:
      streams: (rows, seed; None for evaluation) -> their batches.
      every: steps between evaluations; 0: none during training.
    """

    data: TaskData
    predict_step: Callable[[nnx.State, TaskBatch], jax.Array]
    streams: Callable[[Rows, int | None], TaskStream]
    mesh: Mesh
    every: int = 0
    activity: str = 'evaluating'

    def is_due(self, step: int, *, is_final: bool) -> bool:
        return not is_final and is_due_every(self.every, step, is_final=False)

    def __call__(self, params: nnx.State, step: int, stop_now: Callable[[], bool]) -> Evaluation | None:
        found = self._evaluate(params, stop_now)
        return Evaluation(as_validation(found[0]), describe_metrics(found[0])) if found else None

    def splits(self) -> list[tuple[str, Split]]:
        """All splits that predictions are made for: the labelled ones, and last the unlabelled one, if there is one."""
        return [*self.data.validation.items(), *([('predict', self.data.predict)] if self.data.predict else [])]

    def evaluate(self, params: nnx.State) -> tuple[dict[str, float], list[list[Any]]]:
        """(metrics by name, those of the first split without its name; the predictions of each of `splits`)."""
        found = self._evaluate(params, lambda: False)
        assert found is not None  # nothing cuts it short
        return found

    def _evaluate(
        self, params: nnx.State, stop_now: Callable[[], bool]
    ) -> tuple[dict[str, float], list[list[Any]]] | None:
        """Likewise; None when `stop_now`, asked once a batch, said yes before the end."""
        metrics: dict[str, float] = {}
        predictions = []
        for name, split in self.splits():
            outputs = self._outputs(params, split.rows, stop_now)
            if outputs is None:
                return None
            predictions.append(split.predictions(outputs))
            if name in self.data.validation:
                found = split.metrics(self.data.metrics, predictions[-1])
                metrics |= {f'{name}/{key}': value for key, value in found.items()} if metrics else found
            else:
                predictions[-1] = split.decided(predictions[-1], metrics)
        return metrics, predictions

    def _outputs(self, params: nnx.State, rows: Rows, stop_now: Callable[[], bool]) -> np.ndarray | None:
        """The model's outputs for all rows, float32 [N, …]; None when cut short."""
        stream = self.streams(rows, None)
        found = []
        batches = device_batches(stream, self.mesh, 0, len(stream))
        for _, batch in counted(batches, len(stream), 'examples of the task'):
            found.append(np.asarray(self.predict_step(params, batch), np.float32))
            if stop_now():
                return None
        return np.concatenate(found)[: stream.num_rows]


def task_streams(config: FinetuneConfig, pad_id: int, mesh: Mesh) -> Callable[[Rows, int | None], TaskStream]:
    """What makes the batches of examples: (examples, seed; None for evaluation) -> stream.

    Training packs as `config.task.examples_per_row` says. Evaluation has an example a row, and rows as long as the
    longest example needs.
    """
    task, train = config.task, config.train
    # Kernels of TPUs and GPUs need whole blocks of 128 positions.
    length_multiple = 16 if jax.default_backend() == 'cpu' else 128
    shards = mesh.shape['data'] * mesh.shape['fsdp'] * train.microbatches
    num_rows_multiple = train.exact_shards if train.reduction == 'exact' else shards

    def stream(rows: Rows, seed: int | None) -> TaskStream:
        length, packing = task.sequence_length, None
        if seed is None:
            length = min(length, round_up(int(np.diff(rows.starts).max()), length_multiple))
        elif task.examples_per_row != 1:
            per_row = task.examples_per_row or choose_examples_per_row(rows)
            packing = Packing(per_row, num_rows_multiple, length_multiple)
        return TaskStream(
            rows,
            batch_size=train.global_batch_size,
            seed=seed,
            sequence_length=length,
            pad_id=pad_id,
            packing=packing,
        )

    return stream


def model_outputs(model: BertForTask, batch: TaskBatch, gather: Gather | None = None) -> jax.Array:
    """The outputs of a task's model for an example a row, without dropout: float32 [B, C] (pooled) or [B, L, C]."""
    outputs = model(batch, gather=gather)
    return outputs[:, 0] if model.is_pooled else outputs


def as_validation(metrics: dict[str, float]) -> dict[str, float]:
    """The names under which a task's metrics are logged."""
    return {f'validation/{name}': value for name, value in metrics.items()}


def describe_metrics(metrics: dict[str, float]) -> str:
    """`accuracy 87.3%, f1 90.1%`."""
    return ', '.join(f'{name} {shown(name, value)}' for name, value in metrics.items())
