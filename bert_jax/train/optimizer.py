"""Builds schedules and optimizers from optax."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bert_jax import config
from bert_jax.config.fields import overridden
from bert_jax.model.layers import axes_in_layer, is_stacked, logical_axes


def make_schedule(optimizer: config.Optimizer, num_steps: int, phases: tuple[config.Phase, ...] = ()) -> optax.Schedule:
    """Makes the learning rate schedule, which restarts in each phase: linear warm-up to the peak, then `schedule`.

    With t from 0 at the end of the warm-up to 1 after the last step, and the floor f = `final_fraction`, the curves
    from peak to f x peak are, as shares of the peak:

    - `linear`: 1 - (1 - f) t
    - `cosine`: f + (1 - f) (1 + cos(pi t)) / 2
    - `1-sqrt`: f + (1 - f) (1 - sqrt(t)), as `OneMinusSqrt` of ModernBERT
    - `inverse_sqrt`, of a decay only: 1 / sqrt(1 + t (1 / f^2 - 1))

    `wsd` (warm-up, stable, decay; Hu et al. 2024) stays at the peak until its `decay`, one of these curves over the
    last `decay_steps`, or the last `decay_fraction` of the steps. `constant` stays at the peak to the end. As a
    schedule, `inverse_sqrt` is peak x sqrt(warmup / step) (Vaswani et al. 2017).
    """
    if phases:
        parts = [make_schedule(overridden(optimizer, phase), phase.steps) for phase in phases]
        return optax.join_schedules(parts, np.cumsum([phase.steps for phase in phases])[:-1].tolist())
    peak, warmup = optimizer.peak_learning_rate, optimizer.warmup_steps
    # Step 0 already moves: the first update has learning rate peak / (warmup + 1).
    up = optax.linear_schedule(peak / (warmup + 1), peak, max(warmup, 1))
    return optax.join_schedules([up, _after_warmup(optimizer, num_steps)], [warmup])


def _after_warmup(optimizer: config.Optimizer, num_steps: int) -> optax.Schedule:
    """Returns the schedule of the steps after the warm-up, counted from its end."""
    peak, warmup = optimizer.peak_learning_rate, optimizer.warmup_steps
    after, stable = max(num_steps - warmup, 1), optax.constant_schedule(peak)
    if optimizer.schedule == 'constant':
        return stable
    if optimizer.schedule == 'inverse_sqrt':
        return lambda step: peak * jnp.sqrt(max(warmup, 1) / (jnp.maximum(step, 0) + max(warmup, 1)))
    if optimizer.schedule != 'wsd':
        return _falling(optimizer.schedule, peak, optimizer.final_fraction, after)
    decay_steps = optimizer.decay_steps or round(optimizer.decay_fraction * num_steps)
    decay_steps = min(max(decay_steps, 1), after)
    falling = _falling(optimizer.decay, peak, optimizer.final_fraction, decay_steps)
    return optax.join_schedules([stable, falling], [after - decay_steps])


def _falling(curve: str, peak: float, final: float, num_steps: int) -> optax.Schedule:
    """Returns a schedule that falls from `peak` to `final` x `peak` in a number of steps; see `make_schedule`."""
    if curve == 'linear':
        return optax.linear_schedule(peak, final * peak, num_steps)
    if curve == 'cosine':
        return optax.cosine_decay_schedule(peak, num_steps, alpha=final)

    def elapsed(step: Any) -> jax.Array:
        return jnp.clip(step / num_steps, 0, 1)

    if curve == '1-sqrt':
        return lambda step: peak * (final + (1 - final) * (1 - jnp.sqrt(elapsed(step))))
    return lambda step: peak / jnp.sqrt(1 + elapsed(step) * (final**-2 - 1))


def make_weight_decay(optimizer: config.Optimizer, phases: tuple[config.Phase, ...]) -> optax.ScalarOrSchedule:
    """Returns the weight decay: a number, or a schedule if phases differ, which adds a count to the state."""
    values = [overridden(optimizer, phase).weight_decay for phase in phases] or [optimizer.weight_decay]
    if len({*values}) == 1:
        return values[0]
    parts = [optax.constant_schedule(value) for value in values]
    return optax.join_schedules(parts, np.cumsum([phase.steps for phase in phases])[:-1].tolist())


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
    weight_decay = make_weight_decay(optimizer, phases)
    decay = optax.add_decayed_weights(weight_decay, decayed)
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
            weight_decay=weight_decay,  # ty: ignore[invalid-argument-type]  may be a schedule
            weight_decay_mask=decayed,
            muon_weight_dimension_numbers=matrix_dims,  # ty: ignore[invalid-argument-type]  of any tree, so nnx.State too
            adam_b1=optimizer.b1,
            adam_b2=optimizer.b2,
            adam_weight_decay=weight_decay,  # ty: ignore[invalid-argument-type]  may be a schedule
            consistent_rms=_UPDATE_RMS,
        )
    return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), update)
