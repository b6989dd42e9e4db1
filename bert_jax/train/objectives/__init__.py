"""What pretraining minimizes: one file per objective, with its labels, sums, weights and metrics.

`interface.py` defines what a train step needs of an objective, those of fine-tuning included.
"""

import functools

from bert_jax import config
from bert_jax.train.objectives.interface import Objective
from bert_jax.train.objectives.masked import MASKED_TOKENS
from bert_jax.train.objectives.mixture import Mixture
from bert_jax.train.objectives.next_token import NEXT_TOKEN
from bert_jax.train.objectives.previous_position import PREVIOUS_POSITION
from bert_jax.train.objectives.replaced import ReplacedTokenDetection

_MASKED = {'mlm': MASKED_TOKENS, 'mntp': PREVIOUS_POSITION}


@functools.cache
def objective_of(settings: config.Objective) -> Objective:
    """Returns the objective of a pretraining run, or of one of its phases; equal settings give equal objectives."""
    if settings.name == 'clm':
        return NEXT_TOKEN
    if settings.name == 'rtd':
        return ReplacedTokenDetection(settings)
    masked = _MASKED[settings.name]
    return Mixture(masked, settings.causal_share) if settings.causal_share else masked
