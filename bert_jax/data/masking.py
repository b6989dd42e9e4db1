"""Masked language modelling: which tokens are predicted, and what stands in their place.

`B` rows, `L` positions, `P` predictions per row.
"""

import dataclasses

import numpy as np

from bert_jax import config
from bert_jax.data import random


@dataclasses.dataclass(frozen=True)
class Masked:
    """input_ids [B, L] int32 after masking; predictions: positions, ids [B, P] int32 and weights [B, P] float32."""

    input_ids: np.ndarray
    positions: np.ndarray
    ids: np.ndarray
    weights: np.ndarray


def mask_tokens(
    ids: np.ndarray,
    candidates: np.ndarray,
    lengths: np.ndarray,
    keys: np.ndarray,
    masking: config.Masking,
    *,
    num_predictions: int,
    mask_id: int,
    vocab_size: int,
) -> Masked:
    """Draws n = max(1, round(rate x length)) of a row's candidates, at most P, and masks them.

    Of the drawn tokens 80% become [MASK], 10% a token drawn from the whole vocabulary, 10% stay, each on its own
    (Devlin et al. 2019, appendix A.1; `create_masked_lm_predictions` of the original).

    Args:
      ids: [B, L] int32.  candidates: [B, L] bool, false for special tokens and padding.
      lengths: [B] int64, tokens of the row with [CLS] and [SEP].  keys: [B] uint64.
    """
    num_rows, num_positions = ids.shape
    num_slots = min(num_predictions, num_positions)
    lottery = np.where(candidates, random.bits(random.fold(keys, 2), num_positions), np.uint64(2**64 - 1))
    drawn = np.argpartition(lottery, num_slots - 1, axis=1)[:, :num_slots]
    rank = np.argsort(np.take_along_axis(lottery, drawn, axis=1), axis=1)
    drawn = np.take_along_axis(drawn, rank, axis=1)
    num_candidates = candidates.sum(axis=1)
    count = np.minimum(np.maximum(1, np.rint(masking.rate * lengths)), np.minimum(num_candidates, num_slots))
    drawn = np.where(np.arange(num_slots) < count[:, None], drawn, num_positions)
    drawn.sort(axis=1)
    real = drawn < num_positions
    positions = np.where(real, drawn, 0)
    labels = np.take_along_axis(ids, positions, axis=1)
    replacement_keys = random.fold(keys, 3)
    chance = random.uniform(random.bits(replacement_keys, num_slots))
    any_token = random.below(random.bits(random.fold(replacement_keys, 0), num_slots), vocab_size)
    masked_below, random_below = masking.mask_fraction, masking.mask_fraction + masking.random_fraction
    replaced = np.where(chance < masked_below, mask_id, np.where(chance < random_below, any_token, labels))
    input_ids = ids.copy()
    # Filler slots write position 0's own token back: position 0 is [CLS], never a candidate.
    np.put_along_axis(input_ids, positions, np.where(real, replaced, labels).astype(np.int32), axis=1)

    def padded(values: np.ndarray, dtype: type) -> np.ndarray:
        slots = np.zeros((num_rows, num_predictions), dtype)
        slots[:, :num_slots] = np.where(real, values, 0)
        return slots

    return Masked(input_ids, padded(positions, np.int32), padded(labels, np.int32), padded(1, np.float32))
