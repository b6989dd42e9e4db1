"""Maps the dims of parameters to the axes of the mesh, in one table.

A parameter is split over `fsdp` along its `embed` (or vocabulary) dim and over `tensor` along heads, intermediate or
vocabulary; moments follow their parameters. A dim that is not divisible by the size of its axis stays whole.
"""

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from bert_jax.model.layers import LAYERS, is_variable, logical_axes

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
    """Returns a NamedSharding for every parameter, from the names of its dims."""

    def spec(variable: nnx.Variable) -> nnx.Variable:
        shape, axes = variable.get_value().shape, [RULES[name] for name in logical_axes(variable)]
        axes = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, shape, strict=True)]
        return variable.replace(NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree.map(spec, params, is_leaf=is_variable)
