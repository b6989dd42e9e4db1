"""Estimates a step from a config and a mesh by counting alone, without a compiler or a device.

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
from bert_jax.model.family import Build, family_of, matmuls, num_parameters
from bert_jax.model.layer_stack import pattern_length
from bert_jax.model.local_attention import is_local, num_blocks
from bert_jax.model.losses import vocabulary_bytes
from bert_jax.model.matmul import Matmul, training_flops
from bert_jax.model.replaced_tokens import build_of, generator_model
from bert_jax.model.vocabulary import padded_vocab_size
from bert_jax.plan.hlo import Operation, Work
from bert_jax.plan.hlo_collectives import Collective
from bert_jax.runtime.mesh import AXES, BATCH_AXES
from bert_jax.train.memory import batch_shapes
from bert_jax.train.objectives import objective_of
from bert_jax.train.program import build_program
from bert_jax.train.speed import full_batch_flops

UPDATE_BYTES = 9.0  # that Adam reads and writes per parameter byte: gradient, parameter and two moments


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one step needs. Bytes are per device, except `checkpoint_bytes`.

    Attributes:
      parameters: of the model, without padding of the vocabulary.
      flops_per_step: model FLOPs of all devices.
      tokens: of a global batch whose rows are full.
      parameter_bytes, optimizer_bytes, batch_bytes: exact.
      activation_bytes: what the backward pass keeps of the forward pass; a compiled program has the exact figure.
      working_bytes: gradients, logits and the intermediate results of a few layers; also replaced by the compiler's.
      checkpoint_bytes: of the whole run.
      work: matmuls, memory traffic and collectives of one device.
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
        """Bytes that a step needs on one device."""
        known = self.parameter_bytes + self.optimizer_bytes + self.batch_bytes
        return known + self.activation_bytes + self.working_bytes


def _full_batch_matmuls(config: Config, *, as_computed: bool = False, has_heads: bool = True) -> list[Matmul]:
    """Returns the matmuls of the forward pass over a global batch whose rows are all full; see `family.matmuls`."""
    rows, length = config.train.global_batch_size, config.data.sequence_length
    return objective_of(config.objective).matmuls(
        config.model,
        config.model.num_embeddings(config.tokenizer.vocab_size),
        rows=rows,
        length=length,
        visible_length=length,
        predictions=rows * num_predictions(config.data) * has_heads,
        sequences=rows * max_sequences(config.data) * has_heads,
        as_computed=as_computed,
    )


def estimate(config: Config, axis_sizes: dict[str, int], platform: str = 'cpu') -> Estimate:
    """Returns the estimate of a step.

    Args:
      axis_sizes: of the mesh (`runtime.mesh.mesh_sizes`).
      platform: that the step is compiled for: 'tpu', 'gpu' or 'cpu'.
    """
    model = dataclasses.replace(config.model, remat='none', dtype='float32')  # neither changes the state
    axes = tuple(axis_sizes.items())
    state = _state_size(
        model,
        config.tokenizer.vocab_size,
        config.optimizer,
        config.train.steps,
        config.train.ema,
        axes,
        build_of(config.objective),
    )
    batch = batch_shapes(config, AbstractMesh(tuple(axis_sizes.values()), tuple(axis_sizes)))
    return Estimate(
        parameters=state.parameters,
        flops_per_step=full_batch_flops(config, config.tokenizer.vocab_size),
        tokens=config.train.global_batch_size * config.data.sequence_length,
        parameter_bytes=state.parameter_bytes,
        optimizer_bytes=state.optimizer_bytes,
        batch_bytes=_device_bytes(batch, jax.tree.map(lambda leaf: leaf.sharding, batch)),
        activation_bytes=_activation_bytes(config, axis_sizes, platform),
        working_bytes=_working_bytes(config, axis_sizes, state.parameter_bytes, platform),
        checkpoint_bytes=state.checkpoint_bytes,
        work=_work(config, axis_sizes, state.parameter_bytes, platform),
    )


class _StateSize(NamedTuple):
    """Bytes of the training state: per device, and of a checkpoint of the whole state."""

    parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    checkpoint_bytes: int


@functools.cache  # `search` asks for the same state many times
def _state_size(
    model: config_module.Model,
    vocab_size: int,
    optimizer: config_module.Optimizer,
    num_steps: int,
    ema: float,
    axes: tuple[tuple[str, int], ...],
    build: Build,
) -> _StateSize:
    """Returns the size of the state of a run on a mesh of these (axis, size) pairs."""
    mesh = AbstractMesh(tuple(size for _, size in axes), tuple(axis for axis, _ in axes))
    train = config_module.Train(steps=num_steps, ema=ema)
    program = build_program(model, optimizer, train, vocab_size, mesh, build=build)
    shapes, shardings = program.shapes, program.shardings
    return _StateSize(
        num_parameters(model, vocab_size, build),
        _device_bytes(shapes.params, shardings.params),
        _device_bytes((shapes.opt_state, shapes.ema), (shardings.opt_state, shardings.ema)),
        sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)),
    )


def _device_bytes(shapes: object, shardings: object) -> int:
    """Returns the bytes that one device holds of a tree of arrays."""
    sizes = jax.tree.map(
        lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize, shapes, shardings
    )
    return sum(jax.tree.leaves(sizes))


def _rows_per_microbatch(config: Config, axis_sizes: dict[str, int]) -> int:
    """Returns b, the rows of a microbatch on one device."""
    num_shards = config.train.microbatches * math.prod(axis_sizes[axis] for axis in BATCH_AXES)
    return config.train.global_batch_size // num_shards


def _kept_bytes_per_token(config: Config, tensor: int, remat: str, platform: str) -> float:
    """Returns the bytes per token that a layer keeps for the backward pass, averaged over the layers.

    Args:
      tensor: size of the tensor axis.
      remat: as `config.Model.remat`.
    """
    model, a = config.model, _bytes_per_activation(config)
    if remat == 'full':
        return model.hidden_size * a
    if remat == 'dots':
        return a * (model.hidden_size + _matmul_columns(model, tensor))
    layers = [
        _attention_bytes_per_token(config, radius, tensor, platform)
        for radius in family_of(model).attention_radii(model)
    ]
    return family_of(model).kept_per_token(model, a, tensor) + sum(layers) / len(layers)


def _attention_bytes_per_token(config: Config, radius: int | None, tensor: int, platform: str) -> float:
    """Returns the bytes per token that attention keeps in a layer in addition to queries, keys and values.

    Args:
      radius: positions that a position sees to either side; None for all.
    """
    model, length = config.model, config.data.sequence_length
    a, num_heads = _bytes_per_activation(config), model.num_heads / tensor
    bytes_per_score = a * (1 + model.drops_attention_weights)  # the weight, before and after dropout
    outputs = model.hidden_size * a / tensor + 4 * num_heads  # by head, with the sums of their weights
    if _uses_kernel(config, tensor, platform):
        # The GPU kernel keeps its output, with the sums, in addition to the input of the output projection.
        return outputs if platform == 'gpu' else 4 * num_heads
    if is_local(radius, length):
        # Blocks of queries have the scores, keys and values of three blocks; the last block is padded.
        padding = num_blocks(radius, length) * radius / length
        keys_and_values = 2 * 2 * model.hidden_size * a / tensor
        return padding * (num_heads * 3 * radius * bytes_per_score + keys_and_values + outputs)
    return num_heads * length * bytes_per_score + outputs


def _matmul_columns(model: config_module.Model, tensor: int) -> float:
    """Returns the columns of a layer's matmul results that the backward pass needs, without those of attention."""
    one = {'rows': 1, 'length': 1, 'visible_length': 0, 'predictions': 0, 'sequences': 0}
    in_layers = [m for m in matmuls(model, 0, **one, tensor=tensor) if m.m and m.k and m.batch == 1]
    columns = float(sum(m.n * m.count for m in in_layers)) / model.num_layers
    # Without a norm after it, the last sum of a layer is the input of the next one, which is kept anyway.
    return columns if family_of(model).is_post_norm else columns - model.hidden_size


