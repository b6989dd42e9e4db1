"""Models as Hugging Face directories: one table of tensor names, used in both directions.

`N` layers, `D` hidden, `V` vocabulary.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from bert_jax import config
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.model.bert import BertForPreTraining, Build, padded_vocab_size
from bert_jax.model.layers import truncated_normal
from bert_jax.pretrained.safetensors_files import read_tensors
from bert_jax.text.tokenizer import Tokenizer, load_tokenizer


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
    params: nnx.State, model: config.Model, vocab_size: int, table: list[Tensor] = TABLE
) -> dict[str, np.ndarray]:
    """Hugging Face's name -> tensor, float32, the vocabulary unpadded.

    Raises:
      ValueError: for a parameter that the table does not know.
    """
    ours = _flat(params)
    if unknown := ours.keys() - {tensor.path for tensor in table}:
        raise ValueError(f'parameters without a Hugging Face name: {sorted(unknown)}')
    found = {}
    for tensor in table:
        value = ours[tensor.path]
        if '#' in tensor.name:
            for layer in range(model.num_layers):
                found[tensor.name.replace('#', str(layer))] = _theirs(value[layer], tensor.kind, vocab_size)
        else:
            found[tensor.name] = _theirs(value, tensor.kind, vocab_size)
    return found


# What a file may do without: these are initialised instead, when every tensor of one is absent.
_HEADS = {
    'pooler': ('bert/pooler/',),
    'masked-LM head': ('mlm_transform/', 'mlm_norm/', 'mlm_bias'),
    'next-sentence head': ('nsp/',),
}
_WORD, _MLM_BIAS = 'bert.embeddings.word_embeddings.weight', 'cls.predictions.bias'
_DECODER = {'cls.predictions.decoder.weight': _WORD, 'cls.predictions.decoder.bias': _MLM_BIAS}  # tied copies
_BUFFERS = {'bert.embeddings.position_ids', 'bert.embeddings.token_type_ids'}  # no parameters


def from_tensors(
    tensors: dict[str, np.ndarray],
    model: config.Model,
    vocab_size: int,
    file: str,
    num_tokens: int | None = None,
    build: Build = BertForPreTraining,
    table: list[Tensor] = TABLE,
) -> nnx.State:
    """The parameters of a model from Hugging Face's tensors, whatever float type they have.

    Names may lack the `bert.` of a bare encoder and may be those of old files (`gamma`, `beta`, decoder copies, id
    buffers). A pooler or a head that is absent altogether is drawn from the original's distribution with a fixed seed,
    and named on standard error.

    Args:
      vocab_size: rows of the vocabulary in the tensors.  num_tokens: how many of them to keep; all, without it.
      build: makes the model.  table: the names of its tensors.

    Raises:
      BadInput: listing every tensor that is missing, misshapen or unknown.
    """
    num_tokens = vocab_size if num_tokens is None else num_tokens
    shapes = nnx.state(nnx.eval_shape(lambda: build(model, num_tokens, nnx.Rngs(0))), nnx.Param)
    expected, ours = _flat(shapes, convert=lambda value: value.shape), {}
    tensors, problems = _todays_names(tensors)
    wanted = {head: paths for head, paths in _HEADS.items() if any(row.path.startswith(paths) for row in table)}
    absent = [head for head, paths in wanted.items() if not any(_is_in(paths, name) for name in tensors)]
    drawn = tuple(path for head in absent for path in _HEADS[head])

    def fetch(name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        theirs = (vocab_size, *shape[1:]) if kind == 'vocab' else shape[::-1] if kind == 'transposed' else shape
        if name not in tensors:
            problems.append(f'{name}: missing')
            return np.zeros(shape, np.float32)
        value = tensors.pop(name)
        if value.shape != theirs:
            problems.append(f'{name}: shape {list(value.shape)}, expected {list(theirs)}')
            return np.zeros(shape, np.float32)
        if not jax.numpy.issubdtype(value.dtype, np.floating):
            problems.append(f'{name}: holds {value.dtype}, expected floats')
        value = value[:num_tokens] if kind == 'vocab' else value
        return _ours(value.astype(np.float32), kind)

    for number, tensor in enumerate(table):
        shape = expected[tensor.path]
        if tensor.path.startswith(drawn):
            ours[tensor.path] = _initial(tensor.path, shape, model.initializer_range, jax.random.key(number))
        elif '#' in tensor.name:
            layers = [fetch(tensor.name.replace('#', str(n)), tensor.kind, shape[1:]) for n in range(model.num_layers)]
            ours[tensor.path] = np.stack(layers)
        else:
            ours[tensor.path] = fetch(tensor.name, tensor.kind, shape)
    if problems := problems + [f'{name}: not a tensor of this model' for name in sorted(tensors)]:
        listed = '\n    '.join(['these tensors do not fit:', *problems])
        expectation = f'the tensors of a BERT of {model.num_layers} layers, hidden size {model.hidden_size}'
        mend = 'the config.json of these very weights'
        if tensors:
            mend += '; of a model with other heads the encoder alone: transformers.AutoModel, save_pretrained'
        raise BadInput(file, listed, expectation, mend)
    if absent:
        say(f'{file}: no {", no ".join(absent)} in it; initialised as the original is')
    return jax.tree.map_with_path(
        lambda path, variable: variable.replace(jax.numpy.asarray(ours[_joined(path)])),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )


def _todays_names(tensors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors by the names of `TABLE`, without buffers and decoder copies; and what is wrong among the names."""
    found, problems = {}, []
    for name, value in tensors.items():
        today = re.sub(r'LayerNorm\.gamma$', 'LayerNorm.weight', re.sub(r'LayerNorm\.beta$', 'LayerNorm.bias', name))
        if today.startswith(('embeddings.', 'encoder.', 'pooler.')):
            today = f'bert.{today}'
        if today in found:
            problems.append(f'{name}: there twice, under an old name and a new one')
        elif today not in _BUFFERS:
            found[today] = value
    for copy, original in _DECODER.items():
        value = found.pop(copy, None)
        if value is not None and not np.array_equal(found.setdefault(original, value), value):
            problems.append(f'{copy}: differs from {original}, to which it is tied in this model')
    return found, problems


