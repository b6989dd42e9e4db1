"""What follows from a config and a mesh by counting alone: no compiler, no device.

`b` rows of a microbatch on one device, `L` positions, `D` hidden, `F` intermediate, `H` heads, `V` vocabulary, `N`
layers; `a` bytes of an activation.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh

from bert_jax import config as config_module
from bert_jax.config import Config, max_sequences, num_predictions
from bert_jax.model.attention import unsupported_reason_of
from bert_jax.model.family import family_of, matmuls, num_parameters
from bert_jax.model.matmul import Matmul, training_flops
from bert_jax.model.vocabulary import padded_vocab_size
from bert_jax.plan.hlo import Operation, Work
from bert_jax.plan.hlo_collectives import Collective
from bert_jax.runtime.mesh import AXES, BATCH_AXES
from bert_jax.train.memory import batch_shapes
from bert_jax.train.program import build_program


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes are of one device, but for `checkpoint_bytes`, of the whole run. tokens: of a step, all rows full.

    activations: what the backward pass keeps of the forward pass.  working: gradients, logits and one layer's
    intermediate results.  Both are estimates; the compiler's own figures replace them where there are any.
    """

    parameters: int
    flops_per_step: float
    tokens: int
    parameter_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    activation_bytes: float
    working_bytes: float
    checkpoint_bytes: int
    work: Work

    @property
    def total_bytes(self) -> float:
        """Of one device."""
        known = self.parameter_bytes + self.optimizer_bytes + self.batch_bytes
        return known + self.activation_bytes + self.working_bytes


def full_flops(config: Config) -> float:
    """Model FLOPs of a step whose rows are all full, by the project's one count."""
    return training_flops(_full_matmuls(config))


def _full_matmuls(config: Config) -> list[Matmul]:
    """Of the forward pass over a global batch whose rows are all full."""
    rows, length = config.train.global_batch_size, config.data.sequence_length
    return matmuls(
        config.model,
        config.tokenizer.vocab_size,
        rows=rows,
        length=length,
        visible_length=length,
        predictions=rows * num_predictions(config.data),
        sequences=rows * max_sequences(config.data),
    )


def estimate(config: Config, sizes: dict[str, int], platform: str = 'cpu') -> Estimate:
    """Args: sizes, of the mesh's axes (`mesh.mesh_sizes`); platform, that it is compiled for: tpu, gpu or cpu."""
    model = dataclasses.replace(config.model, remat='none', dtype='float32')  # what does not change the state
    state = _state(model, config.tokenizer.vocab_size, config.optimizer, config.train.steps, tuple(sizes.items()))
    batch = batch_shapes(config, AbstractMesh(tuple(sizes.values()), tuple(sizes)))
    parameter_bytes = state.parameter_bytes
    return Estimate(
        parameters=state.parameters,
        flops_per_step=full_flops(config),
        tokens=config.train.global_batch_size * config.data.sequence_length,
        parameter_bytes=parameter_bytes,
        optimizer_bytes=state.optimizer_bytes,
        batch_bytes=_device_bytes(batch, jax.tree.map(lambda leaf: leaf.sharding, batch)),
        activation_bytes=_activations(config, sizes, platform),
        working_bytes=parameter_bytes + _layer_and_logits(config, sizes, platform),
        checkpoint_bytes=state.checkpoint_bytes,
        work=_work(config, sizes, parameter_bytes, platform),
    )


class _State(NamedTuple):
    parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    checkpoint_bytes: int


@functools.cache
def _state(
    model: config_module.Model,
    vocab_size: int,
    optimizer: config_module.Optimizer,
    num_steps: int,
    sizes: tuple[tuple[str, int], ...],
) -> _State:
    """The state of a run over the axes of a mesh; a search asks for it many times."""
    mesh = AbstractMesh(tuple(size for _, size in sizes), tuple(axis for axis, _ in sizes))
    program = build_program(model, optimizer, config_module.Train(steps=num_steps), vocab_size, mesh)
    shapes, shardings = program.shapes, program.shardings
    return _State(
        num_parameters(model, vocab_size),
        _device_bytes(shapes.params, shardings.params),
        _device_bytes(shapes.opt_state, shardings.opt_state),
        sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)),
    )


def _device_bytes(shapes: object, shardings: object) -> int:
    sizes = jax.tree.map(
        lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize, shapes, shardings
    )
    return sum(jax.tree.leaves(sizes))


def _rows(config: Config, sizes: dict[str, int]) -> int:
    """b, the rows of a microbatch on one device."""
    shards = config.train.microbatches * math.prod(sizes[axis] for axis in BATCH_AXES)
    return config.train.global_batch_size // shards


