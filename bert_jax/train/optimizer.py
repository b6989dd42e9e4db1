"""Builds schedules and optimizers from optax."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bert_jax import config
from bert_jax.config.fields import overridden
from bert_jax.model.layers import axes_in_layer, is_stacked, is_variable, logical_axes


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
        return _joined([make_schedule(overridden(optimizer, phase), phase.steps) for phase in phases], phases)
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
    decay_steps = optimizer.num_decay_steps(num_steps)
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
    return _joined([optax.constant_schedule(value) for value in values], phases)


def _joined(schedules: list[optax.Schedule], phases: tuple[config.Phase, ...]) -> optax.Schedule:
    """Returns the schedule of a run from those of its phases."""
    return optax.join_schedules(schedules, np.cumsum([phase.steps for phase in phases])[:-1].tolist())


def decayed(params: nnx.State) -> nnx.State:
    """Returns True for the parameters that weight decay applies to: no biases or norms, as in `optimization.py`."""
    return _map_variables(lambda variable: len(axes_in_layer(variable)) > 1, params)


_NOT_MATRICES = {'vocab', 'positions', 'types', 'labels'}  # embeddings and the output layer stay with AdamW
_UPDATE_RMS = 0.2  # Muon's updates get the typical size of AdamW's, so that one learning rate serves both


def is_matrix(variable: nnx.Variable) -> bool:
    """Returns whether Muon updates a parameter: a matrix of a layer or head, no embedding, decoder, bias or norm."""
    names = axes_in_layer(variable)
    return len(names) == 2 and not _NOT_MATRICES & set(names)


def _map_variables(function: Callable[[nnx.Variable], Any], tree: nnx.State) -> nnx.State:
    """Replaces the value of each variable by that of a function of the variable."""
    return jax.tree.map(lambda variable: variable.replace(function(variable)), tree, is_leaf=is_variable)


def per_layer(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a transform of whole tensors to each layer of stacked parameters by itself."""

    def stacked(tree: nnx.State) -> nnx.State:
        return _map_variables(lambda variable: 'stacked' if is_stacked(variable) else 'whole', tree)

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


def clip_updates(adamw: optax.GradientTransformation, b2: float, eps: float) -> optax.GradientTransformation:
    """Divides the updates of AdamW by the RMS of g / sqrt(v), if above 1, for each tensor of each layer by itself.

    Algorithm 2 of Wortsman et al. 2023, "Stable and low-precision training for large-scale vision-language models"
    (StableAdamW). The RMS is large where a gradient is larger than its second moment predicts, and the update would
    overshoot. As in the paper, which divides the learning rate, weight decay shrinks with the update.

    Args:
      adamw: a chain that begins with `optax.scale_by_adam` and its b2 and eps.
    """

    def clip(update: nnx.Variable, grad: nnx.Variable, second_moment: nnx.Variable) -> nnx.Variable:
        g, v = grad.get_value(), second_moment.get_value()
        dims = tuple(range(is_stacked(grad), g.ndim))
        rms = jnp.sqrt(jnp.mean(jnp.square(g) / jnp.maximum(v, eps**2), dims, keepdims=True))
        return update.replace(update.get_value() / jnp.maximum(rms, 1.0))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        grads, new_state = updates, cast(Any, adamw.update(updates, state, params))
        updates, (adam, *_) = new_state
        second_moments = optax.tree.bias_correction(adam.nu, b2, adam.count)
        return jax.tree.map(clip, updates, grads, second_moments, is_leaf=is_variable), new_state[1]

    return optax.GradientTransformation(adamw.init, update)