_NAMES = {tensor.name: tensor.path for tensor in TABLE}


def _is_in(paths: tuple[str, ...], name: str) -> bool:
    return _NAMES.get(name, '').startswith(paths)


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


_FIXED_KEYS = {  # what this model is; absent means this very value, except the type
    'model_type': 'bert',
    'hidden_act': 'gelu',
    'type_vocab_size': 2,
    'position_embedding_type': 'absolute',
    'is_decoder': False,
    'tie_word_embeddings': True,
}


def read_model_json(directory: Path) -> tuple[config.Model, int]:
    """(model, vocabulary size) of a Hugging Face directory.

    Raises:
      BadInput: when config.json is missing, broken, or not of a BERT that this model can be.
    """
    path = directory / 'config.json'
    content = read_json(path, 'a workdir of train, an export, or a Hugging Face BERT directory')
    if 'model_type' not in content:
        raise BadInput(str(path), 'has no model_type', "the config.json of a model of type 'bert'")
    return parse_model_json(content, path)


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      BadInput: when it is not there or is none.
    """
    if not path.is_file():
        raise BadInput(str(path), 'does not exist', expected)
    try:
        content = json.loads(path.read_text('utf-8'))
    except ValueError as error:
        raise BadInput(str(path), f'is not JSON ({error})', expected) from error
    if not isinstance(content, dict):
        raise BadInput(str(path), 'is not a JSON object', expected)
    return content


def parse_model_json(content: dict[str, Any], path: Path) -> tuple[config.Model, int]:
    """(model, vocabulary size) from the keys of a BERT's config.json; `path` names it in errors.

    Raises:
      BadInput: for a missing key, or a BERT that this model cannot be.
    """
    for key, expected in _FIXED_KEYS.items():
        if content.get(key, expected) != expected:
            raise BadInput(str(path), f'{key} is {content[key]!r}', repr(expected), 'this model cannot be used here')
    for key in _REQUIRED_KEYS:
        if type(content.get(key)) is not int or content[key] < 1:
            raise BadInput(str(path), f'{key} is {content.get(key)!r}', 'a number of at least 1')
    names = {key: name for key, name in (_REQUIRED_KEYS | _OPTIONAL_KEYS).items() if name and key in content}
    values = {name: content[key] for key, name in names.items()}
    sections = {'model': values, 'data': {'sequence_length': min(content['max_position_embeddings'], 128)}}
    try:
        return config.resolve(sections).model, content['vocab_size']
    except BadInput as error:
        raise BadInput(str(path), f'{error.where.removeprefix("config.")} {error.found}', error.expected) from error


# What each class of `transformers` has no tensors for.
ARCHITECTURES = {'BertForPreTraining': (), 'BertForMaskedLM': ('bert.pooler.', 'cls.seq_relationship.')}


def write_model(
    directory: Path,
    params: nnx.State,
    model: config.Model,
    vocab_size: int,
    pad_id: int,
    architecture: str = 'BertForPreTraining',
    more: dict[str, object] | None = None,
) -> None:
    """config.json and model.safetensors, with the tensors that `architecture` has.

    Args: architecture, a key of `ARCHITECTURES` or `TASK_TABLES`; more, what config.json says besides.
    """
    content = model_json(model, vocab_size, pad_id) | {'architectures': [architecture]} | (more or {})
    (directory / 'config.json').write_text(json.dumps(content, indent=2) + '\n')
    tensors = to_tensors(params, model, vocab_size, TASK_TABLES.get(architecture, TABLE))
    left_out = ARCHITECTURES.get(architecture, ())
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(left_out)} if left_out else tensors
    save_file(kept, directory / 'model.safetensors', metadata={'format': 'pt'})


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory, with `transformers`' defaults.

    One that consists of a vocab.txt alone (the oldest directories, and Google's) does not say whether it is cased: it
    is when a token has a capital letter.

    Raises:
      BadInput: when there is none, or it cannot be used.
    """
    lowercase, vocabulary = True, directory / 'vocab.txt'
    says = any((directory / name).is_file() for name in ('tokenizer.json', 'tokenizer_config.json'))
    if not says and vocabulary.is_file():
        tokens = vocabulary.read_text('utf-8', errors='replace').splitlines()
        lowercase = not any(re.search('[A-Z]', token) for token in tokens if not token.startswith('['))
        kind = 'uncased' if lowercase else 'cased'
        say(f'{vocabulary}: {kind}, by its tokens (no tokenizer_config.json says)')
    return load_tokenizer(directory, lowercase=lowercase, strip_accents=None)


