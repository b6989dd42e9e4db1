"""Replaced-token detection (Clark et al. 2020, "ELECTRA", section 2): `objective.name='rtd'`.

A generator predicts masked tokens; tokens drawn from its predictions take the place of the masked ones, and the
discriminator says for every token whether it was replaced. `B` rows, `L` positions, `P` predictions per row.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bert_jax import config
from bert_jax.data.batches import Batch
from bert_jax.errors import BadInput
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.inputs import Array
from bert_jax.model.layer_stack import Gather
from bert_jax.model.matmul import Matmul
from bert_jax.model.replaced_tokens import ReplacedTokens, generator_model, replaced_token_matmuls
from bert_jax.train.objectives.interface import Objective, mean, ratio
from bert_jax.train.objectives.masked import summed
from bert_jax.train.objectives.next_token import original_ids

_GENERATOR = 1  # part of the model, for its dropout
_SITE = 15  # of the draws; no dropout of layer 0 has it


class ReplacedSums(NamedTuple):
    """Losses (nats), hits and counts summed over a batch, each a float32 scalar.

    Attributes:
      generator_…: of the masked tokens.
      rtd_…: of all tokens.
      replaced: number of tokens that differ from the original.
    """

    generator_sum: jax.Array
    generator_hits: jax.Array
    generator_weight: jax.Array
    rtd_sum: jax.Array
    rtd_hits: jax.Array
    rtd_weight: jax.Array
    replaced: jax.Array


@dataclasses.dataclass(frozen=True)
class ReplacedTokenDetection(Objective):
    """The masked tokens for the generator, and which tokens were replaced for the discriminator.

    A drawn token that equals the original is not replaced.
    """

    settings: config.Objective

    def check(self, model: config.Model, tensor: int) -> None:
        """Raises `BadInput` if this many devices cannot split the heads of the generator."""
        narrow = generator_model(model, self.settings.generator_width)
        if narrow.num_heads % tensor:
            found = f'is {tensor}, which does not divide the {narrow.num_heads} heads of the generator'
            expected = f'a divisor of {narrow.num_heads}, or another objective.generator_width'
            raise BadInput('config.mesh.tensor', found, expected, '--config.mesh.tensor=1')

    def sums(
        self, model: ReplacedTokens, batch: Batch, key: DropoutKey | None, gather: Gather | None = None
    ) -> ReplacedSums:
        """Returns the cross entropies and hits of both models."""
        hidden = model.generator.encode(batch.inputs, key and key.of_part(_GENERATOR), gather=gather)
        mlm = model.generator.mlm_losses(hidden, batch.masked_lm_positions, batch.masked_lm_ids)
        row_keys = (_key_of_content(batch) if key is None else key).of_rows(_SITE)
        drawn = model.generator.sample(hidden, batch.masked_lm_positions, row_keys)
        corrupted, is_replaced = corrupt(batch, drawn)
        inputs = batch.inputs._replace(input_ids=corrupted)
        logits = model.detector(model.whole_discriminator().encode(inputs, key, gather=gather))
        losses = optax.sigmoid_binary_cross_entropy(logits, is_replaced.astype(jnp.float32))
        is_token = (batch.sequence_ids > 0).astype(jnp.float32)
        hits = ((logits > 0) == is_replaced).astype(jnp.float32)
        return ReplacedSums(
            *summed(*mlm, batch.masked_lm_weights), *summed(losses, hits, is_token), (is_replaced * is_token).sum()
        )

    def weights(self, batch: Batch) -> tuple[Array, Array]:
        """Returns the number of (masked tokens, tokens)."""
        return batch.masked_lm_weights.sum(), (batch.sequence_ids > 0).sum().astype(jnp.float32)

    def loss(self, sums: ReplacedSums, weights: tuple[Array, Array]) -> jax.Array:
        """Returns the mean loss of the generator + `objective.detector_weight` x that of the discriminator."""
        of_generator, of_discriminator = weights
        detected = ratio(sums.rtd_sum, of_discriminator)
        return ratio(sums.generator_sum, of_generator) + self.settings.detector_weight * detected

    def metrics(self, sums: ReplacedSums) -> dict[str, jax.Array]:
        """Returns the loss, the mean loss and accuracy of each model, and the share of replaced tokens."""
        return {
            'loss': self.loss(sums, (sums.generator_weight, sums.rtd_weight)),
            'generator_loss': mean(sums.generator_sum, sums.generator_weight),
            'generator_accuracy': mean(sums.generator_hits, sums.generator_weight),
            'rtd_loss': mean(sums.rtd_sum, sums.rtd_weight),
            'rtd_accuracy': mean(sums.rtd_hits, sums.rtd_weight),
            'replaced_share': mean(sums.replaced, sums.rtd_weight),
        }

    def matmuls(self, model: Any, vocab_size: int, **counts: Any) -> list[Matmul]:
        """Returns those of generator and discriminator."""
        return replaced_token_matmuls(self.settings, model, vocab_size, **counts)


def corrupt(batch: Batch, drawn: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the original ids with drawn tokens in place of the masked ones, and which of them differ: both [B, L].

    Args:
      drawn: [B, P] int32.
    """
    original = original_ids(batch)
    present = jnp.take_along_axis(original, jnp.asarray(batch.masked_lm_positions), axis=1)
    put = jnp.where(batch.masked_lm_weights > 0, drawn, present)
    corrupted = original.at[jnp.arange(len(original))[:, None], batch.masked_lm_positions].set(put)
    return corrupted, corrupted != original


def _key_of_content(batch: Batch) -> DropoutKey:
    """Returns a key for evaluation: the same draws for the same row, whichever device has it."""
    ids = jnp.asarray(batch.input_ids).astype(jnp.uint32)
    mixed = (ids + jnp.uint32(1)) * (2 * jnp.arange(ids.shape[1], dtype=jnp.uint32) + jnp.uint32(0x9E3779B9))
    return DropoutKey(jnp.uint32(0), mixed.sum(axis=1, dtype=jnp.uint32))
