"""The loss that a train step minimizes. `B` rows, `L` positions, `E` sequences per row."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from bert_jax.data.batches import Batch
from bert_jax.model.contrastive import Part
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.family import PretrainingModel
from bert_jax.model.inputs import Array
from bert_jax.model.layer_stack import Gather
from bert_jax.model.losses import cross_entropy


class Objective(Protocol):
    """A loss over a global batch as sums and ratios of sums, so that it does not depend on how rows are split.

    Batches are NamedTuples of arrays with a first dim B; the step itself reads `input_ids` and `sequence_ids` [B, L]
    and `cls_positions` [B, E].
    """

    def sums(self, model: Any, batch: Any, key: DropoutKey | None, gather: Gather | None = None) -> Any:
        """Returns a NamedTuple of float32 scalars, each summed over the rows of a batch.

        Args:
          key: dropout key; None for no dropout.
          gather: passed on to the model's forward pass.
        """

    def weights(self, batch: Any) -> Any:
        """Returns the divisors of `loss`, summed over the rows of a batch: whole numbers."""

    def loss(self, sums: Any, weights: Any) -> jax.Array:
        """Returns the scalar to minimize. sums: of some rows; weights: of the whole global batch."""

    def metrics(self, sums: Any) -> dict[str, jax.Array]:
        """Returns the metrics to log, including `loss`, from the sums of a global batch or a whole split.

        A mean over nothing is NaN (`mean`). `loss` alone is 0 then, so that such a batch trains on.
        """


@runtime_checkable
class VectorObjective(Protocol):
    """A loss over the vectors of a whole global batch, in which texts of different rows are compared.

    Batches as for `Objective`. The loss is computed in parts, one per device.
    """

    def vectors(self, model: Any, batch: Any, key: DropoutKey | None, gather: Gather | None = None) -> jax.Array:
        """Returns float32 vectors with a first dim B; arguments as for `Objective.sums`."""

    def labels(self, batch: Any) -> Any:
        """Returns what else the loss needs of a batch: arrays with a first dim B."""

    def loss(self, vectors: jax.Array, labels: Any, part: Part) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns a part of the scalar to minimize and of each other metric; the sums over all parts are the whole.

        Args:
          vectors, labels: of the whole global batch.
        """


class PretrainingSums(NamedTuple):
    """Losses (nats) and hits summed over a batch, each a float32 scalar."""

    mlm_sum: jax.Array
    mlm_hits: jax.Array
    mlm_weight: jax.Array
    nsp_sum: jax.Array
    nsp_hits: jax.Array
    nsp_weight: jax.Array


class Pretraining:
    """Masked tokens and pairs of sentences (Devlin et al. 2019, section 3.1)."""

    def sums(
        self, model: PretrainingModel, batch: Batch, key: DropoutKey | None, gather: Gather | None = None
    ) -> PretrainingSums:
        """Returns the weighted cross entropies and hits of both."""
        hidden = model.encode(batch.inputs, key, gather=gather)
        mlm = model.mlm_losses(hidden, batch.masked_lm_positions, batch.masked_lm_ids)
        nsp_logits = model.nsp_logits(hidden, batch.cls_positions)
        nsp = (jnp.zeros(()),) * 3
        if nsp_logits is not None:
            nsp = _summed(*cross_entropy(nsp_logits, batch.next_sentence_labels), batch.next_sentence_weights)
        return PretrainingSums(*_summed(*mlm, batch.masked_lm_weights), *nsp)

    def weights(self, batch: Batch) -> tuple[Array, Array]:
        """Returns the number of (masked tokens, pairs)."""
        return batch.masked_lm_weights.sum(), batch.next_sentence_weights.sum()

    def loss(self, sums: PretrainingSums, weights: tuple[Array, Array]) -> jax.Array:
        """Returns mlm_sum / mlm_weight + nsp_sum / nsp_weight; a weight of 0 gives 0."""
        mlm_weight, nsp_weight = weights
        return _ratio(sums.mlm_sum, mlm_weight) + _ratio(sums.nsp_sum, nsp_weight)

    def metrics(self, sums: PretrainingSums) -> dict[str, jax.Array]:
        """Returns the loss, and the mean loss and accuracy of each; NaN for an objective without labels in the rows."""
        return {
            'loss': self.loss(sums, (sums.mlm_weight, sums.nsp_weight)),
            'mlm_loss': mean(sums.mlm_sum, sums.mlm_weight),
            'nsp_loss': mean(sums.nsp_sum, sums.nsp_weight),
            'mlm_accuracy': mean(sums.mlm_hits, sums.mlm_weight),
            'nsp_accuracy': mean(sums.nsp_hits, sums.nsp_weight),
        }


PRETRAINING = Pretraining()


def mean(total: Array, weight: Array) -> jax.Array:
    """Returns total / weight as a metric; NaN for a weight of 0, because nothing was measured."""
    return jnp.where(weight > 0, total / jnp.maximum(weight, 1.0), jnp.nan)


def _summed(losses: jax.Array, hits: jax.Array, weights: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return (losses * weights).sum(), (hits * weights).sum(), weights.sum()


def _ratio(total: Array, weight: Array) -> jax.Array:
    return jnp.where(weight > 0, total / jnp.maximum(weight, 1.0), 0.0)
