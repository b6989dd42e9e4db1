"""Computes gradients of the global batch; defines all communication between the devices.

Rows are split over the `data` and `fsdp` axes. Each device processes its own rows by itself (`jax.shard_map`), so the
devices exchange only what this module writes out:

- weights that are split over `fsdp` are gathered where they are used, layer by layer, and again in the backward pass;
  the gradient of a gather is a reduce-scatter;
- everything else (gradients over `data`, those of weights that are not split, the losses) is summed over the devices
  once, after the last microbatch;
- a loss over the vectors of all rows gathers those, and scatters their gradient.

The `tensor` axis splits matmuls, not rows; XLA does this according to the table in `train/sharding.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from bert_jax.model.layers import is_stacked, is_variable
from bert_jax.runtime.mesh import AXES, BATCH_AXES

_SPLIT = 'split'  # metadata of a model's parameter: the mesh axes of its dims


class Collectives:
    """The communication between the devices of a mesh in a step, for the shardings of a model's parameters.

    Attributes:
      specs: of the parameters, over the axes of rows.
      gather_layer: the whole weights of one layer of a model from `merge`, from a device's parts of them, as the
        forward pass takes it (see `model.bert.Encoder`); None where every device holds whole weights.
    """

    def __init__(self, mesh: Mesh | AbstractMesh, shardings: nnx.State):
        self._mesh = mesh
        self._several = tuple(axis for axis in AXES if mesh.shape[axis] > 1)
        self._row_axes = tuple(axis for axis in self._several if axis in BATCH_AXES)
        self._axes = jax.tree.map(lambda sharding: _only(self._several, sharding.spec), shardings)
        self.specs = jax.tree.map(lambda axes: _only(self._row_axes, axes), self._axes)
        self._is_stacked = jax.tree.map(
            lambda sharding: sharding.replace(is_stacked(sharding)),
            shardings,
            is_leaf=is_variable,
        )
        self.gather_layer = self._gather_layer if 'fsdp' in self._several else None

    def over_rows(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """Maps a function over the devices' parts of the batch axes; `tensor` is left to XLA."""
        manual = set(BATCH_AXES) if 'tensor' in self._several else set(AXES)
        return jax.shard_map(
            function, mesh=self._mesh, in_specs=in_specs, out_specs=out_specs, axis_names=manual, check_vma=False
        )

    def merge(self, graph: nnx.GraphDef, weights: nnx.State) -> nnx.Module:
        """Builds the model from the weights of `gather_outside_layers`; layers record how they are split."""

        def note_split(weight: nnx.Variable, axes: nnx.Variable) -> nnx.Variable:
            return weight.copy(**{_SPLIT: axes.get_value()})

        return nnx.merge(graph, jax.tree.map(note_split, weights, self._axes, is_leaf=is_variable))

    def gather_outside_layers(self, weights: nnx.State) -> nnx.State:
        """Gathers embeddings, pooler and heads, once for all microbatches."""

        def whole(weight: jax.Array, axes: PartitionSpec, stacked: bool) -> jax.Array:
            return weight if stacked else self._gather(weight, axes)

        return jax.tree.map(whole, weights, self._axes, self._is_stacked)

    def sum_gradients(self, grads: nnx.State) -> nnx.State:
        """Turns a device's gradients into those of the global batch, each split like its parameter."""

        def total(grad: jax.Array, axes: PartitionSpec, stacked: bool) -> jax.Array:
            if 'fsdp' not in axes:
                return self.sum(grad)
            if not stacked:  # a layer's is scattered already
                dim = axes.index('fsdp')
                scatter = functools.partial(jax.lax.psum_scatter, axis_name='fsdp', scatter_dimension=dim, tiled=True)
                grad = self._of_each_part(scatter, axes)(grad)
            return jax.lax.psum(grad, 'data') if 'data' in self._several else grad

        return jax.tree.map(total, grads, self._axes, self._is_stacked)

    def sum(self, values: Any) -> Any:
        """Sums over all rows."""
        return jax.lax.psum(values, self._row_axes) if self._row_axes else values

    def gather_rows(self, values: Any) -> Any:
        """Gathers the rows of all devices, in the order of the global batch."""
        if not self._row_axes:
            return values
        return jax.tree.map(lambda rows: jax.lax.all_gather(rows, self._row_axes, tiled=True), values)

    def _gather_layer(self, weights: nnx.State) -> nnx.State:
        def whole(weight: nnx.Variable) -> nnx.Variable:
            _, *axes = weight.get_metadata(_SPLIT)
            return weight.replace(self._gather(weight.get_value(), PartitionSpec(*axes)))

        return jax.tree.map(whole, weights, is_leaf=is_variable)

    def _gather(self, weight: jax.Array, axes: PartitionSpec) -> jax.Array:
        if 'fsdp' not in axes:
            return weight
        gather = functools.partial(jax.lax.all_gather, axis_name='fsdp', axis=axes.index('fsdp'), tiled=True)
        return self._of_each_part(gather, axes)(weight)

    def _of_each_part(self, exchange: Callable, axes: PartitionSpec) -> Callable:
        """Exchanges over fsdp the parts that `tensor` makes; XLA on its own would assemble them first."""
        if 'tensor' not in axes:
            return exchange
        spec = _only(('tensor',), axes)
        return jax.shard_map(exchange, in_specs=spec, out_specs=spec, axis_names={'tensor'}, check_vma=False)


def _only(names: tuple[str, ...], axes: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(*(axis if axis in names else None for axis in axes))


def accumulated(function: Callable, microbatches: int, batch: Any) -> Any:
    """Returns the sum of function(part) over equal parts of a device's rows, one after the other."""
    if microbatches == 1:
        return function(batch)
    parts = _split_rows(batch, microbatches)
    first = jax.tree.map(lambda array: array[0], parts)
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(function, first))
    total, _ = jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None), zeros, parts)
    return total


def concatenated(function: Callable, microbatches: int, batch: Any) -> Any:
    """Returns the concatenated rows of function(part) for equal parts of a device's rows, one after the other."""
    if microbatches == 1:
        return function(batch)
    found = jax.lax.map(function, _split_rows(batch, microbatches))
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), found)


def _split_rows(batch: Any, num_parts: int) -> Any:
    return jax.tree.map(lambda array: array.reshape(num_parts, -1, *array.shape[1:]), batch)
