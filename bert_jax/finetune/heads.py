"""Models for fine-tuning, an encoder with a task head, and their objectives.

`B` rows, `L` positions, `E` examples of a row, `D` hidden, `C` outputs: classes, tags, one value, or first and last.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bert_jax import config
from bert_jax.config.finetuning import POOLED, SCORES, Task
from bert_jax.finetune.rows import TaskBatch
from bert_jax.model import eurobert, modernbert
from bert_jax.model.bert import Bert, Encoder, new_pooler
from bert_jax.model.dropout import DropoutKey, dropout
from bert_jax.model.inputs import Array, Inputs
from bert_jax.model.layer_stack import Gather
from bert_jax.model.layers import Dense, gelu, stack, truncated_normal
from bert_jax.model.losses import cross_entropy
from bert_jax.model.pre_norm import PreNormEncoder
from bert_jax.model.vocabulary import at_positions
from bert_jax.pretrained.hub import POOLER, PREDICTION_HEAD
from bert_jax.train.objectives.interface import Objective, mean

# By `config.task.head_initializer`: 'normal' as in `transformers`, 'truncated_normal' as in `run_classifier.py`.
HEAD_INITIALIZERS = {'normal': nnx.initializers.normal, 'truncated_normal': truncated_normal}


class TaskModel(nnx.Module):
    """An encoder with the head of a task. A subclass defines the encoder and what the classifier reads.

    Attributes:
      LAYER_ABOVE: the head of pretraining with the layer between encoder and classifier; None if it is always new.
      kind: of the task.
      classifier: dense layer over the vector of each example (classification, scores) or token (tagging, spans).
    """

    LAYER_ABOVE: ClassVar[str | None] = None
    kind: str
    classifier: Dense

    @property
    def is_pooled(self) -> bool:
        """Whether the classifier reads one vector per example."""
        return self.kind in POOLED

    @abc.abstractmethod
    def encode(self, inputs: Inputs, key: DropoutKey | None = None, gather: Gather | None = None) -> jax.Array:
        """Returns contextual vectors [B, L, D]; arguments as for `PretrainingModel.encode`."""

    @abc.abstractmethod
    def outputs(self, hidden: jax.Array, batch: TaskBatch, key: DropoutKey | None) -> jax.Array:
        """Returns float32 [B, E, C] (pooled) or [B, L, C] of contextual vectors [B, L, D]."""

    def __call__(self, batch: TaskBatch, key: DropoutKey | None = None, gather: Gather | None = None) -> jax.Array:
        """Returns float32 [B, E, C] (pooled) or [B, L, C]. Without a key, no dropout; gather: see `Encoder`."""
        x = self.encode(batch.inputs, key, gather=gather)
        return self.outputs(x, batch, key)

    @classmethod
    @abc.abstractmethod
    def new_layer_above(cls, model: Any, initializer: str, rngs: nnx.Rngs) -> dict[tuple, nnx.Param]:
        """Draws the layer between encoder and classifier; returns {path: parameter}.

        Args:
          initializer: see `new_head`; a prediction head has its own.
        """

    @classmethod
    @abc.abstractmethod
    def new_layers(cls, model: Any, num_layers: int, rngs: nnx.Rngs) -> dict[tuple, nnx.Param]:
        """Draws layers of the encoder; returns {path: parameters, stacked}."""


class BertForTask(TaskModel):
    """BERT with the head of a task, preceded by dropout except for spans, as in the original's fine-tuning scripts."""

    LAYER_ABOVE: ClassVar[str | None] = POOLER

    def __init__(
        self, kind: str, num_outputs: int, initializer: str, model: config.Bert, vocab_size: int, rngs: nnx.Rngs
    ):
        """Args: kind: of the task; num_outputs: C; initializer: see `new_head`."""
        self.bert = Bert(model, vocab_size, rngs)
        self.kind = kind
        if not self.is_pooled:
            del self.bert.pooler
        self.classifier = new_head(model, num_outputs, initializer, rngs)
        self.num_layers, self.rate = model.num_layers, model.dropout_rate

    def encode(self, inputs: Inputs, key: DropoutKey | None = None, gather: Gather | None = None) -> jax.Array:
        return self.bert(inputs, key, gather)

    def outputs(self, hidden: jax.Array, batch: TaskBatch, key: DropoutKey | None) -> jax.Array:
        x = self.bert.pool(hidden, batch.cls_positions) if self.is_pooled else hidden
        if self.kind != 'spans':
            x = dropout(x, self.rate, key and key.at(self.num_layers + 1), site=0)
        return self.classifier(x.astype(jnp.float32))

    @classmethod
    def new_layer_above(cls, model: config.Bert, initializer: str, rngs: nnx.Rngs) -> dict[tuple, nnx.Param]:
        return flat_params(new_pooler(model, rngs, HEAD_INITIALIZERS[initializer]), 'bert', 'pooler')

    @classmethod
    def new_layers(cls, model: config.Bert, num_layers: int, rngs: nnx.Rngs) -> dict[tuple, nnx.Param]:
        return flat_params(Encoder(dataclasses.replace(model, num_layers=num_layers), rngs), 'bert', 'encoder')


