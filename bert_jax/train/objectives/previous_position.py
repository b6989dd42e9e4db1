"""Masked tokens, each predicted from the position before it: `objective.name='mntp'`.

After BehnamGhader et al. 2024, "LLM2Vec" (arXiv 2404.05961, section 2.1): the output at a position then always predicts
the next token, in rows with causal attention and in rows without, as a mixture of both needs.
"""

import dataclasses

import jax.numpy as jnp

from bert_jax.data.batches import Batch
from bert_jax.model.dropout import DropoutKey
from bert_jax.train.objectives.masked import MaskedTokens


@dataclasses.dataclass(frozen=True)
class PreviousPosition(MaskedTokens):
    """`MaskedTokens` with other positions. A sequence starts with [CLS], which is never masked."""

    name: str = 'mntp'

    def labelled(self, batch: Batch, key: DropoutKey | None) -> Batch:
        """Returns the batch with the positions before those of the masked tokens."""
        del key
        return batch._replace(masked_lm_positions=jnp.maximum(batch.masked_lm_positions - 1, 0))


PREVIOUS_POSITION = PreviousPosition()
