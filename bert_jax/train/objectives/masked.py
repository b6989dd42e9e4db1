"""Masked tokens and pairs of sentences (Devlin et al. 2019, section 3.1): `objective.name='mlm'`.

`B` rows, `L` positions, `P` predictions and `E` sequences per row.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bert_jax.data.batches import Batch
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.family import PretrainingModel
from bert_jax.model.inputs import Array
from bert_jax.model.layer_stack import Gather
from bert_jax.model.losses import cross_entropy
from bert_jax.train.objectives.interface import Objective, mean, ratio


class MaskedSums(NamedTuple):
    """Losses (nats) and hits summed over a batch, each a float32 scalar."""

    mlm_sum: jax.Array
    mlm_hits: jax.Array
    mlm_weight: jax.Array
    nsp_sum: jax.Array
    nsp_hits: jax.Array
    nsp_weight: jax.Array


@dataclasses.dataclass(frozen=True)
class MaskedTokens(Objective):
    """The tokens that were masked, and whether two segments belong together.

    Attributes:
      name: in the names of the metrics of tokens.
    """

    name: str = 'mlm'

    def sums(
        self, model: PretrainingModel, batch: Batch, key: DropoutKey | None, gather: Gather | None = None
    ) -> MaskedSums:
        """Returns the weighted cross entropies and hits of both."""
        hidden = model.encode(batch.inputs, key, gather=gather)
        mlm = model.mlm_losses(hidden, batch.masked_lm_positions, batch.masked_lm_ids)
        of_pairs = summed_pairs(model, hidden, batch)
        return MaskedSums(*summed(*mlm, batch.masked_lm_weights), *of_pairs)

    def weights(self, batch: Batch) -> tuple[Array, Array]:
        """Returns the number of (masked tokens, pairs)."""
        return batch.masked_lm_weights.sum(), batch.next_sentence_weights.sum()

    def loss(self, sums: MaskedSums, weights: tuple[Array, Array]) -> jax.Array:
        """Returns mlm_sum / mlm_weight + nsp_sum / nsp_weight; a weight of 0 gives 0."""
        mlm_weight, nsp_weight = weights
        return ratio(sums.mlm_sum, mlm_weight) + ratio(sums.nsp_sum, nsp_weight)

    def metrics(self, sums: MaskedSums) -> dict[str, jax.Array]:
        """Returns the loss, and the mean loss and accuracy of each; NaN for an objective without labels in the rows."""
        return {
            'loss': self.loss(sums, (sums.mlm_weight, sums.nsp_weight)),
            f'{self.name}_loss': mean(sums.mlm_sum, sums.mlm_weight),
            'nsp_loss': mean(sums.nsp_sum, sums.nsp_weight),
            f'{self.name}_accuracy': mean(sums.mlm_hits, sums.mlm_weight),
            'nsp_accuracy': mean(sums.nsp_hits, sums.nsp_weight),
        }


MASKED_TOKENS = MaskedTokens()


def summed(losses: jax.Array, hits: jax.Array, weights: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the sums of weighted losses, of weighted hits and of the weights."""
    return (losses * weights).sum(), (hits * weights).sum(), weights.sum()


def summed_pairs(model: PretrainingModel, hidden: jax.Array, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `summed` of the next-sentence labels of a batch; zeros for a model without a pair head."""
    logits = model.nsp_logits(hidden, batch.cls_positions)
    if logits is None:
        zero = jnp.zeros(())
        return zero, zero, zero
    return summed(*cross_entropy(logits, batch.next_sentence_labels), batch.next_sentence_weights)
