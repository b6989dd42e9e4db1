"""The names of BERT's tensors in `transformers`: one table, used in both directions.

`N` layers, `D` hidden, `V` vocabulary.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.model.family import Build, build_model, check_size
from bert_jax.model.layers import truncated_normal
from bert_jax.model.tensors import Tensor, dense, norm, same, shape_of_theirs, to_ours, to_theirs, vocabulary

_LAYER, _THEIR_LAYER = 'bert/encoder/layers', 'bert.encoder.layer.#'
TABLE: list[Tensor] = [
    *vocabulary('bert/embeddings/word', 'bert.embeddings.word_embeddings.weight'),
    *same('bert/embeddings/position', 'bert.embeddings.position_embeddings.weight'),
    *same('bert/embeddings/token_type', 'bert.embeddings.token_type_embeddings.weight'),
    *norm('bert/embeddings/norm', 'bert.embeddings.LayerNorm'),
    *dense(f'{_LAYER}/attention/query', f'{_THEIR_LAYER}.attention.self.query'),
    *dense(f'{_LAYER}/attention/key', f'{_THEIR_LAYER}.attention.self.key'),
    *dense(f'{_LAYER}/attention/value', f'{_THEIR_LAYER}.attention.self.value'),
    *dense(f'{_LAYER}/attention/output', f'{_THEIR_LAYER}.attention.output.dense'),
    *norm(f'{_LAYER}/attention_norm', f'{_THEIR_LAYER}.attention.output.LayerNorm'),
    *dense(f'{_LAYER}/intermediate', f'{_THEIR_LAYER}.intermediate.dense'),
    *dense(f'{_LAYER}/output', f'{_THEIR_LAYER}.output.dense'),
    *norm(f'{_LAYER}/output_norm', f'{_THEIR_LAYER}.output.LayerNorm'),
    *dense('bert/pooler', 'bert.pooler.dense'),
    *dense('mlm_transform', 'cls.predictions.transform.dense'),
    *norm('mlm_norm', 'cls.predictions.transform.LayerNorm'),
    *vocabulary('mlm_bias', 'cls.predictions.bias'),
    *dense('nsp', 'cls.seq_relationship'),
]


def _task_table(head: str, *, has_pooler: bool) -> list[Tensor]:
    encoder = [row for row in TABLE if row.path.startswith('bert/') and (has_pooler or 'pooler' not in row.path)]
    return encoder + dense('classifier', head)


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
    if unknown := ours.keys() - {path for tensor in table for path in tensor.paths}:
        raise ValueError(f'parameters without a Hugging Face name: {sorted(unknown)}')
    found = {}
    for tensor in table:
        values = [ours[path] for path in tensor.paths]
        if tensor.path.startswith(left_out):
            continue
        if tensor.is_per_layer:
            for layer in tensor.layers(model.num_layers):
                found[tensor.name_in(layer)] = to_theirs([value[layer] for value in values], tensor.kind, vocab_size)
        else:
            found[tensor.name] = to_theirs(values, tensor.kind, vocab_size)
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
        shapes_of_row = [expected[path] for path in tensor.paths]
        if tensor.path.startswith(initialized):
            initial = _initial(tensor.path, shapes_of_row[0], model.initializer_range, jax.random.key(index))
            ours[tensor.path] = initial
        elif tensor.is_per_layer:
            in_layer = [shape[1:] for shape in shapes_of_row]
            layers = [found.take(tensor.name_in(layer), tensor.kind, in_layer) for layer in range(model.num_layers)]
            ours |= dict(zip(tensor.paths, map(np.stack, zip(*layers, strict=True)), strict=True))
        else:
            ours |= dict(zip(tensor.paths, found.take(tensor.name, tensor.kind, shapes_of_row), strict=True))
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

    def take(self, name: str, kind: str, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
        """The tensor as parameters of these shapes, float32; notes a problem and gives zeros where it does not fit."""
        theirs = shape_of_theirs(shapes, kind, self.vocab_size)
        nothing = [np.zeros(shape, np.float32) for shape in shapes]
        if name not in self.tensors:
            self.problems.append(f'{name}: missing')
            return nothing
        value = self.tensors.pop(name)
        if value.shape != theirs:
            self.problems.append(f'{name}: shape {list(value.shape)}, expected {list(theirs)}')
            return nothing
        if not jax.numpy.issubdtype(value.dtype, np.floating):
            self.problems.append(f'{name}: holds {value.dtype}, expected floats')
        value = value[: self.num_tokens] if kind == 'vocab' else value
        return to_ours(value.astype(np.float32), kind, shapes)

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


def _flat(params: nnx.State, convert: Callable[[Any], Any] = np.asarray) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return {_joined(path): convert(variable.get_value()) for path, variable in leaves}


def _joined(path: tuple) -> str:
    return '/'.join(str(entry.key) for entry in path)
