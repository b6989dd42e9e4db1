"""Schedules and optimisers, from optax."""

import dataclasses

import jax
import numpy as np
import optax
from flax import nnx

from bert_jax import config


def make_schedule(optimizer: config.Optimizer, num_steps: int, phases: tuple[config.Phase, ...] = ()) -> optax.Schedule:
    """Learning rate by step, in each phase anew: linear warm-up to the peak, then `schedule` down to 0 at the end."""
    if phases:
        peaks = [{name: getattr(phase, name) for name in ('peak_learning_rate', 'warmup_steps')} for phase in phases]
        parts = [
            make_schedule(dataclasses.replace(optimizer, **peak), phase.steps)
            for peak, phase in zip(peaks, phases, strict=True)
        ]
        return optax.join_schedules(parts, np.cumsum([phase.steps for phase in phases])[:-1].tolist())
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


_NOT_MATRICES = {'vocab', 'positions', 'types', 'labels'}  # embeddings and the output layer stay with AdamW
_UPDATE_RMS = 0.2  # Muon's updates get the typical size of AdamW's, so that one learning rate serves both


def matrix_dims(params: nnx.State) -> nnx.State:
    """Which dims of a matrix Muon orthogonalises; None for what AdamW updates. Stacked layers are a batch."""

    def dims(variable: nnx.Variable) -> nnx.Variable:
        names, value = variable.get_metadata()['logical_axes'], variable.get_value()
        if len(names) != 2 or _NOT_MATRICES & set(names) or isinstance(value, optax.MaskedNode):
            return variable.replace(None)
        return variable.replace(optax.contrib.MuonDimensionNumbers((value.ndim - 2,), (value.ndim - 1,)))

    return jax.tree.map(dims, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def make_optimizer(
    optimizer: config.Optimizer, num_steps: int, phases: tuple[config.Phase, ...] = ()
) -> optax.GradientTransformation:
    """The optimiser after clipping by the global norm.

    `adamw` as in the original (which leaves out the bias correction); `muon` (Jordan et al. 2024) with the update
    scale of Liu et al. 2025, "Muon is scalable for LLM training"; on the rest AdamW
    with Nesterov momentum.
    """
    schedule = make_schedule(optimizer, num_steps, phases)
    if optimizer.name == 'muon':
        update = optax.contrib.muon(
            schedule,
            weight_decay=optimizer.weight_decay,
            weight_decay_mask=decayed,
            muon_weight_dimension_numbers=matrix_dims,
            adam_b1=optimizer.b1,
            adam_b2=optimizer.b2,
            adam_weight_decay=optimizer.weight_decay,
            consistent_rms=_UPDATE_RMS,
        )
    else:
        update = optax.adamw(
            schedule,
            b1=optimizer.b1,
            b2=optimizer.b2,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            mask=decayed,
        )
    return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), update)
