"""Which dim of which parameter lies on which axis of the mesh: one table.

A parameter is split over `fsdp` along its `embed` (or vocabulary) dim and over `tensor` along heads, intermediate or
vocabulary; moments follow their parameters. Where a dim is not divisible by its axis, it stays whole.
"""

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from bert_jax.model.layers import LAYERS, logical_axes

RULES = {
    LAYERS: None,  # scanned over
    'embed': 'fsdp',
    'heads': 'tensor',
    'mlp': 'tensor',
    'vocab': 'tensor',
    'pooled': None,
    'positions': None,
    'types': None,
    'labels': None,
    'norm': None,
}


def parameter_specs(params: nnx.State, mesh: Mesh | AbstractMesh) -> nnx.State:
    """A NamedSharding for every parameter, from the names of its dims."""

    def spec(variable: nnx.Variable) -> nnx.Variable:
        shape, axes = variable.get_value().shape, [RULES[name] for name in logical_axes(variable)]
        axes = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, shape, strict=True)]
        return variable.replace(NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree.map(spec, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
