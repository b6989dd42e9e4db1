"""Models for fine-tuning, an encoder with a task head, and their objectives.

`B` rows, `L` positions, `E` examples of a row, `D` hidden, `C` outputs: classes, tags, one value, or first and last.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax import config
from bert_jax.config.finetuning import Task
from bert_jax.finetune.rows import TaskBatch
from bert_jax.model.bert import Bert
from bert_jax.model.dropout import DropoutKey, dropout
from bert_jax.model.inputs import Array, Inputs
from bert_jax.model.layer_stack import Gather
from bert_jax.model.layers import Dense, truncated_normal
from bert_jax.model.losses import cross_entropy
from bert_jax.train.objective import Objective, mean

POOLED = ('classification', 'regression')

# The `transformers` class for each kind of task.
ARCHITECTURES = {
    'classification': 'BertForSequenceClassification',
    'regression': 'BertForSequenceClassification',
    'tagging': 'BertForTokenClassification',
    'spans': 'BertForQuestionAnswering',
}

# By `config.task.head_initializer`: 'normal' as in `transformers`, 'truncated_normal' as in `run_classifier.py`.
HEAD_INITIALIZERS = {'normal': nnx.initializers.normal, 'truncated_normal': truncated_normal}


class BertForTask(nnx.Module):
    """A BERT encoder with a task head.

    The head is a dense layer over the pooled vector (classification, regression) or each token (tagging, spans). It
    is preceded by dropout except for spans, as in the original's `run_classifier.py` and `run_squad.py`.
    """

    def __init__(
        self, kind: str, num_outputs: int, initializer: str, model: config.Bert, vocab_size: int, rngs: nnx.Rngs
    ):
        """Args: kind: of the task; num_outputs: C; initializer: see `new_head`."""
        self.bert = Bert(model, vocab_size, rngs)
        self.is_pooled = kind in POOLED
        if not self.is_pooled:
            del self.bert.pooler
        self.classifier = new_head(model, num_outputs, initializer, rngs)
        self.kind, self.num_layers, self.rate = kind, model.num_layers, model.dropout_rate

    def encode(
        self, inputs: Inputs, key: DropoutKey | None = None, is_packed: bool = True, gather: Gather | None = None
    ) -> jax.Array:
        """Returns contextual vectors [B, L, D]; arguments as for `PretrainingModel.encode`."""
        return self.bert(inputs, key, is_packed, gather)

    def __call__(self, batch: TaskBatch, key: DropoutKey | None = None, gather: Gather | None = None) -> jax.Array:
        """Returns float32 [B, E, C] (pooled) or [B, L, C]. Without a key, no dropout; gather: see `Encoder`."""
        x = self.encode(batch.inputs, key, is_packed=batch.cls_positions.shape[1] > 1, gather=gather)
        if self.is_pooled:
            x = self.bert.pool(x, batch.cls_positions)
        if self.kind != 'spans':
            x = dropout(x, self.rate, key and key.at(self.num_layers + 1), site=0)
        return self.classifier(x.astype(jnp.float32))


def new_head(model: config.Model, num_outputs: int, initializer: str, rngs: nnx.Rngs) -> Dense:
    """Creates a head with random weights; initializer: `config.task.head_initializer`."""
    axes, stddev, draw = ('embed', 'labels'), model.initializer_range, HEAD_INITIALIZERS[initializer]
    return Dense(model.hidden_size, num_outputs, axes, stddev, 'float32', rngs, draw)


@functools.cache
def builder(
    kind: str, num_outputs: int, initializer: str = Task.head_initializer
) -> Callable[[config.Model, int, nnx.Rngs], BertForTask]:
    """Returns a function that builds the model of a task."""
    return functools.partial(BertForTask, kind, num_outputs, initializer)


class TaskSums(NamedTuple):
    """Sums over labels of losses and hits, and the label count; float32 scalars. Hits are 0 for regression."""

    loss_sum: jax.Array
    hits: jax.Array
    weight: jax.Array


@dataclasses.dataclass(frozen=True)
class _TaskObjective:
    kind: str

    def sums(
        self, model: BertForTask, batch: TaskBatch, key: DropoutKey | None, gather: Gather | None = None
    ) -> TaskSums:
        outputs = model(batch, key, gather)
        weight = batch.weights.sum()
        if self.kind == 'regression':
            losses = jnp.square(outputs[..., 0] - batch.labels)
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
        return metrics if self.kind == 'regression' else metrics | {'accuracy': mean(sums.hits, sums.weight)}


@functools.cache
def objective(kind: str) -> Objective:
    """Returns the objective of a task.

    Cross entropy in nats, for spans the mean over first and last token; squared error for regression.
    """
    return _TaskObjective(kind)


def span_logits(outputs: jax.Array, sequence_ids: Array, num_sequences: int) -> jax.Array:
    """[B, L, 2] -> [B, E, 2, L]: each example's logits for first and last token, the float minimum elsewhere."""
    is_own = sequence_ids[:, None] == jnp.arange(1, num_sequences + 1)[:, None]  # BEL
    return jnp.where(is_own[:, :, None], outputs.swapaxes(1, 2)[:, None], jnp.finfo(outputs.dtype).min)
