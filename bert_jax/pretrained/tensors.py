"""Rows of the tables that map parameters to the tensors of `transformers` and back."""

from typing import NamedTuple

import numpy as np


class Tensor(NamedTuple):
    """A tensor of `transformers`, which consists of one or several parameters of bert_jax.

    Attributes:
      paths: paths of the parameters, in the order in which they are concatenated along the first dim of the tensor.
      name: name of the tensor; '#' is replaced by the index of the layer.
      kind: 'same' layout in both; 'transposed', because the tensor is [out, in]; or 'vocab', because the first dim of
        the parameter is padded.
      first_layer: whether the first layer has this tensor.
    """

    paths: tuple[str, ...]
    name: str
    kind: str = 'same'
    first_layer: bool = True

    @property
    def path(self) -> str:
        """The path of the first parameter; the others belong to the same part of the model."""
        return self.paths[0]

    @property
    def is_per_layer(self) -> bool:
        """Whether there is one tensor for every layer."""
        return '#' in self.name

    def name_in(self, layer: int) -> str:
        """Returns the name of the tensor in a layer."""
        return self.name.replace('#', str(layer))

    def layers(self, num_layers: int) -> range:
        """Returns the indices of the layers that have this tensor."""
        return range(0 if self.first_layer else 1, num_layers)


def same(path: str, name: str, *, first_layer: bool = True) -> list[Tensor]:
    """Returns the row of a parameter with the same layout in both."""
    return [Tensor((path,), name, first_layer=first_layer)]


def vocabulary(path: str, name: str) -> list[Tensor]:
    """Returns the row of a parameter whose first dim is the vocabulary."""
    return [Tensor((path,), name, 'vocab')]


def dense(path: str | tuple[str, ...], name: str, *, bias: bool = True) -> list[Tensor]:
    """Returns the rows of a dense layer, or of several that are one layer in `transformers`."""
    paths = (path,) if isinstance(path, str) else path
    rows = [Tensor(tuple(f'{each}/kernel' for each in paths), f'{name}.weight', 'transposed')]
    return rows + [Tensor(tuple(f'{each}/bias' for each in paths), f'{name}.bias')] * bias


def norm(path: str, name: str, *, bias: bool = True, first_layer: bool = True) -> list[Tensor]:
    """Returns the rows of a layer norm or, without `bias`, also of an RMS norm."""
    rows = same(f'{path}/scale', f'{name}.weight', first_layer=first_layer)
    return rows + same(f'{path}/bias', f'{name}.bias', first_layer=first_layer) * bias


def to_tensor(parameters: list[np.ndarray], kind: str, vocab_size: int) -> np.ndarray:
    """Returns the tensor of a row.

    Args:
      parameters: one for each path of the row; of a single layer if layers are stacked.
    """
    if kind == 'transposed':
        parameters = [parameter.T for parameter in parameters]
    value = parameters[0] if len(parameters) == 1 else np.concatenate(parameters)
    return np.ascontiguousarray(value[:vocab_size] if kind == 'vocab' else value)


def tensor_shape(shapes: list[tuple[int, ...]], kind: str, vocab_size: int) -> tuple[int, ...]:
    """Returns the shape of a row's tensor; shapes: those of its parameters."""
    first, *others = shapes[0][::-1] if kind == 'transposed' else shapes[0]
    first = vocab_size if kind == 'vocab' else sum(_sizes(shapes, kind))
    return first, *others


def to_parameters(value: np.ndarray, kind: str, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Returns the parameters of a row from its tensor; shapes: those of the parameters."""
    if kind == 'vocab':
        return [np.pad(value, [(0, shapes[0][0] - len(value))] + [(0, 0)] * (value.ndim - 1))]
    parts = np.split(value, np.cumsum(_sizes(shapes, kind))[:-1])
    return [part.T for part in parts] if kind == 'transposed' else parts


def _sizes(shapes: list[tuple[int, ...]], kind: str) -> list[int]:
    """Returns the sizes of parameters along the dim that is the first of the tensor."""
    return [shape[-1] if kind == 'transposed' else shape[0] for shape in shapes]
