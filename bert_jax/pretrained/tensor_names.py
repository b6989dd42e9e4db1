"""Converts parameters to the tensors of `transformers` and back, by the tables of the families."""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.model.family import Build, build_model, check_size
from bert_jax.model.layers import is_variable, truncated_normal
from bert_jax.pretrained.families import hub_of
from bert_jax.pretrained.hub import HubFamily
from bert_jax.pretrained.tensors import Tensor, tensor_shape, to_parameters, to_tensor


def to_tensors(
    params: nnx.State,
    model: config.Model,
    num_tokens: int,
    table: list[Tensor] | None = None,
    without: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Returns {name: float32 tensor} as `transformers` has them, without the padding of the vocabulary.

    Args:
      num_tokens: of the tokenizer.
      table: the names; by default, those of the pretraining class.
      without: heads to leave out.

    Raises:
      ValueError: for a parameter that the table does not list.
    """
    hub, vocab_size = hub_of(model), model.num_embeddings(num_tokens)
    table = hub.tensors(model) if table is None else table
    ours, left_out = _flat(params), hub.paths_of(without)
    if unknown := ours.keys() - {path for tensor in table for path in tensor.paths}:
        raise ValueError(f'parameters without a Hugging Face name: {sorted(unknown)}')
    tensors = {}
    for tensor in table:
        values = [ours[path] for path in tensor.paths]
        if tensor.path.startswith(left_out):
            continue
        if tensor.is_per_layer:
            for layer in tensor.layers(model.num_layers):
                tensors[tensor.name_in(layer)] = to_tensor([value[layer] for value in values], tensor.kind, vocab_size)
        else:
            tensors[tensor.name] = to_tensor(values, tensor.kind, vocab_size)
    return tensors


def from_tensors(
    tensors: dict[str, np.ndarray],
    model: config.Model,
    num_tokens: int,
    file: str,
    build: Build = build_model,
    table: list[Tensor] | None = None,
) -> nnx.State:
    """Returns the parameters of a model from tensors of any float type.

    The tensors may have the names of a bare encoder or of old files. A pooler or a head of pretraining that is absent
    (`HubFamily.absent_heads`) is initialized as for a new model, with a fixed seed.

    Args:
      num_tokens: of the tokenizer; `model.vocab_size` may have more rows.
      file: the file to name in errors.
      build: makes the model.
      table: names of its tensors; by default, those of the pretraining class.

    Raises:
      BadInput: lists every tensor that is missing, misshapen or unknown; or the model is far larger than the tensors.
    """
    hub, vocab_size = hub_of(model), model.num_embeddings(num_tokens)
    table = hub.tensors(model) if table is None else table
    num_elements = sum(value.size for value in tensors.values())
    check_size(model, vocab_size, num_elements, str(Path(file).parent), file)
    shapes = nnx.state(nnx.eval_shape(lambda: build(model, num_tokens, nnx.Rngs(0))), nnx.Param)
    expected, ours = _flat(shapes, convert=lambda value: value.shape), {}
    source = _Tensors(*_with_current_names(tensors, hub, model), vocab_size)
    initialized = hub.paths_of(hub.absent_heads(source.tensors, model))
    for index, tensor in enumerate(table):
        row_shapes = [expected[path] for path in tensor.paths]
        if tensor.path.startswith(initialized):
            ours[tensor.path] = _initial(tensor, row_shapes[0], hub.head_stddev(model), vocab_size, index)
        elif tensor.is_per_layer:
            values = source.layers_of(tensor, [shape[1:] for shape in row_shapes], model.num_layers)
            ours |= dict(zip(tensor.paths, values, strict=True))
        else:
            ours |= dict(zip(tensor.paths, source.pop(tensor.name, tensor.kind, row_shapes), strict=True))
    source.check_complete(model, file)
    return jax.tree.map_with_path(
        lambda path, variable: variable.replace(jax.numpy.asarray(ours[_joined(path)])),
        shapes,
        is_leaf=is_variable,
    )


@dataclasses.dataclass
class _Tensors:
    """The tensors of a directory that are not yet converted, and the problems found so far."""

    tensors: dict[str, np.ndarray]
    problems: list[str]
    vocab_size: int

    def pop(self, name: str, kind: str, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
        """Converts a tensor to float32 parameters of these shapes; if it does not fit, records it and returns zeros."""
        theirs = tensor_shape(shapes, kind, self.vocab_size)
        zeros = [np.zeros(shape, np.float32) for shape in shapes]
        if name not in self.tensors:
            self.problems.append(f'{name}: missing')
            return zeros
        value = self.tensors.pop(name)
        if value.shape != theirs:
            self.problems.append(f'{name}: shape {list(value.shape)}, expected {list(theirs)}')
            return zeros
        if not jax.numpy.issubdtype(value.dtype, np.floating):
            self.problems.append(f'{name}: holds {value.dtype}, expected floats')
        return to_parameters(value.astype(np.float32), kind, shapes)

    def layers_of(self, tensor: Tensor, shapes: list[tuple[int, ...]], num_layers: int) -> list[np.ndarray]:
        """Converts a tensor of every layer to stacked parameters. A layer without it gets the values of a new norm."""
        of_layers = [self.pop(tensor.name_in(layer), tensor.kind, shapes) for layer in tensor.layers(num_layers)]
        if not tensor.first_layer:
            of_layers.insert(0, [_new_norm(tensor.path, shape) for shape in shapes])
        return [np.stack(values) for values in zip(*of_layers, strict=True)]

    def check_complete(self, model: config.Model, file: str) -> None:
        """Raises BadInput if a tensor was missing or misshapen, or is left over."""
        problems = self.problems + [f'{name}: not a tensor of this model' for name in sorted(self.tensors)]
        if not problems:
            return
        found = '\n    '.join(['these tensors do not fit:', *problems])
        sizes = f'{model.num_layers} layers, hidden size {model.hidden_size}'
        expected = f'the tensors of a {model.family} model of {sizes}'
        fix = 'use the config.json that belongs to these weights'
        if self.tensors:
            fix += '; save a model with other heads as transformers.AutoModel, which writes the encoder alone'
        raise BadInput(file, found, expected, fix)


def _with_current_names(
    tensors: dict[str, np.ndarray], hub: HubFamily, model: config.Model
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns (tensors by the names of the table, without buffers and copies; problems with their names)."""
    renamed, problems = {}, []
    for name, value in tensors.items():
        current = hub.current_name(name)
        if current in renamed:
            problems.append(f'{name}: present under an old name and a new one')
        elif current not in hub.buffers:
            renamed[current] = value
    for copy, original in hub.copies(model).items():
        value = renamed.pop(copy, None)
        if value is not None and not np.array_equal(renamed.setdefault(original, value), value):
            problems.append(f'{copy}: differs from {original}, to which it is tied in this model')
    return renamed, problems


def _initial(tensor: Tensor, shape: tuple[int, ...], stddev: float, vocab_size: int, seed: int) -> np.ndarray:
    """Returns a parameter of a new head."""
    is_table = tensor.kind == 'vocab' and len(shape) == 2
    if not is_table and not tensor.path.endswith('/kernel'):
        return _new_norm(tensor.path, shape)
    values = np.array(truncated_normal(stddev)(jax.random.key(seed), shape))
    if is_table:
        values[vocab_size:] = 0
    return values


def _new_norm(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the scale or the bias of a new norm."""
    return np.full(shape, 1.0 if path.endswith('/scale') else 0.0, np.float32)


def _flat(params: nnx.State, convert: Callable[[Any], Any] = np.asarray) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(params, is_leaf=is_variable)
    return {_joined(path): convert(variable.get_value()) for path, variable in leaves}


def _joined(path: tuple) -> str:
    return '/'.join(str(entry.key) for entry in path)
