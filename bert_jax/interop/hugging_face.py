"""Models as Hugging Face directories: one table of tensor names, used in both directions.

`N` layers, `D` hidden, `V` vocabulary.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.model.bert import BertForPreTraining, padded_vocab_size
from bert_jax.model.layers import truncated_normal


class Tensor(NamedTuple):
    """One row of the table: our path, Hugging Face's name ('#' stands for the layer), and how ours becomes theirs."""

    path: str
    name: str
    kind: str = 'same'  # 'transposed': theirs is [out, in]; 'vocab': first dim is trimmed to the vocabulary


def _dense(path: str, name: str) -> list[Tensor]:
    return [Tensor(f'{path}/kernel', f'{name}.weight', 'transposed'), Tensor(f'{path}/bias', f'{name}.bias')]


def _norm(path: str, name: str) -> list[Tensor]:
    return [Tensor(f'{path}/scale', f'{name}.weight'), Tensor(f'{path}/bias', f'{name}.bias')]


_LAYER, _THEIR_LAYER = 'bert/encoder/layers', 'bert.encoder.layer.#'
TABLE: list[Tensor] = [
    Tensor('bert/embeddings/word', 'bert.embeddings.word_embeddings.weight', 'vocab'),
    Tensor('bert/embeddings/position', 'bert.embeddings.position_embeddings.weight'),
    Tensor('bert/embeddings/token_type', 'bert.embeddings.token_type_embeddings.weight'),
    *_norm('bert/embeddings/norm', 'bert.embeddings.LayerNorm'),
    *_dense(f'{_LAYER}/attention/query', f'{_THEIR_LAYER}.attention.self.query'),
    *_dense(f'{_LAYER}/attention/key', f'{_THEIR_LAYER}.attention.self.key'),
    *_dense(f'{_LAYER}/attention/value', f'{_THEIR_LAYER}.attention.self.value'),
    *_dense(f'{_LAYER}/attention/output', f'{_THEIR_LAYER}.attention.output.dense'),
    *_norm(f'{_LAYER}/attention_norm', f'{_THEIR_LAYER}.attention.output.LayerNorm'),
    *_dense(f'{_LAYER}/intermediate', f'{_THEIR_LAYER}.intermediate.dense'),
    *_dense(f'{_LAYER}/output', f'{_THEIR_LAYER}.output.dense'),
    *_norm(f'{_LAYER}/output_norm', f'{_THEIR_LAYER}.output.LayerNorm'),
    *_dense('bert/pooler', 'bert.pooler.dense'),
    *_dense('mlm_transform', 'cls.predictions.transform.dense'),
    *_norm('mlm_norm', 'cls.predictions.transform.LayerNorm'),
    Tensor('mlm_bias', 'cls.predictions.bias', 'vocab'),
    *_dense('nsp', 'cls.seq_relationship'),
]


def to_tensors(params: nnx.State, model: config.Model, vocab_size: int) -> dict[str, np.ndarray]:
    """Hugging Face's name -> tensor, float32, the vocabulary unpadded.

    Raises:
      ValueError: for a parameter that the table does not know.
    """
    ours = _flat(params)
    if unknown := ours.keys() - {tensor.path for tensor in TABLE}:
        raise ValueError(f'parameters without a Hugging Face name: {sorted(unknown)}')
    found = {}
    for tensor in TABLE:
        value = ours[tensor.path]
        if '#' in tensor.name:
            for layer in range(model.num_layers):
                found[tensor.name.replace('#', str(layer))] = _theirs(value[layer], tensor.kind, vocab_size)
        else:
            found[tensor.name] = _theirs(value, tensor.kind, vocab_size)
    return found


