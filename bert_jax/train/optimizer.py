"""Builds schedules and optimizers from optax."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bert_jax import config
from bert_jax.model.layers import axes_in_layer, is_stacked, logical_axes


def make_schedule(optimizer: config.Optimizer, num_steps: int, phases: tuple[config.Phase, ...] = ()) -> optax.Schedule:
    """Makes the learning rate schedule, which restarts in each phase: linear warm-up to the peak, then `schedule`.

    `linear` and `cosine` reach 0 at the last step; `wsd` (warm-up, stable, decay; Hu et al. 2024) stays at the peak and
    reaches 0 over the last `decay_fraction` of the steps; `inverse_sqrt` is peak x sqrt(warmup / step) (Vaswani et al.
    2017).
    """
    if phases:
        peaks = [{name: getattr(phase, name) for name in ('peak_learning_rate', 'warmup_steps')} for phase in phases]
        parts = [
            make_schedule(dataclasses.replace(optimizer, **peak), phase.steps)
            for peak, phase in zip(peaks, phases, strict=True)
        ]
        return optax.join_schedules(parts, np.cumsum([phase.steps for phase in phases])[:-1].tolist())
    peak, warmup = optimizer.peak_learning_rate, optimizer.warmup_steps
    after = max(num_steps - warmup, 1)
    decay = min(max(round(optimizer.decay_fraction * num_steps), 1), after)
    down = {
        'linear': optax.linear_schedule(peak, 0.0, after),
        'cosine': optax.cosine_decay_schedule(peak, after),
        'constant': optax.constant_schedule(peak),
        'wsd': optax.linear_schedule(peak, 0.0, decay, transition_begin=after - decay),
        'inverse_sqrt': lambda step: peak * jnp.sqrt(max(warmup, 1) / (jnp.maximum(step, 0) + max(warmup, 1))),
    }[optimizer.schedule]
    # Step 0 already moves: the first update has learning rate peak / (warmup + 1).
    up = optax.linear_schedule(peak / (warmup + 1), peak, max(warmup, 1))
    return optax.join_schedules([up, down], [warmup])


def decayed(params: nnx.State) -> nnx.State:
    """Returns True for the parameters that weight decay applies to: no biases or norms, as in `optimization.py`."""

    def is_decayed(variable: nnx.Variable) -> nnx.Variable:
        return variable.replace(len(axes_in_layer(variable)) > 1)

    return jax.tree.map(is_decayed, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


_NOT_MATRICES = {'vocab', 'positions', 'types', 'labels'}  # embeddings and the output layer stay with AdamW
_UPDATE_RMS = 0.2  # Muon's updates get the typical size of AdamW's, so that one learning rate serves both


def matrix_dims(params: nnx.State) -> nnx.State:
    """Returns the dims of a matrix that Muon orthogonalizes; None for those of AdamW. Stacked layers are a batch."""

    def dims(variable: nnx.Variable) -> nnx.Variable:
        names = axes_in_layer(variable)
        if len(names) != 2 or _NOT_MATRICES & set(names) or isinstance(variable.get_value(), optax.MaskedNode):
            return variable.replace(None)
        *_, reduced, output = range(len(logical_axes(variable)))
        return variable.replace(optax.contrib.MuonDimensionNumbers((reduced,), (output,)))

    return jax.tree.map(dims, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def per_layer(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a transform of whole tensors to each layer of stacked parameters by itself."""

    def stacked(tree: nnx.State) -> nnx.State:
        def label(variable: nnx.Variable) -> nnx.Variable:
            return variable.replace('stacked' if is_stacked(variable) else 'whole')

        return jax.tree.map(label, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))

    def init(params: optax.Params) -> optax.OptState:
        # `optax.tree.map_params` finds the moments by an init from a placeholder, which has no array to map over.
        return jax.vmap(transform.init)(params) if jax.tree.leaves(params) else transform.init(params)

    each = optax.GradientTransformation(init, jax.vmap(transform.update))
    return optax.partition({'stacked': each, 'whole': transform}, stacked)


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's m / (sqrt(v) + eps) without bias correction: `AdamWeightDecayOptimizer` of the original `optimization.py`.

    Its first steps are about three times as long as with it: at b1 = 0.9 and b2 = 0.999 the first is 0.1 g / 0.032 |g|.
    """

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        return optax.ScaleByAdamState(
            jnp.zeros((), jnp.int32), optax.tree.zeros_like(params), optax.tree.zeros_like(params)
        )

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

    return optax.GradientTransformation(init, update)


def make_optimizer(
    optimizer: config.Optimizer, num_steps: int, phases: tuple[config.Phase, ...] = ()
) -> optax.GradientTransformation:
    """Makes the optimizer, with clipping by the global norm before it.

    - `adamw` (Loshchilov and Hutter 2019); the original's without `bias_correction`.
    - `lamb` (You et al. 2020): what weight decay leaves alone is not scaled by the trust ratio either.
    - `adafactor` (Shazeer and Stern 2018) with second moments factored and steps relative to the parameters' size.
    - `muon` (Jordan et al. 2024) on the matrices with the update scale of Liu et al. 2025, "Muon is scalable for LLM
      training"; AdamW with Nesterov momentum on the other parameters.
    """
    schedule = make_schedule(optimizer, num_steps, phases)
    scale_by_adam = optax.scale_by_adam if optimizer.bias_correction else scale_by_uncorrected_adam
    adam = scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps)
    decay = optax.add_decayed_weights(optimizer.weight_decay, decayed)
    step = optax.scale_by_learning_rate(schedule)
    if optimizer.name == 'adamw':
        update = optax.chain(adam, decay, step)
    elif optimizer.name == 'lamb':
        update = optax.chain(adam, decay, optax.masked(per_layer(optax.scale_by_trust_ratio()), decayed), step)
    elif optimizer.name == 'adafactor':
        factored = optax.chain(
            optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()
        )
        update = optax.chain(per_layer(factored), decay, step)
    else:
        update = optax.contrib.muon(
            schedule,
            weight_decay=optimizer.weight_decay,
            weight_decay_mask=decayed,
            muon_weight_dimension_numbers=matrix_dims,  # ty: ignore[invalid-argument-type]  of any tree, so nnx.State too
            adam_b1=optimizer.b1,
            adam_b2=optimizer.b2,
            adam_weight_decay=optimizer.weight_decay,
            consistent_rms=_UPDATE_RMS,
        )
    return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), update)