def _kept_per_token(config: Config, tensor: int, remat: str, platform: str) -> float:
    """Bytes of a layer that wait for the backward pass, a token: read off compiled programs of this model."""
    model, length = config.model, config.data.sequence_length
    a = 2 if model.dtype == 'bfloat16' else 4
    size, inner = model.hidden_size, model.intermediate_size / tensor
    if remat == 'full':
        return size * a
    if remat == 'dots':
        return size * (3 * a + 3 * a / tensor) + inner * a
    is_fused, heads = _is_fused(config, tensor, platform), model.num_heads / tensor
    of_score = 4 + a + model.drops_attention_weights  # scores, weights, their mask
    fused = size * a / tensor if platform == 'gpu' else 0.0  # those kernels keep their result, once more
    columns = family_of(model).layer_types(model, length)
    attention = [fused if is_fused and may_fuse else heads * count * of_score for count, may_fuse in columns]
    return family_of(model).kept_per_token(model, a, tensor) + sum(attention) / len(attention)


def _is_fused(config: Config, tensor: int, platform: str) -> bool:
    """Whether the scores of attention stay on the chip."""
    model, length, is_packed = config.model, config.data.sequence_length, max_sequences(config.data) > 1
    is_supported = unsupported_reason_of(model, platform, length, tensor, is_packed) is None
    return model.attention != 'plain' and is_supported


def _activations(config: Config, sizes: dict[str, int], platform: str) -> float:
    tokens = _rows(config, sizes) * config.data.sequence_length
    return config.model.num_layers * tokens * _kept_per_token(config, sizes['tensor'], config.model.remat, platform)


def _layer_and_logits(config: Config, sizes: dict[str, int], platform: str) -> float:
    rows = _rows(config, sizes)
    vocabulary = padded_vocab_size(config.tokenizer.vocab_size) / sizes['tensor']
    logits = 2 * 4 * rows * num_predictions(config.data) * vocabulary
    return logits + rows * config.data.sequence_length * _kept_per_token(config, sizes['tensor'], 'none', platform)


def _work(config: Config, sizes: dict[str, int], parameter_bytes: int, platform: str) -> Work:
    """The step of one device, counted by hand: matmuls, one pass over what a layer keeps in each direction, Adam."""
    model, micro = config.model, config.train.microbatches
    num_devices, tensor = math.prod(sizes.values()), sizes['tensor']
    rows, length = _rows(config, sizes), config.data.sequence_length
    tokens, layers = rows * length, model.num_layers * micro
    flops = full_flops(config) / num_devices
    again = {'none': 0.0, 'dots': _batched_share(config) / 3, 'full': 1 / 3}[model.remat]
    moved = tokens * _kept_per_token(config, tensor, 'none', platform)
    operations = (
        Operation(flops * (1 + again) / layers, 0.0, layers),
        Operation(0.0, 2 * moved, layers),  # forward: written and read
        Operation(0.0, 3 * moved * (1 + again), layers),  # backward: read, written and read
        Operation(0.0, 3 * _layer_and_logits(config, sizes, platform), micro),
        Operation(0.0, 9.0 * parameter_bytes, 1),  # gradient, parameter, two moments: read and written
    )
    return Work(operations, tuple(_collectives(config, sizes, parameter_bytes, tokens)), 0)


def _batched_share(config: Config) -> float:
    """The share of the FLOPs that `remat=dots` computes again: matmuls with a batch dim, which are attention's."""
    forward = _full_matmuls(config)
    return training_flops([matmul for matmul in forward if matmul.batch > 1]) / training_flops(forward)


def _collectives(config: Config, sizes: dict[str, int], parameter_bytes: int, tokens: int) -> list[Collective]:
    """What a step must exchange: gradients over data, parameters over fsdp, activations over tensor."""
    micro, layers = config.train.microbatches, config.model.num_layers
    a = 2 if config.model.dtype == 'bfloat16' else 4
    found = []
    if sizes['data'] > 1:
        found.append(Collective('all-reduce', axis_groups(sizes, 'data'), parameter_bytes, 1, False))
    if sizes['fsdp'] > 1:
        gathered = parameter_bytes * sizes['fsdp']
        groups = axis_groups(sizes, 'fsdp')
        found.append(Collective('all-gather', groups, gathered * a // 4, 2 * micro, False))
        found.append(Collective('reduce-scatter', groups, gathered, micro, False))
    if sizes['tensor'] > 1:
        activations = tokens * config.model.hidden_size * a
        found.append(Collective('all-reduce', axis_groups(sizes, 'tensor'), activations, 4 * layers * micro, False))
    return found


def axis_groups(sizes: dict[str, int], axis: str) -> tuple[tuple[int, ...], ...]:
    """[G, n] places in the mesh that differ along one axis only."""
    places = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
    rows = np.moveaxis(places, AXES.index(axis), -1).reshape(-1, sizes[axis])
    return tuple(tuple(row) for row in rows.tolist())
