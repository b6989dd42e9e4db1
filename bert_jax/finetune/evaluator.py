"""Computes the metrics and predictions of a model on the splits of its task."""

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from bert_jax.activity import counted
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.data.device_batches import device_batches
from bert_jax.evaluation.evaluator import Evaluation, is_due_every
from bert_jax.finetune.embedding_task import TrainingPairs
from bert_jax.finetune.heads import TaskModel
from bert_jax.finetune.metrics import format_metric
from bert_jax.finetune.packing import Packing, SampledBatches, choose_examples_per_row, round_up, sampled_batches
from bert_jax.finetune.pair_stream import PairStream, sampled_pairs
from bert_jax.finetune.rows import Rows, TaskBatch, TaskStream
from bert_jax.finetune.splits import Split
from bert_jax.finetune.tasks import TaskData
from bert_jax.model.layer_stack import Gather


@dataclasses.dataclass(frozen=True)
class TaskEvaluator:
    """An evaluator that runs during training; `evaluate` measures the last step once it is saved.

    Attributes:
      predict_step: (parameters, batch) -> `model_outputs`.
      streams: (rows, seed, or None for evaluation) -> batches.
      every: steps between evaluations; 0 evaluates only after training.
    """

    data: TaskData
    predict_step: Callable[[nnx.State, TaskBatch], jax.Array]
    streams: Callable[[Rows, int | None], Any]
    mesh: Mesh
    every: int = 0
    activity: str = 'evaluating'

    def is_due(self, step: int, *, is_final: bool) -> bool:
        return not is_final and is_due_every(self.every, step, is_final=False)

    def __call__(self, params: nnx.State, step: int, stop_now: Callable[[], bool]) -> Evaluation | None:
        result = self._evaluate(params, stop_now)
        return Evaluation(with_validation_prefix(result[0]), describe_metrics(result[0])) if result else None

    def splits(self) -> list[tuple[str, Split]]:
        """Returns the splits to predict: the labelled ones, then the unlabelled one, if any."""
        return [*self.data.validation.items(), *([('predict', self.data.predict)] if self.data.predict else [])]

    def evaluate(self, params: nnx.State) -> tuple[dict[str, float], list[list[Any]]]:
        """Returns (metrics, predictions for each of `splits`).

        Metrics are keyed SPLIT/METRIC, those of the first split by METRIC alone.
        """
        result = self._evaluate(params, lambda: False)
        assert result is not None  # None means interrupted
        return result

    def _evaluate(
        self, params: nnx.State, stop_now: Callable[[], bool]
    ) -> tuple[dict[str, float], list[list[Any]]] | None:
        """Like `evaluate`, but returns None once `stop_now`, called after every batch, returns True."""
        metrics: dict[str, float] = {}
        predictions = []
        for name, split in self.splits():
            outputs = self._outputs(params, split.rows, stop_now)
            if outputs is None:
                return None
            predictions.append(split.predictions(outputs))
            if name in self.data.validation:
                measured = split.metrics(self.data.metrics, predictions[-1])
                metrics |= {f'{name}/{key}': value for key, value in measured.items()} if metrics else measured
            else:
                predictions[-1] = split.apply_threshold(predictions[-1], metrics)
        return metrics, predictions

    def _outputs(self, params: nnx.State, rows: Rows, stop_now: Callable[[], bool]) -> np.ndarray | None:
        """Returns the model's outputs, float32 [N, C] or [N, longest, C] (0 beyond a row); None if interrupted."""
        stream = self.streams(rows, None)
        shape = (len(rows), int(np.diff(rows.starts).max()), self.data.num_outputs)
        outputs = np.zeros(shape if rows.has_token_outputs else shape[::2], np.float32)
        batches = device_batches(stream, self.mesh, 0, len(stream))
        for step, batch in counted(batches, len(stream), 'examples of the task'):
            of_batch = np.asarray(self.predict_step(params, batch), np.float32)
            stream.layout(step - 1).unpack(of_batch, outputs)
            if stop_now():
                return None
        return outputs


def task_streams(config: FinetuneConfig, pad_id: int, mesh: Mesh) -> Callable[[Rows | TrainingPairs, int | None], Any]:
    """Returns a function (examples, seed, or None for evaluation) -> stream of batches.

    Both pack as `config.task.examples_per_row` says. Where that is one example per row, evaluation makes rows only as
    long as the longest example needs.
    """
    task, train = config.task, config.train
    # TPU and GPU kernels need whole blocks of 128 positions, and up to eight devices share the rows of most batches.
    length_multiple, usual_shards = (16, 1) if jax.default_backend() == 'cpu' else (128, 8)
    shards = mesh.shape['data'] * mesh.shape['fsdp'] * train.microbatches
    num_rows_multiple = train.exact_shards if train.reduction == 'exact' else shards

    def per_row(sources: Sequence[SampledBatches], batch_size: int) -> int | Fraction:
        multiple = num_rows_multiple if train.reduction == 'exact' else usual_shards
        return task.examples_per_row or choose_examples_per_row(sources, batch_size, multiple, length_multiple)

    def pair_stream(pairs: TrainingPairs, seed: int) -> PairStream:
        sources, num_roles = [*pairs.sources.values()], 2 + config.embedding.num_negatives
        size = train.global_batch_size
        weighted = zip(sources, pairs.weights, strict=True)
        sampled = [sampled_pairs(source, size, num_roles, weight) for source, weight in weighted]
        return PairStream(
            sources,
            pairs.weights,
            batch_size=size,
            num_roles=num_roles,
            seed=seed,
            pad_id=pad_id,
            packing=Packing(per_row(sampled, size * num_roles), shards, length_multiple),
            min_length=task.sequence_length if task.examples_per_row == 1 else 0,
        )

    def stream(rows: Rows | TrainingPairs, seed: int | None) -> TaskStream | PairStream:
        if isinstance(rows, TrainingPairs):
            assert seed is not None  # held-out pairs are `Rows`
            return pair_stream(rows, seed)
        length, packing = task.sequence_length, None
        sampled = sampled_batches(np.diff(rows.starts), train.global_batch_size)
        examples_per_row = per_row([sampled], train.global_batch_size)
        if task.examples_per_row != 1 and not (seed is None and examples_per_row == 1):
            packing = Packing(examples_per_row, num_rows_multiple, length_multiple)
        elif seed is None:
            length = min(length, round_up(int(np.diff(rows.starts).max()), length_multiple))
        return TaskStream(
            rows,
            batch_size=train.global_batch_size,
            seed=seed,
            sequence_length=length,
            pad_id=pad_id,
            packing=packing,
        )

    return stream


def model_outputs(model: TaskModel, batch: TaskBatch, gather: Gather | None = None) -> jax.Array:
    """Returns outputs without dropout: float32 [B, E, C] (pooled) or [B, L, C]."""
    return model(batch, gather=gather)


def with_validation_prefix(metrics: dict[str, float]) -> dict[str, float]:
    """Prefixes metric names as they are logged: `validation/NAME`."""
    return {f'validation/{name}': value for name, value in metrics.items()}


def describe_metrics(metrics: dict[str, float]) -> str:
    """Formats metrics as `accuracy 87.3%, f1 90.1%`."""
    return ', '.join(f'{name} {format_metric(name, value)}' for name, value in metrics.items())