def from_tensors(tensors: dict[str, np.ndarray], model: config.Model, vocab_size: int, file: str) -> nnx.State:
    """The parameters of `BertForPreTraining` from Hugging Face's tensors.

    Raises:
      BadInput: listing every tensor that is missing or misshapen.
    """
    shapes = nnx.state(nnx.eval_shape(lambda: BertForPreTraining(model, vocab_size, nnx.Rngs(0))), nnx.Param)
    expected, problems, ours = _flat(shapes, convert=lambda value: value.shape), [], {}

    heads = ARCHITECTURES['BertForMaskedLM']
    absent = tuple(head for head in heads if not any(name.startswith(head) for name in tensors))

    def fetch(name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        theirs = (vocab_size, *shape[1:]) if kind == 'vocab' else shape[::-1] if kind == 'transposed' else shape
        if name not in tensors and name.startswith(absent):  # left out by `write_model`, and drawn anew
            draw = truncated_normal(model.initializer_range) if kind == 'transposed' else jax.nn.initializers.zeros
            return np.asarray(draw(jax.random.key(0), shape))
        if name not in tensors:
            problems.append(f'{name}: missing')
        elif tensors[name].shape != theirs:
            problems.append(f'{name}: shape {list(tensors[name].shape)}, expected {list(theirs)}')
        else:
            return _ours(tensors[name].astype(np.float32), kind)
        return np.zeros(shape, np.float32)

    for tensor in TABLE:
        shape = expected[tensor.path]
        if '#' in tensor.name:
            layers = [fetch(tensor.name.replace('#', str(n)), tensor.kind, shape[1:]) for n in range(model.num_layers)]
            ours[tensor.path] = np.stack(layers)
        else:
            ours[tensor.path] = fetch(tensor.name, tensor.kind, shape)
    if problems:
        raise BadInput(file, '; '.join(problems), 'the tensors of a BertForPreTraining')
    return jax.tree.map_with_path(
        lambda path, variable: variable.replace(jax.numpy.asarray(ours[_joined(path)])),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )


def _theirs(value: np.ndarray, kind: str, vocab_size: int) -> np.ndarray:
    value = value[:vocab_size] if kind == 'vocab' else value.T if kind == 'transposed' else value
    return np.ascontiguousarray(value)


def _ours(value: np.ndarray, kind: str) -> np.ndarray:
    if kind == 'transposed':
        return value.T
    if kind == 'vocab':
        rows = padded_vocab_size(value.shape[0]) - value.shape[0]
        return np.pad(value, [(0, rows)] + [(0, 0)] * (value.ndim - 1))
    return value


def _flat(params: nnx.State, convert: Callable[[Any], Any] = np.asarray) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return {_joined(path): convert(variable.get_value()) for path, variable in leaves}


def _joined(path: tuple) -> str:
    return '/'.join(str(entry.key) for entry in path)


def model_json(model: config.Model, vocab_size: int, pad_id: int) -> dict[str, object]:
    """The config.json that `transformers` reads."""
    return {
        'architectures': ['BertForPreTraining'],
        'model_type': 'bert',
        'vocab_size': vocab_size,
        'hidden_size': model.hidden_size,
        'num_hidden_layers': model.num_layers,
        'num_attention_heads': model.num_heads,
        'intermediate_size': model.intermediate_size,
        'hidden_act': 'gelu',
        'hidden_dropout_prob': model.dropout_rate,
        'attention_probs_dropout_prob': model.attention_dropout_rate,
        'max_position_embeddings': model.max_positions,
        'type_vocab_size': 2,
        'initializer_range': model.initializer_range,
        'layer_norm_eps': model.layer_norm_eps,
        'pad_token_id': pad_id,
        'tie_word_embeddings': True,
        'torch_dtype': 'float32',
    }


_REQUIRED_KEYS = {
    'vocab_size': '',
    'hidden_size': 'hidden_size',
    'num_hidden_layers': 'num_layers',
    'num_attention_heads': 'num_heads',
    'intermediate_size': 'intermediate_size',
    'max_position_embeddings': 'max_positions',
}
_OPTIONAL_KEYS = {
    'hidden_dropout_prob': 'dropout_rate',
    'attention_probs_dropout_prob': 'attention_dropout_rate',
    'initializer_range': 'initializer_range',
    'layer_norm_eps': 'layer_norm_eps',
}


def read_model_json(directory: Path) -> tuple[config.Model, int]:
    """(model, vocabulary size) of a Hugging Face directory.

    Raises:
      BadInput: when config.json is missing, broken, or not of a BERT that this model can be.
    """
    path = directory / 'config.json'
    if not path.is_file():
        raise BadInput(str(path), 'does not exist', 'a workdir of train, an export, or a Hugging Face BERT directory')
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(str(path), f'is not JSON ({error})', 'the config.json of a BERT') from error
    fixed = {'model_type': 'bert', 'hidden_act': 'gelu', 'type_vocab_size': 2}
    for key, expected in fixed.items():
        if content.get(key, expected) != expected or (key == 'model_type' and key not in content):
            raise BadInput(str(path), f'{key} is {content.get(key)!r}', repr(expected))
    for key in _REQUIRED_KEYS:
        if type(content.get(key)) is not int or content[key] < 1:
            raise BadInput(str(path), f'{key} is {content.get(key)!r}', 'a number of at least 1')
    names = {key: name for key, name in (_REQUIRED_KEYS | _OPTIONAL_KEYS).items() if name and key in content}
    values = {name: content[key] for key, name in names.items()}
    sections = {'model': values, 'data': {'sequence_length': min(content['max_position_embeddings'], 128)}}
    return config.resolve(sections).model, content['vocab_size']


# What each class of `transformers` has no tensors for.
ARCHITECTURES = {'BertForPreTraining': (), 'BertForMaskedLM': ('bert.pooler.', 'cls.seq_relationship.')}


def write_model(
    directory: Path,
    params: nnx.State,
    model: config.Model,
    vocab_size: int,
    pad_id: int,
    architecture: str = 'BertForPreTraining',
) -> None:
    """config.json and model.safetensors, with the tensors that `architecture` (a key of `ARCHITECTURES`) has."""
    content = model_json(model, vocab_size, pad_id) | {'architectures': [architecture]}
    (directory / 'config.json').write_text(json.dumps(content, indent=2) + '\n')
    tensors = to_tensors(params, model, vocab_size)
    left_out = ARCHITECTURES[architecture]
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(left_out)} if left_out else tensors
    save_file(kept, directory / 'model.safetensors', metadata={'format': 'pt'})


def read_model(directory: Path) -> tuple[nnx.State, config.Model, int]:
    """(parameters, model, vocabulary size) of a Hugging Face BertForPreTraining directory.

    Raises:
      BadInput: naming the file, and the tensors that are missing or misshapen.
    """
    model, vocab_size = read_model_json(directory)
    model = dataclasses.replace(model, dtype='float32')
    path = directory / 'model.safetensors'
    if not path.is_file():
        raise BadInput(str(path), 'does not exist', 'weights as safetensors')
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadInput(str(path), f'cannot be read ({error})', 'a whole safetensors file') from error
    return from_tensors(tensors, model, vocab_size, str(path)), model, vocab_size
