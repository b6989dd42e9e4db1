"""How a family's parameters are named and laid out in `transformers`: rows of one table, used in both directions."""

from typing import NamedTuple

import numpy as np


class Tensor(NamedTuple):
    """One tensor of `transformers`, made of one or several parameters.

    Attributes:
      paths: of our parameters; several are concatenated along the first dim of theirs, in this order.
      name: theirs; '#' stands for the index of the layer.
      kind: 'same'; 'transposed', as theirs is [out, in]; or 'vocab', whose first dim is padded here.
      first_layer: False if the first layer has no such tensor.
    """

    paths: tuple[str, ...]
    name: str
    kind: str = 'same'
    first_layer: bool = True

    @property
    def is_per_layer(self) -> bool:
        """Whether there is one tensor for every layer."""
        return '#' in self.name

    def layers(self, num_layers: int) -> range:
        """The layers that have this tensor."""
        return range(0 if self.first_layer else 1, num_layers)


def same(path: str, name: str, *, first_layer: bool = True) -> list[Tensor]:
    """A parameter with the same layout in both."""
    return [Tensor((path,), name, first_layer=first_layer)]


def vocabulary(path: str, name: str) -> list[Tensor]:
    """A parameter whose first dim is the vocabulary."""
    return [Tensor((path,), name, 'vocab')]


def dense(path: str | tuple[str, ...], name: str, *, bias: bool = True) -> list[Tensor]:
    """A dense layer, or several that are one layer there."""
    paths = (path,) if isinstance(path, str) else path
    rows = [Tensor(tuple(f'{each}/kernel' for each in paths), f'{name}.weight', 'transposed')]
    return rows + [Tensor(tuple(f'{each}/bias' for each in paths), f'{name}.bias')] * bias


def norm(path: str, name: str, *, bias: bool = True, first_layer: bool = True) -> list[Tensor]:
    """A layer norm; without `bias`, or an RMS norm."""
    rows = same(f'{path}/scale', f'{name}.weight', first_layer=first_layer)
    return rows + same(f'{path}/bias', f'{name}.bias', first_layer=first_layer) * bias


def to_theirs(parameters: list[np.ndarray], kind: str, vocab_size: int) -> np.ndarray:
    """The tensor of a row from its parameters, those of one layer where they are stacked."""
    if kind == 'transposed':
        parameters = [parameter.T for parameter in parameters]
    value = parameters[0] if len(parameters) == 1 else np.concatenate(parameters)
    return np.ascontiguousarray(value[:vocab_size] if kind == 'vocab' else value)


def to_ours(value: np.ndarray, kind: str, sizes: list[int], padded_vocab_size: int) -> list[np.ndarray]:
    """The parameters of a row from its tensor.

    Args:
      sizes: of each parameter along the dim that is the first of the tensor; ignored for a single one.
    """
    if kind == 'vocab':
        return [np.pad(value, [(0, padded_vocab_size - len(value))] + [(0, 0)] * (value.ndim - 1))]
    parts = np.split(value, np.cumsum(sizes)[:-1]) if len(sizes) > 1 else [value]
    return [part.T for part in parts] if kind == 'transposed' else parts
