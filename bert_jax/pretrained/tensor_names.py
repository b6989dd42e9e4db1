"""The names of BERT's tensors in `transformers`: one table, used in both directions.

`N` layers, `D` hidden, `V` vocabulary.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.model.family import Build, build_model, check_size
from bert_jax.model.layers import truncated_normal
from bert_jax.model.vocabulary import padded_vocab_size


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


def _task_table(head: str, *, has_pooler: bool) -> list[Tensor]:
    encoder = [row for row in TABLE if row.path.startswith('bert/') and (has_pooler or 'pooler' not in row.path)]
    return encoder + _dense('classifier', head)


TASK_TABLES = {
    'BertForSequenceClassification': _task_table('classifier', has_pooler=True),
    'BertForTokenClassification': _task_table('classifier', has_pooler=False),
    'BertForQuestionAnswering': _task_table('qa_outputs', has_pooler=False),
}


def to_tensors(
    params: nnx.State,
    model: config.Model,
    vocab_size: int,
    table: list[Tensor] = TABLE,
    without: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Hugging Face's name -> tensor, float32, the vocabulary unpadded.

    Args: without, the names of the heads to leave out.

    Raises:
      ValueError: for a parameter that the table does not know.
    """
    ours, left_out = _flat(params), _paths_of(without)
    if unknown := ours.keys() - {tensor.path for tensor in table}:
        raise ValueError(f'parameters without a Hugging Face name: {sorted(unknown)}')
    found = {}
    for tensor in table:
        value = ours[tensor.path]
        if tensor.path.startswith(left_out):
            continue
        if '#' in tensor.name:
            for layer in range(model.num_layers):
                found[tensor.name.replace('#', str(layer))] = _theirs(value[layer], tensor.kind, vocab_size)
        else:
            found[tensor.name] = _theirs(value, tensor.kind, vocab_size)
    return found


# What a file may do without: these are initialized instead, when every tensor of one is absent.
POOLER, MLM_HEAD, NSP_HEAD = 'pooler', 'masked-LM head', 'next-sentence head'
HEADS = {
    POOLER: ('bert/pooler/',),
    MLM_HEAD: ('mlm_transform/', 'mlm_norm/', 'mlm_bias'),
    NSP_HEAD: ('nsp/',),
}
WORD, _MLM_BIAS = 'bert.embeddings.word_embeddings.weight', 'cls.predictions.bias'
_DECODER = {'cls.predictions.decoder.weight': WORD, 'cls.predictions.decoder.bias': _MLM_BIAS}  # tied copies
_BUFFERS = {'bert.embeddings.position_ids', 'bert.embeddings.token_type_ids'}  # no parameters


def from_tensors(
    tensors: dict[str, np.ndarray],
    model: config.Model,
    vocab_size: int,
    file: str,
    num_tokens: int | None = None,
    build: Build = build_model,
    table: list[Tensor] = TABLE,
) -> nnx.State:
    """The parameters of a model from Hugging Face's tensors, whatever float type they have.

    Names may lack the `bert.` of a bare encoder and may be those of old files (`gamma`, `beta`, decoder copies, id
    buffers). A pooler or a head that is absent altogether (`absent_heads`) is initialized from the original's
    distribution with a fixed seed.

    Args:
      vocab_size: rows of the vocabulary in the tensors.  num_tokens: how many of them to keep; all, without it.
      build: makes the model.  table: the names of its tensors.

    Raises:
      BadInput: listing every tensor that is missing, misshapen or unknown; or for a model far larger than the tensors.
    """
    num_tokens = vocab_size if num_tokens is None else num_tokens
    num_elements = sum(value.size for value in tensors.values())
    check_size(model, vocab_size, num_elements, str(Path(file).parent), file)
    shapes = nnx.state(nnx.eval_shape(lambda: build(model, num_tokens, nnx.Rngs(0))), nnx.Param)
    expected, ours = _flat(shapes, convert=lambda value: value.shape), {}
    found = _Found(*_todays_names(tensors), vocab_size, num_tokens)
    initialized = _paths_of(absent_heads(found.tensors))
    for index, tensor in enumerate(table):
        shape = expected[tensor.path]
        if tensor.path.startswith(initialized):
            ours[tensor.path] = _initial(tensor.path, shape, model.initializer_range, jax.random.key(index))
        elif '#' in tensor.name:
            names = [tensor.name.replace('#', str(layer)) for layer in range(model.num_layers)]
            ours[tensor.path] = np.stack([found.take(name, tensor.kind, shape[1:]) for name in names])
        else:
            ours[tensor.path] = found.take(tensor.name, tensor.kind, shape)
    found.check_complete(model, file)
    return jax.tree.map_with_path(
        lambda path, variable: variable.replace(jax.numpy.asarray(ours[_joined(path)])),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )


