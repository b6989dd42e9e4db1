"""Gradients of the global batch: what each device works out for itself, and what the devices exchange.

Rows lie on the `data` and `fsdp` axes, and every device goes through its own rows by itself (`jax.shard_map`), so that
nothing is exchanged but what is written here:

- weights that are split over `fsdp` are gathered where they are used, layer by layer, and again in the backward pass;
  the gradient of a gather is a reduce-scatter;
- everything else (gradients over `data`, those of weights that are not split, the losses) is summed over the devices
  once, after the last microbatch.

The `tensor` axis splits products, not rows: how it does is left to XLA and the table in `train/sharding.py`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from bert_jax.train.sharding import AXES, BATCH_AXES


class Exchange:
    """What the devices of a mesh exchange in a step; made for the shardings of a model's parameters."""

    def __init__(self, mesh: Mesh, shardings: nnx.State):
        self._mesh = mesh
        self._several = tuple(axis for axis in BATCH_AXES if mesh.shape[axis] > 1)
        is_split = mesh.shape['fsdp'] > 1
        self.specs = jax.tree.map(
            lambda sharding: PartitionSpec(*(axis if is_split and axis == 'fsdp' else None for axis in sharding.spec)),
            shardings,
        )
        self._in_layers = jax.tree.map_with_path(lambda path, _: 'layers' in jax.tree_util.keystr(path), self.specs)

    def over_rows(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """A function that each device runs on its own part of the batch axes; `tensor` stays with XLA."""
        if self._mesh.shape['tensor'] > 1 and not self._several:
            return function
        manual = set(AXES) if self._mesh.shape['tensor'] == 1 else set(self._several)
        return jax.shard_map(
            function, mesh=self._mesh, in_specs=in_specs, out_specs=out_specs, axis_names=manual, check_vma=False
        )

    def gather_outside_layers(self, weights: nnx.State) -> nnx.State:
        """Embeddings, pooler and heads whole, for all microbatches at once."""

        def whole(weight: jax.Array, spec: PartitionSpec, is_layer: bool) -> jax.Array:
            return weight if is_layer else _gather(weight, tuple(spec))

        return jax.tree.map(whole, weights, self.specs, self._in_layers)

    def assemble(self, graph: nnx.GraphDef, weights: nnx.State) -> nnx.Module:
        """The model of weights that are whole but for the layers', which it gathers where it uses them."""
        model = nnx.merge(graph, weights)
        layers = self.specs['bert']['encoder']['layers']
        if any('fsdp' in spec for spec in jax.tree.leaves(layers)):
            model.bert.encoder.at_use = lambda layer: jax.tree.map(
                lambda weight, spec: _gather(weight, tuple(spec)[1:]), layer, layers
            )
        return model

    def sum_gradients(self, grads: nnx.State) -> nnx.State:
        """Gradients as a device found them -> of the global batch, each split as its parameter."""

        def total(grad: jax.Array, spec: PartitionSpec, is_layer: bool) -> jax.Array:
            axes = self._several
            if 'fsdp' in spec:
                axes = tuple(axis for axis in axes if axis != 'fsdp')
                if not is_layer:  # a layer's is scattered already
                    dim = tuple(spec).index('fsdp')
                    grad = jax.lax.psum_scatter(grad, 'fsdp', scatter_dimension=dim, tiled=True)
            return jax.lax.psum(grad, axes) if axes else grad

        return jax.tree.map(total, grads, self.specs, self._in_layers)

    def sum(self, values: Any) -> Any:
        """Small sums over all rows."""
        return jax.lax.psum(values, self._several) if self._several else values


def _gather(weight: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    return jax.lax.all_gather(weight, 'fsdp', axis=axes.index('fsdp'), tiled=True) if 'fsdp' in axes else weight


def accumulated(function: Callable, microbatches: int, batch: Any) -> Any:
    """The sum of function(part) over equal parts of a device's rows, one after the other."""
    if microbatches == 1:
        return function(batch)
    parts = jax.tree.map(lambda array: array.reshape(microbatches, -1, *array.shape[1:]), batch)
    first = jax.tree.map(lambda array: array[0], parts)
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(function, first))
    total, _ = jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None), zeros, parts)
    return total