def _bytes_per_activation(config: Config) -> int:
    """Returns a, the bytes of an activation in the dtype of the computation."""
    return 2 if config.model.dtype == 'bfloat16' else 4


def _uses_kernel(config: Config, tensor: int, platform: str) -> bool:
    """Returns whether a fused kernel computes attention, so that its scores are not stored."""
    is_supported = unsupported_reason_of(config.model, platform, config.data.sequence_length, tensor) is None
    return config.model.attention != 'plain' and is_supported


def _activation_bytes(config: Config, axis_sizes: dict[str, int], platform: str) -> float:
    tokens = _rows_per_microbatch(config, axis_sizes) * config.data.sequence_length
    per_token = _kept_bytes_per_token(config, axis_sizes['tensor'], config.model.remat, platform)
    own = config.model.num_layers * tokens * per_token
    if config.objective.name != 'rtd':
        return own
    narrow = generator_model(config.model, config.objective.generator_width)
    generator = dataclasses.replace(config, model=narrow, objective=config_module.Objective())
    return own + _activation_bytes(generator, axis_sizes, platform)


def _layer_bytes(config: Config, axis_sizes: dict[str, int], platform: str) -> float:
    """Returns the bytes of one layer's intermediate results for a microbatch."""
    tokens = _rows_per_microbatch(config, axis_sizes) * config.data.sequence_length
    return tokens * _kept_bytes_per_token(config, axis_sizes['tensor'], 'none', platform)