def read_model(directory: Path, num_tokens: int | None = None) -> tuple[nnx.State, config.Model, int]:
    """(parameters, model, vocabulary size) of a Hugging Face BERT directory; see `from_tensors`.

    Args:
      num_tokens: of the tokenizer; rows of a padded vocabulary beyond it are dropped, and that is said.

    Raises:
      BadInput: naming the file, and the tensors that are missing, misshapen or unknown.
    """
    model, vocab_size = read_model_json(directory)
    file, tensors = read_tensors(directory)
    return assemble(tensors, model, vocab_size, num_tokens, file)


def assemble(
    tensors: dict[str, np.ndarray], model: config.Model, vocab_size: int, num_tokens: int | None, file: Path
) -> tuple[nnx.State, config.Model, int]:
    """What `read_model` returns, from tensors of `file` under Hugging Face's names.

    Raises:
      BadInput: as `read_model`; and when the vocabulary has more tokens than rows.
    """
    num_tokens = vocab_size if num_tokens is None else num_tokens
    if num_tokens > vocab_size:
        found = f'the tokenizer has {num_tokens} tokens, the embedding {_WORD} {vocab_size} rows'
        raise BadInput(str(file), found, 'a row for every token', 'the tokenizer and the weights of one model')
    model = dataclasses.replace(model, dtype='float32')
    params = from_tensors(tensors, model, vocab_size, str(file), num_tokens)
    if num_tokens < vocab_size:
        say(f'{file}: {vocab_size - num_tokens} rows beyond the {num_tokens} tokens are dropped')
    return params, model, num_tokens
