"""Builds the program of a run from a model, an optimizer and a mesh; all train steps are made here."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from bert_jax import config
from bert_jax.model.family import Build, build_model, matmuls
from bert_jax.model.layer_stack import Gather
from bert_jax.model.matmul import Matmul
from bert_jax.train.exact import make_exact_step
from bert_jax.train.objectives import objective_of
from bert_jax.train.objectives.interface import Objective, VectorObjective
from bert_jax.train.objectives.masked import MASKED_TOKENS
from bert_jax.train.objectives.replaced import ReplacedTokenDetection
from bert_jax.train.optimizer import make_optimizer, make_schedule
from bert_jax.train.state import TrainState, init_state, model_graph, state_shardings
from bert_jax.train.step import Forward, StepParts, make_forward, make_train_step
from bert_jax.train.vector_step import make_vector_step

TrainStep = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainProgram:
    """The shapes of a run's state and the functions on it. Made by `build_program`.

    Only `shapes` and `shardings` are computed at once; the rest is traced and compiled on first use. On an
    abstract mesh there are no steps and no new state.

    Attributes:
      train: the settings of the step: microbatches, reduction, exact_shards, seed (dropout seed), steps.
      objective: an `Objective`, or a `VectorObjective`, which has no `evaluation_step`.
      shapes, shardings: of the state; its moments are split as their parameters.
      full_batch: rows of a batch that has `train.microbatches` parts, if batches grow to that; see `make_train_step`.
    """

    model: config.Model
    train: config.Train
    vocab_size: int
    mesh: Mesh | AbstractMesh
    build: Build
    objective: Any
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    shapes: TrainState
    shardings: TrainState
    full_batch: int | None = None

    def of_phases(self, phases: Sequence[config.Config]) -> tuple['TrainProgram', ...]:
        """Returns the program of each phase, all on the same state; phases with the same step share one.

        Args:
          phases: `Config.in_phases`.
        """
        return tuple(self._with_step(phase) for phase in phases)

    def _with_step(self, phase: config.Config) -> 'TrainProgram':
        key = phase.model, objective_of(phase.objective), phase.train.microbatches, _full_batch(phase.train)
        if key not in self._by_step:
            model, objective, microbatches, full_batch = key
            train = dataclasses.replace(self.train, microbatches=microbatches)
            self._by_step[key] = dataclasses.replace(
                self, model=model, objective=objective, train=train, full_batch=full_batch
            )
        return self._by_step[key]

    @functools.cached_property
    def _by_step(self) -> dict[tuple[config.Model, Any, int, int | None], 'TrainProgram']:
        return {(self.model, self.objective, self.train.microbatches, self.full_batch): self}

    @functools.cached_property
    def objective_matmuls(self) -> Callable[..., list[Matmul]]:
        """Lists the matmuls of one forward pass, as `family.matmuls` does, for the objective."""
        return matmuls if isinstance(self.objective, VectorObjective) else self.objective.matmuls

    @property
    def num_steps(self) -> int:
        """Steps of the run, all phases together."""
        return self.train.steps

    @property
    def device_mesh(self) -> Mesh:
        """`mesh`, if it has devices.

        Raises:
          TypeError: on an abstract mesh.
        """
        if not isinstance(self.mesh, Mesh):
            raise TypeError('a program on an abstract mesh cannot run')
        return self.mesh

    @functools.cached_property
    def graph(self) -> nnx.GraphDef:
        """The model without its parameters."""
        return model_graph(self.model, self.vocab_size, self.build)

    @functools.cached_property
    def train_step(self) -> TrainStep:
        """(state, batch) or (state, batch, seed) -> (state, metrics); the state is donated.

        `train.reduction` says which: `fast` is one program under `jax.jit`, `exact` is several, for an `Objective`.
        """
        if self.train.reduction == 'exact':
            return make_exact_step(self._parts, num_shards=self.train.exact_shards)
        return self._fast_step

    @property
    def evaluated(self) -> Objective:
        """The objective that held-out data are measured with."""
        return self.objective.evaluated

    @functools.cached_property
    def evaluation_step(self) -> Callable[[nnx.State, Any], Any]:
        """(parameters, batch) -> the sums of `evaluated` over the batch, without dropout; under `jax.jit`."""

        def sums(model: Any, batch: Any, gather: Gather | None) -> Any:
            return self.evaluated.sums(model, self.evaluated.labelled(batch, None), None, gather)

        return self.forward(sums, summed=True)

    def forward(self, function: Forward, *, summed: bool = False) -> Callable[[nnx.State, Any], Any]:
        """Compiles (parameters, batch) -> `function` of the model and the rows of a batch; see `make_forward`."""
        return make_forward(self.graph, self.mesh, self.shardings.params, function, summed=summed)

    def init_state(self, seed: int, params: nnx.State | None = None) -> TrainState:
        """Makes a new state, each part on its own device; the values are the same on any mesh.

        Args:
          seed: of the random parameters.
          params: whole arrays, the same in every process, to start from instead.
        """
        return init_state(self.model, self.vocab_size, self.optimizer, self.shardings, seed, params, self.build)

    def lower(self, batch: Any) -> jax.stages.Lowered:
        """Lowers the fast train step, ready to compile; nothing is allocated. batch: arrays, or their shapes."""
        state = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            self.shapes,
            self.shardings,
        )
        return self._fast_step.lower(state, batch)

    @functools.cached_property
    def _fast_step(self) -> Any:
        microbatches = self.train.microbatches
        if isinstance(self.objective, VectorObjective):
            return make_vector_step(self._parts, microbatches=microbatches)
        return make_train_step(self._parts, microbatches=microbatches, full_batch=self.full_batch)

    @property
    def _parts(self) -> StepParts:
        return StepParts(
            self.graph,
            self.optimizer,
            self.schedule,
            self.mesh,
            self.shardings,
            self.objective,
            self.train.seed,
            self.train.ema,
        )


def _full_batch(train: config.Train) -> int | None:
    return None if config.batch_sizes(train).is_constant else train.global_batch_size


def build_program(
    model: config.Model,
    optimizer: config.Optimizer,
    train: config.Train,
    vocab_size: int,
    mesh: Mesh | AbstractMesh,
    *,
    phases: tuple[config.Phase, ...] = (),
    build: Build = build_model,
    objective: Objective | VectorObjective = MASKED_TOKENS,
) -> TrainProgram:
    """Builds the program of a run; nothing is compiled or allocated.

    Args:
      train: see `TrainProgram`; `steps` is the length of the learning rate schedule.
      vocab_size: tokens of the tokenizer.
      phases: of the run; their values take the place of the optimizer's. For their models and objectives see
        `of_phases`.
      build, objective: the model and what it learns.

    Raises:
      BadInput: if the tensor axis cannot split the heads of a generator.
    """
    if isinstance(objective, ReplacedTokenDetection):
        objective.check(model, mesh.shape['tensor'])
    transform = make_optimizer(optimizer, train.steps, phases)
    shapes, shardings = state_shardings(model, vocab_size, transform, mesh, build, has_ema=bool(train.ema))
    return TrainProgram(
        model=model,
        train=train,
        vocab_size=model.num_embeddings(vocab_size),
        mesh=mesh,
        build=build,
        objective=objective,
        optimizer=transform,
        schedule=make_schedule(optimizer, train.steps, phases),
        shapes=shapes,
        shardings=shardings,
    )