def ignoring_vectors(decay: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keeps weight decay from biases and norms, as a mask of `decayed` does, without changing the state of `decay`."""

    def without_vectors(params: nnx.State) -> Any:
        def kept(is_decayed: bool, leaf: Any) -> Any:
            return leaf if is_decayed else jax.tree.map(jnp.zeros_like, leaf)

        return jax.tree.map(kept, decayed(params), params)

    def update(updates: optax.Updates, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        return decay.update(updates, state, without_vectors(params))

    return optax.GradientTransformation(decay.init, update)


def muon(
    b1: float, b2: float, weight_decay: optax.ScalarOrSchedule, step: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) on the matrices, with the update scale of Liu et al. 2025, "Muon is scalable for LLM
    training"; AdamW with Nesterov momentum on the other parameters.

    A stack of layers is a batch of matrices. An orthogonal m x n matrix has an RMS of 1 / sqrt(max(m, n)), which the
    scale undoes.
    """

    def dims(updates: nnx.State) -> nnx.State:
        def of(variable: nnx.Variable) -> Any:
            if isinstance(variable.get_value(), optax.MaskedNode):  # AdamW updates it
                return optax.MaskedNode()
            *_, reduced, output = range(len(logical_axes(variable)))
            return optax.contrib.MuonDimensionNumbers((reduced,), (output,))

        return _map_variables(of, updates)

    def scale(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        return jax.tree.map(lambda update: _UPDATE_RMS * max(update.shape[-2:]) ** 0.5 * update, updates)

    orthogonalize = optax.contrib.scale_by_muon(
        weight_dimension_numbers=dims  # ty: ignore[invalid-argument-type]  of any tree, so nnx.State too
    )
    # The states are those of `optax.contrib.muon`, as in checkpoints of earlier versions.
    decay_matrices = optax.add_decayed_weights(weight_decay, decayed)
    decay_others = ignoring_vectors(optax.add_decayed_weights(weight_decay))
    matrices = optax.chain(orthogonalize, optax.stateless(scale), decay_matrices, step)
    others = optax.chain(optax.scale_by_adam(b1, b2, nesterov=True), decay_others, step)
    return optax.partition(
        {'muon': matrices, 'adam': others},
        lambda params: _map_variables(lambda variable: 'muon' if is_matrix(variable) else 'adam', params),
    )


def make_optimizer(
    optimizer: config.Optimizer, num_steps: int, phases: tuple[config.Phase, ...] = ()
) -> optax.GradientTransformation:
    """Makes the optimizer, with clipping by the global norm before it.

    - `adamw` (Loshchilov and Hutter 2019); the original's without `bias_correction`.
    - `stableadamw` (Wortsman et al. 2023): see `clip_updates`.
    - `lamb` (You et al. 2020): what weight decay leaves alone is not scaled by the trust ratio either.
    - `adafactor` (Shazeer and Stern 2018) with second moments factored and steps relative to the parameters' size.
    - `muon` (Jordan et al. 2024): see `muon`.
    """
    schedule = make_schedule(optimizer, num_steps, phases)
    scale_by_adam = optax.scale_by_adam if optimizer.bias_correction else scale_by_uncorrected_adam
    adam = scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps)
    weight_decay = make_weight_decay(optimizer, phases)
    decay = optax.add_decayed_weights(weight_decay, decayed)
    step = optax.scale_by_learning_rate(schedule)
    if optimizer.name == 'adamw':
        update = optax.chain(adam, decay, step)
    elif optimizer.name == 'stableadamw':
        b1, b2, eps = optimizer.b1, optimizer.b2, optimizer.eps
        adamw = optax.chain(optax.scale_by_adam(b1, b2, eps), decay)
        update = optax.chain(clip_updates(adamw, b2, eps), step)
    elif optimizer.name == 'lamb':
        update = optax.chain(adam, decay, optax.masked(per_layer(optax.scale_by_trust_ratio()), decayed), step)
    elif optimizer.name == 'adafactor':
        factored = optax.chain(
            optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()
        )
        update = optax.chain(per_layer(factored), decay, step)
    else:
        update = muon(optimizer.b1, optimizer.b2, weight_decay, step)
    clip = optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity()
    return optax.chain(clip, update)