@dataclasses.dataclass
class _Found:
    """Tensors that were found under Hugging Face's names, those not yet taken; and what is wrong with them so far."""

    tensors: dict[str, np.ndarray]
    problems: list[str]
    vocab_size: int
    num_tokens: int

    def take(self, name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor as a parameter of `shape`, float32; zeros where it does not fit, which is noted as a problem."""
        theirs = (self.vocab_size, *shape[1:]) if kind == 'vocab' else shape[::-1] if kind == 'transposed' else shape
        if name not in self.tensors:
            self.problems.append(f'{name}: missing')
            return np.zeros(shape, np.float32)
        value = self.tensors.pop(name)
        if value.shape != theirs:
            self.problems.append(f'{name}: shape {list(value.shape)}, expected {list(theirs)}')
            return np.zeros(shape, np.float32)
        if not jax.numpy.issubdtype(value.dtype, np.floating):
            self.problems.append(f'{name}: holds {value.dtype}, expected floats')
        value = value[: self.num_tokens] if kind == 'vocab' else value
        return _ours(value.astype(np.float32), kind)

    def check_complete(self, model: config.Model, file: str) -> None:
        """Raises BadInput when a tensor was missing or misshapen, or is left over."""
        problems = self.problems + [f'{name}: not a tensor of this model' for name in sorted(self.tensors)]
        if not problems:
            return
        listed = '\n    '.join(['these tensors do not fit:', *problems])
        expected = f'the tensors of a BERT of {model.num_layers} layers, hidden size {model.hidden_size}'
        fix = 'the config.json of these very weights'
        if self.tensors:
            fix += '; of a model with other heads the encoder alone: transformers.AutoModel, save_pretrained'
        raise BadInput(file, listed, expected, fix)


def _todays_names(tensors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors by the names of `TABLE`, without buffers and decoder copies; and what is wrong among the names."""
    found, problems = {}, []
    for name, value in tensors.items():
        today = _todays_name(name)
        if today in found:
            problems.append(f'{name}: there twice, under an old name and a new one')
        elif today not in _BUFFERS:
            found[today] = value
    for copy, original in _DECODER.items():
        value = found.pop(copy, None)
        if value is not None and not np.array_equal(found.setdefault(original, value), value):
            problems.append(f'{copy}: differs from {original}, to which it is tied in this model')
    return found, problems


def _todays_name(name: str) -> str:
    """The name of `TABLE` for one that may be an old file's, or a bare encoder's."""
    today = re.sub(r'LayerNorm\.gamma$', 'LayerNorm.weight', re.sub(r'LayerNorm\.beta$', 'LayerNorm.bias', name))
    return f'bert.{today}' if today.startswith(('embeddings.', 'encoder.', 'pooler.')) else today


_NAMES = {tensor.name: tensor.path for tensor in TABLE}


def absent_heads(names: Iterable[str]) -> tuple[str, ...]:
    """The heads of which a file has no tensor, by the names of its tensors."""
    paths = [_NAMES.get(_todays_name(name), '') for name in names]
    return tuple(head for head, ours in HEADS.items() if not any(path.startswith(ours) for path in paths))


def _paths_of(heads: Collection[str]) -> tuple[str, ...]:
    return tuple(path for head in heads for path in HEADS[head])


def _initial(path: str, shape: tuple[int, ...], stddev: float, key: jax.Array) -> np.ndarray:
    """A head's parameter as `BertForPreTraining` initialises it."""
    if path.endswith('/kernel'):
        return np.asarray(truncated_normal(stddev)(key, shape))
    return np.full(shape, 1.0 if path.endswith('/scale') else 0.0, np.float32)


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
