"""Models as Hugging Face directories: config.json, weights and tokenizer, read and written."""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.json_files import read_given_json
from bert_jax.model.family import Build, build_model
from bert_jax.pretrained.safetensors_files import read_tensors
from bert_jax.pretrained.tensor_names import TABLE, TASK_TABLES, WORD, Tensor, from_tensors, to_tensors
from bert_jax.text.tokenizer import Tokenizer, load_tokenizer


def model_json(model: config.Bert, vocab_size: int, pad_id: int) -> dict[str, object]:
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
    content = read_given_json(path, 'a workdir of train, an export, or a Hugging Face BERT directory')
    if 'model_type' not in content:
        raise BadInput(str(path), 'has no model_type', "the config.json of a model of type 'bert'")
    return parse_model_json(content, path)


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


def write_model(
    directory: Path,
    params: nnx.State,
    model: Any,
    vocab_size: int,
    pad_id: int,
    architecture: str = 'BertForPreTraining',
    more: dict[str, object] | None = None,
    without: Collection[str] = (),
) -> None:
    """config.json and model.safetensors.

    Args:
      architecture: the class of `transformers` to name; a key of `TASK_TABLES` for a model with a task's head.
      more: what config.json says besides.  without: names of the heads (`tensor_names.HEADS`) to leave out.
    """
    content = model_json(model, vocab_size, pad_id) | {'architectures': [architecture]} | (more or {})
    (directory / 'config.json').write_text(json.dumps(content, indent=2) + '\n')
    tensors = to_tensors(params, model, vocab_size, TASK_TABLES.get(architecture, TABLE), without)
    save_file(tensors, directory / 'model.safetensors', metadata={'format': 'pt'})


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory.

    Raises:
      BadInput: when there is none, or it cannot be used.
    """
    return load_tokenizer(directory)


def read_model(directory: Path, num_tokens: int | None = None) -> tuple[nnx.State, config.Model, int]:
    """(parameters, model, vocabulary size) of a Hugging Face BERT directory; see `from_tensors`.

    Args:
      num_tokens: of the tokenizer; rows of a padded vocabulary beyond it are dropped.

    Raises:
      BadInput: naming the file, and the tensors that are missing, misshapen or unknown.
    """
    model, vocab_size = read_model_json(directory)
    file, tensors = read_tensors(directory)
    return assemble(tensors, model, vocab_size, num_tokens, file)


def assemble(
    tensors: dict[str, np.ndarray],
    model: config.Model,
    vocab_size: int,
    num_tokens: int | None,
    file: Path,
    build: Build = build_model,
    table: list[Tensor] = TABLE,
) -> tuple[nnx.State, config.Model, int]:
    """What `read_model` returns, from tensors of `file` under Hugging Face's names.

    Args: build and table, as of `from_tensors`.

    Raises:
      BadInput: as `read_model`; and when the vocabulary has more tokens than rows.
    """
    num_tokens = vocab_size if num_tokens is None else num_tokens
    if num_tokens > vocab_size:
        found = f'the tokenizer has {num_tokens} tokens, the embedding {WORD} {vocab_size} rows'
        raise BadInput(str(file), found, 'a row for every token', 'the tokenizer and the weights of one model')
    model = dataclasses.replace(model, dtype='float32')
    params = from_tensors(tensors, model, vocab_size, str(file), num_tokens, build=build, table=table)
    return params, model, num_tokens
