"""The encoder with the head of a task, and what each task minimises.

`B` rows, `L` positions, `D` hidden, `C` outputs (classes, 1 value, tags, or first and last token).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax import config
from bert_jax.finetune.rows import TaskBatch
from bert_jax.model.bert import Bert, Gather
from bert_jax.model.dropout import DropoutKey, dropout
from bert_jax.model.inputs import Array
from bert_jax.model.layers import Dense
from bert_jax.model.losses import cross_entropy
from bert_jax.train.objective import Objective, mean

POOLED = ('classification', 'regression')

# The class of `transformers` that opens each kind of task.
ARCHITECTURES = {
    'classification': 'BertForSequenceClassification',
    'regression': 'BertForSequenceClassification',
    'tagging': 'BertForTokenClassification',
    'spans': 'BertForQuestionAnswering',
}


class BertForTask(nnx.Module):
    """One dense layer over the pooled vector (classification, regression) or over every token (tagging, spans).

    With dropout before it, but for spans; as in the original's `run_classifier.py` and `run_squad.py`.
    """

    def __init__(self, kind: str, num_outputs: int, model: config.Model, vocab_size: int, rngs: nnx.Rngs):
        """Args: kind, of the task; num_outputs, C."""
        self.bert = Bert(model, vocab_size, rngs)
        if kind not in POOLED:
            del self.bert.pooler
        self.classifier = new_head(model, num_outputs, rngs)
        self.kind, self.num_layers, self.rate = kind, model.num_layers, model.dropout_rate

    def __call__(self, batch: TaskBatch, key: DropoutKey | None = None, gather: Gather | None = None) -> jax.Array:
        """float32 [B, C] (pooled) or [B, L, C]; without a key nothing is dropped out. gather: as of `Encoder`."""
        x = self.bert(batch.inputs, key, is_packed=False, gather=gather)
        if self.kind in POOLED:
            x = self.bert.pool(x, batch.cls_positions)[:, 0]
        if self.kind != 'spans':
            x = dropout(x, self.rate, key and key.at(self.num_layers + 1), site=0)
        return self.classifier(x.astype(jnp.float32))


def new_head(model: config.Model, num_outputs: int, rngs: nnx.Rngs) -> Dense:
    """A head as the original draws it."""
    return Dense(model.hidden_size, num_outputs, ('embed', 'labels'), model.initializer_range, 'float32', rngs)


@functools.cache
def builder(kind: str, num_outputs: int) -> Callable[[config.Model, int, nnx.Rngs], BertForTask]:
    """What makes the model of a task."""
    return functools.partial(BertForTask, kind, num_outputs)


class TaskSums(NamedTuple):
    """Losses and hits summed over labels, and the number of labels, float32 scalars; a regression's hits are 0."""

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
            losses = jnp.square(outputs[:, 0] - batch.labels)
            return TaskSums((losses * batch.weights).sum(), jnp.zeros(()), weight)
        if self.kind == 'spans':
            outputs = span_logits(outputs, batch.sequence_ids).swapaxes(1, 2)  # B, 2, L
        losses, hits = cross_entropy(outputs, batch.labels)
        if self.kind == 'spans':
            losses, hits = losses.mean(axis=1), hits.min(axis=1)
        return TaskSums((losses * batch.weights).sum(), (hits * batch.weights).sum(), weight)

    def weights(self, batch: TaskBatch) -> Array:
        return batch.weights.sum()

    def loss(self, sums: TaskSums, weights: Array) -> jax.Array:
        return sums.loss_sum / jnp.maximum(weights, 1.0)

    def metrics(self, sums: TaskSums) -> dict[str, jax.Array]:
        found = {'loss': self.loss(sums, sums.weight)}
        return found if self.kind == 'regression' else found | {'accuracy': mean(sums.hits, sums.weight)}


@functools.cache
def objective(kind: str) -> Objective:
    """Cross entropy (nats); squared error for a regression; for spans the mean of first and last token's."""
    return _TaskObjective(kind)


def span_logits(outputs: jax.Array, sequence_ids: Array) -> jax.Array:
    """[B, L, 2] logits of first and last token, the lowest there is in the padding."""
    return jnp.where(sequence_ids[..., None] > 0, outputs, jnp.finfo(outputs.dtype).min)