def _logits_bytes(config: Config, axis_sizes: dict[str, int]) -> float:
    """Returns the bytes of what a microbatch computes over the vocabulary."""
    vocabulary = padded_vocab_size(config.model.num_embeddings(config.tokenizer.vocab_size))
    predictions = _rows_per_microbatch(config, axis_sizes) * config.objective.num_predictions(config.data)
    return predictions * vocabulary_bytes(vocabulary, _bytes_per_activation(config), axis_sizes['tensor'])


def _working_bytes(config: Config, axis_sizes: dict[str, int], parameter_bytes: int, platform: str) -> float:
    """Returns the bytes of gradients, logits, and the layers that one iteration of the loop over layers runs."""
    num_layers = pattern_length(family_of(config.model).attention_radii(config.model))
    logits = _logits_bytes(config, axis_sizes)
    return parameter_bytes + logits + num_layers * _layer_bytes(config, axis_sizes, platform)


def _work(config: Config, axis_sizes: dict[str, int], parameter_bytes: int, platform: str) -> Work:
    """Returns the work of one device in a step: matmuls, memory traffic of each layer, and the update."""
    model, microbatches = config.model, config.train.microbatches
    num_devices = math.prod(axis_sizes.values())
    tokens = _rows_per_microbatch(config, axis_sizes) * config.data.sequence_length
    num_layers = model.num_layers * microbatches
    flops = training_flops(_full_batch_matmuls(config, as_computed=True)) / num_devices
    recomputed = _recomputed_flops(config) / num_devices / flops
    kept = _layer_bytes(config, axis_sizes, platform)
    operations = (
        Operation(flops * (1 + recomputed) / num_layers, 0.0, num_layers),
        Operation(0.0, 2 * kept, num_layers),  # forward: written and read
        Operation(0.0, 3 * kept * (1 + recomputed), num_layers),  # backward: read, written and read
        Operation(0.0, 3 * (kept + _logits_bytes(config, axis_sizes)), microbatches),
        Operation(0.0, UPDATE_BYTES * parameter_bytes, 1),
    )
    return Work(operations, tuple(_collectives(config, axis_sizes, parameter_bytes, tokens)), 0)


def _recomputed_flops(config: Config) -> float:
    """Returns the matmul FLOPs of the forward pass that the backward pass computes again."""
    if config.model.remat == 'none':
        return 0.0
    layers = _full_batch_matmuls(config, as_computed=True, has_heads=False)
    if config.model.remat == 'dots':
        again = [matmul for matmul in layers if matmul.batch > 1]  # attention: those with a batch dim
    else:
        # The result of a layer's last matmul is needed again only by a norm after it.
        again = [matmul for matmul in layers if family_of(config.model).is_post_norm or matmul.name != 'output']
    return training_flops(again) / 3


def _collectives(config: Config, axis_sizes: dict[str, int], parameter_bytes: int, tokens: int) -> list[Collective]:
    """Returns what a step must exchange: gradients over data, parameters over fsdp, activations over tensor."""
    microbatches, num_layers = config.train.microbatches, config.model.num_layers
    a = _bytes_per_activation(config)
    collectives = []
    if axis_sizes['data'] > 1:
        groups = axis_groups(axis_sizes, 'data')
        collectives.append(Collective('all-reduce', groups, parameter_bytes, 1))
    if axis_sizes['fsdp'] > 1:
        gathered, groups = parameter_bytes * axis_sizes['fsdp'], axis_groups(axis_sizes, 'fsdp')
        collectives.append(Collective('all-gather', groups, gathered * a // 4, 2 * microbatches))
        collectives.append(Collective('reduce-scatter', groups, gathered, microbatches))
    if axis_sizes['tensor'] > 1:
        groups, size = axis_groups(axis_sizes, 'tensor'), tokens * config.model.hidden_size * a
        collectives.append(Collective('all-reduce', groups, size, 4 * num_layers * microbatches))
    return collectives


def axis_groups(axis_sizes: dict[str, int], axis: str) -> tuple[tuple[int, ...], ...]:
    """Returns the [G, n] device indices of a mesh, grouped so that those of a group differ along one axis only."""
    devices = np.arange(math.prod(axis_sizes.values())).reshape(list(axis_sizes.values()))
    groups = np.moveaxis(devices, AXES.index(axis), -1).reshape(-1, axis_sizes[axis])
    return tuple(tuple(group) for group in groups.tolist())
