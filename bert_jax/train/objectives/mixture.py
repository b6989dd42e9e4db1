"""A share of the rows learns the next token, the others masked tokens: `objective.causal_share`.

After Charpentier and Samuel 2024, "GPT or BERT: why not both?" (arXiv 2410.24159), which predicts masked tokens from
the position before them (`mntp`), so that the output at a position predicts the next token in all rows. `B` rows, `L`
positions.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bert_jax.data.batches import Batch
from bert_jax.model.dropout import DropoutKey, is_kept
from bert_jax.model.family import PretrainingModel, matmuls
from bert_jax.model.inputs import Array, Inputs
from bert_jax.model.layer_stack import Gather
from bert_jax.model.matmul import Matmul
from bert_jax.train.objectives.interface import Objective
from bert_jax.train.objectives.masked import MaskedSums, MaskedTokens, summed, summed_pairs
from bert_jax.train.objectives.next_token import NEXT_TOKEN, NextTokenSums, everywhere, next_tokens, read_causally

_SITE = 15  # of the hash that chooses the rows; no dropout of layer 0 has it


class MixedRows(NamedTuple):
    """Rows with a label or none at each position.

    Attributes:
      inputs: with the causal rows.
      ids: [B, L] int32.
      causal_weights, masked_weights: [B, L] float32, 1 for a label of the one or the other objective.
      cls_positions, next_sentence_labels: [B, E] int32.
      next_sentence_weights: [B, E] float32, 0 in causal rows, where [CLS] sees no other token.
    """

    inputs: Inputs
    ids: jax.Array
    causal_weights: jax.Array
    masked_weights: jax.Array
    cls_positions: Array
    next_sentence_labels: Array
    next_sentence_weights: jax.Array


class MixedSums(NamedTuple):
    """Losses (nats) and hits summed over a batch, each a float32 scalar."""

    clm_sum: jax.Array
    clm_hits: jax.Array
    clm_weight: jax.Array
    mlm_sum: jax.Array
    mlm_hits: jax.Array
    mlm_weight: jax.Array
    nsp_sum: jax.Array
    nsp_hits: jax.Array
    nsp_weight: jax.Array

    @property
    def causal(self) -> NextTokenSums:
        """Those of the next tokens."""
        return NextTokenSums(*self[:3])

    @property
    def masked(self) -> MaskedSums:
        """Those of masked tokens and pairs."""
        return MaskedSums(*self[3:])


@dataclasses.dataclass(frozen=True)
class Mixture(Objective):
    """Rows of two objectives. Which one a row has is a hash of the run's seed, the step and the global row.

    Attributes:
      of_masked: the objective of the rows that are not causal.
      causal_share: the probability of a causal row, and the weight of their mean loss; that of the other rows has the
        rest. The means are over tokens, of which a causal row predicts several times as many.
    """

    of_masked: MaskedTokens
    causal_share: float

    @property
    def evaluated(self) -> MaskedTokens:
        """That of the rows that are not causal."""
        return self.of_masked

    def labelled(self, batch: Batch, key: DropoutKey | None) -> MixedRows:
        """Returns the rows, each for its objective."""
        assert key is not None  # see `evaluated`
        num_rows, is_causal = batch.input_ids.shape[0], causal_rows(key, self.causal_share)
        masked, causal = self.of_masked.labelled(batch, key), next_tokens(batch)
        rows, positions = jnp.arange(num_rows)[:, None], masked.masked_lm_positions
        shape, of_row = batch.input_ids.shape, is_causal[:, None]
        # Filler has weight 0 and is at position 0, where a real prediction may be, so both are added.
        ids = (
            jnp.zeros(shape, jnp.int32)
            .at[rows, positions]
            .add(jnp.where(masked.masked_lm_weights > 0, masked.masked_lm_ids, 0))
        )
        weights = jnp.zeros(shape).at[rows, positions].add(masked.masked_lm_weights)
        inputs = batch.inputs._replace(
            input_ids=jnp.where(of_row, causal.inputs.input_ids, batch.input_ids), is_causal=is_causal
        )
        return MixedRows(
            inputs,
            jnp.where(of_row, causal.ids, ids),
            jnp.where(of_row, causal.weights, 0.0),
            jnp.where(of_row, 0.0, weights),
            batch.cls_positions,
            batch.next_sentence_labels,
            jnp.where(of_row, 0.0, batch.next_sentence_weights),
        )

    def sums(
        self, model: PretrainingModel, batch: MixedRows, key: DropoutKey | None, gather: Gather | None = None
    ) -> MixedSums:
        """Returns the weighted cross entropies and hits of each objective."""
        hidden = model.encode(batch.inputs, key, gather=gather)
        tokens = model.mlm_losses(hidden, everywhere(batch.ids), batch.ids)
        of_pairs = summed_pairs(model, hidden, batch)
        return MixedSums(*summed(*tokens, batch.causal_weights), *summed(*tokens, batch.masked_weights), *of_pairs)

    def weights(self, batch: MixedRows) -> tuple[Array, Array, Array]:
        """Returns the number of (next tokens, masked tokens, pairs)."""
        return batch.causal_weights.sum(), batch.masked_weights.sum(), batch.next_sentence_weights.sum()

    def loss(self, sums: MixedSums, weights: tuple[Array, Array, Array]) -> jax.Array:
        """Returns share x the mean of causal rows + (1 - share) x the loss of the others."""
        causal_weight, *masked_weights = weights
        of_others = self.of_masked.loss(sums.masked, (masked_weights[0], masked_weights[1]))
        return self.causal_share * NEXT_TOKEN.loss(sums.causal, causal_weight) + (1 - self.causal_share) * of_others

    def metrics(self, sums: MixedSums) -> dict[str, jax.Array]:
        """Returns the loss, and the mean loss and accuracy of each objective."""
        of_rows = self.of_masked.metrics(sums.masked) | NEXT_TOKEN.metrics(sums.causal)
        return of_rows | {'loss': self.loss(sums, (sums.clm_weight, sums.mlm_weight, sums.nsp_weight))}

    def matmuls(self, model: Any, vocab_size: int, **counts: Any) -> list[Matmul]:
        """Returns those of the model with its head at every position, as causal rows need it."""
        return matmuls(model, vocab_size, **read_causally(counts, self.causal_share))


def causal_rows(key: DropoutKey, share: float) -> jax.Array:
    """Returns [B] bool, the rows that are causal."""
    return ~is_kept(jnp.zeros((), jnp.uint32), key.of_rows(_SITE), share)