class PreNormForTask(TaskModel):
    """What the models with an encoder of `model/pre_norm.py` share. FAMILY: the module with its `new_layer`."""

    FAMILY: ClassVar[Any]
    encoder: PreNormEncoder

    def encode(self, inputs: Inputs, key: DropoutKey | None = None, gather: Gather | None = None) -> jax.Array:
        return self.encoder(inputs, key, gather)

    @classmethod
    def new_layers(cls, model: config.Model, num_layers: int, rngs: nnx.Rngs) -> dict[tuple, nnx.Param]:
        layers = stack(functools.partial(cls.FAMILY.new_layer, model), num_layers, rngs)
        return flat_params(layers, 'encoder', 'layers')


class ModernBertForTask(PreNormForTask):
    """ModernBERT with its prediction head, dropout and the classifier of a task."""

    FAMILY: ClassVar[Any] = modernbert
    LAYER_ABOVE: ClassVar[str | None] = PREDICTION_HEAD

    def __init__(
        self, kind: str, num_outputs: int, initializer: str, model: config.ModernBert, vocab_size: int, rngs: nnx.Rngs
    ):
        """Args: as for `BertForTask`."""
        self.kind = kind
        self.encoder = modernbert.new_encoder(model, vocab_size, rngs)
        self.head = modernbert.PredictionHead(model, rngs)
        self.classifier = new_head(model, num_outputs, initializer, rngs)
        self.pooling, self.num_layers, self.rate = model.classifier_pooling, model.num_layers, model.classifier_dropout

    def outputs(self, hidden: jax.Array, batch: TaskBatch, key: DropoutKey | None) -> jax.Array:
        x = hidden
        if self.is_pooled:
            x = at_positions(x, batch.cls_positions) if self.pooling == 'cls' else mean_of_examples(x, batch)
        x = dropout(self.head(x), self.rate, key and key.at(self.num_layers + 1), site=0)
        return self.classifier(x.astype(jnp.float32))

    @classmethod
    def new_layer_above(cls, model: config.ModernBert, initializer: str, rngs: nnx.Rngs) -> dict[tuple, nnx.Param]:
        return flat_params(modernbert.PredictionHead(model, rngs), 'head')


class EuroBertForTask(PreNormForTask):
    """EuroBERT with the classifier of a task, after a dense layer and gelu if the outputs are one per example."""

    FAMILY: ClassVar[Any] = eurobert

    def __init__(
        self, kind: str, num_outputs: int, initializer: str, model: config.EuroBert, vocab_size: int, rngs: nnx.Rngs
    ):
        """Args: as for `BertForTask`."""
        self.kind = kind
        self.encoder = eurobert.new_encoder(model, vocab_size, rngs)
        if self.is_pooled:
            self.dense = _new_dense(model, initializer, rngs)
        self.classifier = new_head(model, num_outputs, initializer, rngs)
        self.pooling = model.classifier_pooling

    def outputs(self, hidden: jax.Array, batch: TaskBatch, key: DropoutKey | None) -> jax.Array:
        if not self.is_pooled:
            return self.classifier(hidden.astype(jnp.float32))
        if self.pooling == 'late':  # the classifier is linear: the mean of its outputs is its output for the mean
            x = mean_of_examples(gelu(self.dense(hidden)), batch)
        else:
            first = self.pooling == 'bos'
            x = at_positions(hidden, batch.cls_positions) if first else mean_of_examples(hidden, batch)
            x = gelu(self.dense(x))
        return self.classifier(x.astype(jnp.float32))

    @classmethod
    def new_layer_above(cls, model: config.EuroBert, initializer: str, rngs: nnx.Rngs) -> dict[tuple, nnx.Param]:
        return flat_params(_new_dense(model, initializer, rngs), 'dense')


TASK_MODELS: dict[str, type[TaskModel]] = {
    'bert': BertForTask,
    'modernbert': ModernBertForTask,
    'eurobert': EuroBertForTask,
}


