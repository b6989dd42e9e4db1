"""The training state: step, parameters and optimizer state."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from bert_jax import config
from bert_jax.model.family import Build, build_model
from bert_jax.runtime.mesh import replicated
from bert_jax.train.sharding import parameter_specs

ModelT = TypeVar('ModelT', bound=nnx.Module)


class TrainState(NamedTuple):
    """The values that a step updates. The shapes, shardings and specs of a state are `TrainState`s too.

    Attributes:
      step: int32 scalar, number of completed steps.
      params: float32 parameters.
      opt_state: the optimizer's moments.
      ema: moving average of the parameters, float32; None without `train.ema`.
    """

    step: Any
    params: nnx.State
    opt_state: optax.OptState
    ema: nnx.State | None = None

    @property
    def weights(self) -> nnx.State:
        """The parameters to evaluate and export: their average, if the run keeps one."""
        return self.params if self.ema is None else self.ema

    def to_save(self) -> dict[str, Any]:
        """Returns the parts of the state that a checkpoint holds, by name."""
        return {name: part for name, part in self._asdict().items() if part is not None}


_WeightDecayState = type(optax.add_decayed_weights(optax.constant_schedule(0.0)).init({}))  # optax does not export it


def is_schedule(node: Any) -> bool:
    """Returns whether a node of an optimizer state is that of a schedule, which counts the updates."""
    return isinstance(node, (optax.ScaleByScheduleState, _WeightDecayState))


@jax.jit
def _finite(tree: Any) -> jax.Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def is_finite(state: TrainState) -> bool:
    """Returns whether all parameters, moments and averages are finite."""
    return bool(_finite((state.params, state.opt_state, state.ema)))


def model_graph(model: config.Model, vocab_size: int, build: Build = build_model) -> nnx.GraphDef:
    """Returns the model without its parameters, to be merged with `TrainState.params`."""
    return nnx.split(nnx.eval_shape(lambda: build(model, vocab_size, nnx.Rngs(0))))[0]


@overload
def model_of(params: nnx.State, model: config.Model, vocab_size: int) -> Any: ...


@overload
def model_of(
    params: nnx.State, model: config.Model, vocab_size: int, build: Callable[[config.Model, int, nnx.Rngs], ModelT]
) -> ModelT: ...


def model_of(params: nnx.State, model: config.Model, vocab_size: int, build: Build = build_model) -> nnx.Module:
    """Returns the model with these parameters."""
    return nnx.merge(model_graph(model, vocab_size, build), params)


def state_shardings(
    model: config.Model,
    vocab_size: int,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
    build: Build = build_model,
    *,
    has_ema: bool = False,
) -> tuple[TrainState, TrainState]:
    """Returns (shapes, shardings) of a state; moments and averages are sharded like their parameters."""
    abstract = jax.eval_shape(lambda: _new_state(model, vocab_size, optimizer, 0, build, has_ema))
    specs = parameter_specs(abstract.params, mesh)
    whole = replicated(mesh)

    def follow(moment: Any, parameter: jax.ShapeDtypeStruct, spec: NamedSharding) -> Any:
        if isinstance(moment, optax.MaskedNode):  # of a parameter that this part of the optimizer leaves alone
            return moment
        return spec if moment.shape == parameter.shape else whole  # another shape: a factored moment

    opt_state = optax.tree.map_params(
        optimizer,
        follow,
        abstract.opt_state,
        abstract.params,
        specs,
        transform_non_params=lambda _: whole,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    return abstract, TrainState(whole, specs, opt_state, specs if has_ema else None)


def init_state(
    model: config.Model,
    vocab_size: int,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    seed: int,
    params: nnx.State | None = None,
    build: Build = build_model,
) -> TrainState:
    """Makes a new state, each part on its own device; the values are the same on any mesh.

    It starts from `params` (whole arrays, the same in every process), or from random ones without.
    """
    if params is not None:
        params = jax.tree.map(distribute, params, shardings.params)
        opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
        step = jax.device_put(jnp.zeros((), jnp.int32), shardings.step)
        return TrainState(step, params, opt_state, None if shardings.ema is None else _copy(params))
    has_ema = shardings.ema is not None
    return jax.jit(lambda: _new_state(model, vocab_size, optimizer, seed, build, has_ema), out_shardings=shardings)()


def distribute(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Distributes a whole array, the same in every process, over a mesh."""
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _new_state(
    model: config.Model,
    vocab_size: int,
    optimizer: optax.GradientTransformation,
    seed: int,
    build: Build,
    has_ema: bool,
) -> TrainState:
    params = nnx.state(build(model, vocab_size, nnx.Rngs(seed)), nnx.Param)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), _copy(params) if has_ema else None)


def _copy(params: nnx.State) -> nnx.State:
    return jax.tree.map(jnp.copy, params)


def moved_average(ema: nnx.State, params: nnx.State, decay: float, num_updates: jax.Array) -> nnx.State:
    """Returns the moving average after an update: ema x rate + params x (1 - rate).

    The rate is `decay`, but at first at most (1 + n) / (10 + n) after n updates, so that the initial parameters are
    soon forgotten (as in TensorFlow's `ExponentialMovingAverage`).

    Args:
      num_updates: n, those before this one.
    """
    n = num_updates.astype(jnp.float32)
    rate = jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda mean, new: mean + (1 - rate) * (new - mean), ema, params)
