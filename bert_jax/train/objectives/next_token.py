"""The next token of a sequence, with causal attention: `objective.name='clm'`.

Rows come with masks, as for every objective; their original tokens are restored first. `B` rows, `L` positions.
"""

import dataclasses
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bert_jax.data.batches import Batch
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.family import PretrainingModel, matmuls
from bert_jax.model.inputs import Array, Inputs
from bert_jax.model.layer_stack import Gather
from bert_jax.model.matmul import Matmul
from bert_jax.train.objectives.interface import Objective, mean, ratio
from bert_jax.train.objectives.masked import summed


class NextTokens(NamedTuple):
    """Rows with the next token as the label of every position but the last of a sequence.

    Attributes:
      inputs: the original tokens.
      ids: [B, L] int32, the label of each position.
      weights: [B, L] float32, 1 for a label, 0 elsewhere.
    """

    inputs: Inputs
    ids: jax.Array
    weights: jax.Array


class NextTokenSums(NamedTuple):
    """Losses (nats) and hits summed over a batch, each a float32 scalar."""

    clm_sum: jax.Array
    clm_hits: jax.Array
    clm_weight: jax.Array


@dataclasses.dataclass(frozen=True)
class NextToken(Objective):
    """Every token of a sequence but the first, from the tokens before it; [SEP] included."""

    def labelled(self, batch: Batch, key: DropoutKey | None) -> NextTokens:
        """Returns the rows without masks, all causal."""
        del key
        return next_tokens(batch)

    def sums(
        self, model: PretrainingModel, batch: NextTokens, key: DropoutKey | None, gather: Gather | None = None
    ) -> NextTokenSums:
        """Returns the cross entropies and hits."""
        hidden = model.encode(batch.inputs, key, gather=gather)
        return NextTokenSums(*summed(*model.mlm_losses(hidden, everywhere(batch.ids), batch.ids), batch.weights))

    def weights(self, batch: NextTokens) -> Array:
        """Returns the number of tokens to predict."""
        return batch.weights.sum()

    def loss(self, sums: NextTokenSums, weights: Array) -> jax.Array:
        """Returns the mean cross entropy."""
        return ratio(sums.clm_sum, weights)

    def metrics(self, sums: NextTokenSums) -> dict[str, jax.Array]:
        """Returns the loss, and the mean loss and accuracy."""
        return {
            'loss': self.loss(sums, sums.clm_weight),
            'clm_loss': mean(sums.clm_sum, sums.clm_weight),
            'clm_accuracy': mean(sums.clm_hits, sums.clm_weight),
        }

    def matmuls(self, model: Any, vocab_size: int, **counts: Any) -> list[Matmul]:
        """Returns those of the model with its head at every position."""
        return matmuls(model, vocab_size, **read_causally(counts))


NEXT_TOKEN = NextToken()


def next_tokens(batch: Batch) -> NextTokens:
    """Returns the rows of a batch without masks, with their next tokens."""
    original, sequence_ids = original_ids(batch), jnp.asarray(batch.sequence_ids)
    is_continued = (sequence_ids > 0) & (sequence_ids == jnp.roll(sequence_ids, -1, axis=1))
    is_continued = is_continued.at[:, -1].set(False)
    is_causal = jnp.ones(len(original), bool)
    inputs = batch.inputs._replace(input_ids=original, is_causal=is_causal)
    return NextTokens(inputs, jnp.roll(original, -1, axis=1), is_continued.astype(jnp.float32))


def original_ids(batch: Batch) -> jax.Array:
    """Returns [B, L] int32, the tokens of a batch before masking."""
    ids, rows = jnp.asarray(batch.input_ids), jnp.arange(batch.input_ids.shape[0])[:, None]
    present = jnp.take_along_axis(ids, jnp.asarray(batch.masked_lm_positions), axis=1)
    restored = jnp.where(batch.masked_lm_weights > 0, batch.masked_lm_ids, present)
    return ids.at[rows, batch.masked_lm_positions].set(restored)


def everywhere(ids: jax.Array) -> jax.Array:
    """Returns [B, L] int32, every position of each row."""
    return jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)


def read_causally(counts: dict[str, Any], share: float = 1.0) -> dict[str, Any]:
    """Returns the counts of `family.matmuls` for causal rows: the head at each position, and half of the pairs visible.

    Args:
      share: of the rows that are causal; the head runs everywhere in all of them.
    """
    changed = {'predictions': counts['rows'] * counts['length'] if counts['predictions'] else 0}
    if not counts.get('as_computed'):  # implementations compute what they mask
        visible = counts['visible_length']
        changed['visible_length'] = visible - Fraction(share) * (visible - 1) / 2
    return counts | changed