def mean_of_examples(x: jax.Array, batch: TaskBatch) -> jax.Array:
    """Returns the mean of the vectors of each example: [B, L, D] -> [B, E, D]; 0 for empty slots."""
    examples = jnp.arange(1, batch.cls_positions.shape[1] + 1)
    is_own = (jnp.asarray(batch.sequence_ids)[:, None] == examples[:, None]).astype(x.dtype)  # BEL
    return jnp.einsum('bel,bld->bed', is_own, x) / jnp.maximum(is_own.sum(axis=-1, keepdims=True), 1)


def new_head(model: config.Model, num_outputs: int, initializer: str, rngs: nnx.Rngs) -> Dense:
    """Creates a classifier with random weights; initializer: `config.task.head_initializer`."""
    axes, stddev, draw = ('embed', 'labels'), model.initializer_range, HEAD_INITIALIZERS[initializer]
    return Dense(model.hidden_size, num_outputs, axes, stddev, 'float32', rngs, draw)


def _new_dense(model: config.EuroBert, initializer: str, rngs: nnx.Rngs) -> Dense:
    size, draw = model.hidden_size, HEAD_INITIALIZERS[initializer]
    return Dense(size, size, ('embed', 'pooled'), model.initializer_range, model.dtype, rngs, draw)


def flat_params(module: nnx.Module, *prefix: str) -> dict[tuple, nnx.Param]:
    """Returns {path: parameter} of a module that has this path in a larger one."""
    return {(*prefix, *path): leaf for path, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param))}


@functools.cache
def builder(
    kind: str, num_outputs: int, initializer: str = Task.head_initializer
) -> Callable[[config.Model, int, nnx.Rngs], TaskModel]:
    """Returns a function that builds the model of a task."""

    def build(model: Any, num_tokens: int, rngs: nnx.Rngs) -> Any:
        rows, model = model.num_embeddings(num_tokens), model.with_dtype('float32')  # as `build_model`
        return TASK_MODELS[model.family](kind, num_outputs, initializer, model, rows, rngs)  # ty: ignore[too-many-positional-arguments]

    return build


class TaskSums(NamedTuple):
    """Sums over labels of losses and hits, and the label count; float32 scalars. Hits are 0 for scores."""

    loss_sum: jax.Array
    hits: jax.Array
    weight: jax.Array


_SCORE_LOSSES = {'regression': optax.losses.squared_error, 'ranking': optax.losses.sigmoid_binary_cross_entropy}


@dataclasses.dataclass(frozen=True)
class _TaskObjective(Objective):
    kind: str

    def sums(
        self, model: TaskModel, batch: TaskBatch, key: DropoutKey | None, gather: Gather | None = None
    ) -> TaskSums:
        outputs = model(batch, key, gather)
        weight = batch.weights.sum()
        if self.kind in SCORES:
            losses = _SCORE_LOSSES[self.kind](outputs[..., 0], batch.labels)
            return TaskSums((losses * batch.weights).sum(), jnp.zeros(()), weight)
        if self.kind == 'spans':
            outputs = span_logits(outputs, batch.sequence_ids, batch.cls_positions.shape[1])
        losses, hits = cross_entropy(outputs, batch.labels)
        if self.kind == 'spans':
            losses, hits = losses.mean(axis=-1), hits.min(axis=-1)
        return TaskSums((losses * batch.weights).sum(), (hits * batch.weights).sum(), weight)

    def weights(self, batch: TaskBatch) -> Array:
        return batch.weights.sum()

    def loss(self, sums: TaskSums, weights: Array) -> jax.Array:
        return sums.loss_sum / jnp.maximum(weights, 1.0)

    def metrics(self, sums: TaskSums) -> dict[str, jax.Array]:
        metrics = {'loss': self.loss(sums, sums.weight)}
        return metrics if self.kind in SCORES else metrics | {'accuracy': mean(sums.hits, sums.weight)}


@functools.cache
def objective(kind: str) -> Objective:
    """Returns the objective of a task.

    Cross entropy in nats, for spans the mean over first and last token; squared error for regression;
    binary cross entropy of the logit with the label, from 0 to 1, for ranking.
    """
    return _TaskObjective(kind)


def span_logits(outputs: jax.Array, sequence_ids: Array, num_sequences: int) -> jax.Array:
    """[B, L, 2] -> [B, E, 2, L]: each example's logits for first and last token, the float minimum elsewhere."""
    is_own = sequence_ids[:, None] == jnp.arange(1, num_sequences + 1)[:, None]  # BEL
    return jnp.where(is_own[:, :, None], outputs.swapaxes(1, 2)[:, None], jnp.finfo(outputs.dtype).min)
