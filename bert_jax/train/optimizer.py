"""Schedules and optimisers, from optax."""

import jax
import optax
from flax import nnx

from bert_jax import config


def make_schedule(optimizer: config.Optimizer, num_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up to the peak, then `schedule` down to 0 at the last step."""
    peak, warmup = optimizer.peak_learning_rate, optimizer.warmup_steps
    after = max(num_steps - warmup, 1)
    down = {
        'linear': optax.linear_schedule(peak, 0.0, after),
        'cosine': optax.cosine_decay_schedule(peak, after),
        'constant': optax.constant_schedule(peak),
    }[optimizer.schedule]
    # Step 0 already moves: the first update has learning rate peak / (warmup + 1).
    up = optax.linear_schedule(peak / (warmup + 1), peak, max(warmup, 1))
    return optax.join_schedules([up, down], [warmup])


def decayed(params: nnx.State) -> nnx.State:
    """True for the parameters that weight decay applies to: no biases, no layer norms (`optimization.py`)."""

    def is_decayed(variable: nnx.Variable) -> nnx.Variable:
        names = variable.get_metadata()['logical_axes']
        return variable.replace(len(names) > 1)

    return jax.tree.map(is_decayed, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def make_optimizer(optimizer: config.Optimizer, num_steps: int) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm, as in the original (which leaves out the bias correction)."""
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm),
        optax.adamw(
            make_schedule(optimizer, num_steps),
            b1=optimizer.b1,
            b2=optimizer.b2,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            mask=decayed,
        ),
    )
