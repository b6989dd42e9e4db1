"""The model and the objective of a fine-tune, by its config."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from bert_jax import config
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.finetune import heads
from bert_jax.finetune.embedding import EMBEDDING, EMBEDDING_MODELS, EmbeddingObjective, embedding_builder
from bert_jax.finetune.heads import TASK_MODELS, TaskModel


def build_of(given: FinetuneConfig, num_outputs: int) -> Callable[[config.Model, int, nnx.Rngs], TaskModel]:
    """Returns a function that builds the model of a fine-tune; num_outputs: see `TaskData`."""
    if given.task.kind == EMBEDDING:
        return embedding_builder(given.embedding.pooling)
    return heads.builder(given.task.kind, num_outputs, given.task.head_initializer)


def objective_of(given: FinetuneConfig) -> Any:
    """Returns the `Objective` of a task, or the `VectorObjective` of embeddings."""
    if given.task.kind == EMBEDDING:
        return EmbeddingObjective(given.embedding, given.train.global_batch_size)
    return heads.objective(given.task.kind)


def task_model(given: FinetuneConfig) -> Any:
    """Returns the class of the model."""
    return (EMBEDDING_MODELS if given.task.kind == EMBEDDING else TASK_MODELS)[given.model.family]
