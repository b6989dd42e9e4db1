"""Reads and writes models as Hugging Face directories: config.json, weights and tokenizer."""

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.json_files import read_given_json
from bert_jax.pretrained.families import HUB_FAMILIES, TASK_OF_CLASS, hub_of
from bert_jax.pretrained.hub import SIZES
from bert_jax.pretrained.tensor_names import to_tensors


class Vocabulary(Protocol):
    """What config.json holds of a tokenizer: how many tokens it has, and the ids of special tokens."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def cls_id(self) -> int: ...
    @property
    def sep_id(self) -> int: ...
    @property
    def mask_id(self) -> int: ...


def model_json(model: config.Model, tokenizer: Vocabulary) -> dict[str, object]:
    """Returns the content of config.json, without the class."""
    hub = hub_of(model)
    sizes = {key: getattr(model, field) for key, field in (SIZES | hub.keys.settings).items()}
    return {
        'model_type': hub.name,
        **sizes,
        'vocab_size': model.num_embeddings(tokenizer.vocab_size),
        **hub.keys.constants,
        **hub.keys.write_others(model),
        **{key: getattr(tokenizer, attribute) for key, attribute in hub.keys.tokens.items()},
        'torch_dtype': 'float32',
    }


def read_model_json(directory: Path) -> config.Model:
    """Reads the model section from the config.json of a Hugging Face directory.

    Raises:
      BadInput: if config.json is missing, damaged, or describes a model that no family supports.
    """
    path = directory / 'config.json'
    content = read_given_json(path, 'a workdir of train, an export, or a Hugging Face directory')
    if 'model_type' not in content:
        raise BadInput(str(path), 'has no model_type', f'the config.json of a model of type {_names()}')
    return parse_model_json(content, path)


def parse_model_json(content: dict[str, Any], path: Path) -> config.Model:
    """Reads the model section from the content of config.json; without model_type, it is a BERT.

    Raises:
      BadInput: for a missing key or a value that the family does not support.
    """
    name = content.get('model_type', 'bert')
    hub = HUB_FAMILIES.get(name) if isinstance(name, str) else None
    if hub is None:
        expected = f'one of {_names()}; other architectures cannot be opened'
        raise BadInput(str(path), f'model_type is {name!r}', expected, 'use a model of one of these families')
    for key, expected in (hub.keys.constants | dict(hub.keys.unwritten_constants)).items():
        if content.get(key, expected) != expected:
            raise BadInput(str(path), f'{key} is {content[key]!r}', repr(expected), 'this model is not supported')
    for key in SIZES:
        if type(content.get(key)) is not int or content[key] < 1:
            raise BadInput(str(path), f'{key} is {content.get(key)!r}', 'a number of at least 1')
    fields = {field: content[key] for key, field in (SIZES | hub.keys.settings).items() if key in content}
    fields |= hub.keys.read_others(content, path) | {'family': name}
    data = {'sequence_length': min(content['max_position_embeddings'], 128), 'pairing': 'none'}
    try:
        return config.resolve({'model': fields | {'dtype': 'float32'}, 'data': data}).model
    except BadInput as error:
        raise BadInput(str(path), f'{error.where.removeprefix("config.")} {error.found}', error.expected) from error


def _names() -> str:
    return ', '.join(HUB_FAMILIES)


def write_model(
    directory: Path,
    params: nnx.State,
    model: config.Model,
    tokenizer: Vocabulary,
    architecture: str = '',
    more: dict[str, object] | None = None,
    without: Collection[str] = (),
    dtypes: dict[str, str] | None = None,
) -> None:
    """Writes config.json and model.safetensors.

    Args:
      architecture: the class of `transformers` to name; by default, that of the pretraining heads.
      more: further entries of config.json.
      without: heads to leave out.
      dtypes: of the tensors by name, if not float32; '' for all that have no entry.
    """
    hub, dtypes = hub_of(model), dtypes or {}
    architecture = architecture or hub.pretraining_class(without)
    kind = TASK_OF_CLASS.get(architecture)
    table = hub.task_tensors(model, kind) if kind else None
    content = {'architectures': [architecture], **model_json(model, tokenizer), **(more or {})}
    default = content['torch_dtype'] = dtypes.get('', 'float32')
    (directory / 'config.json').write_text(json.dumps(content, indent=2) + '\n')
    tensors = to_tensors(params, model, tokenizer.vocab_size, table, without)
    stored = {name: value.astype(jnp.dtype(dtypes.get(name, default))) for name, value in tensors.items()}
    save_file(stored, directory / 'model.safetensors', metadata={'format': 'pt'})


def dtypes_of(tensors: dict[str, np.ndarray]) -> dict[str, str]:
    """Returns the dtypes of tensors by name, as of `write_model`: '' for the most frequent, {} if all are float32."""
    of_tensors = {name: str(value.dtype) for name, value in tensors.items()}
    [(most_frequent, _)] = Counter(of_tensors.values()).most_common(1) or [('float32', 0)]
    dtypes = {'': most_frequent} | {name: dtype for name, dtype in of_tensors.items() if dtype != most_frequent}
    return {} if dtypes == {'': 'float32'} else dtypes


def check_rows(model: config.Model, tokenizer: Vocabulary, file: Path) -> None:
    """Checks that the word embeddings of a directory have a row for every token.

    Raises:
      BadInput: if the tokenizer has more tokens.
    """
    if 0 < model.vocab_size < tokenizer.vocab_size:  # 0: as many rows as tokens
        found = f'the tokenizer has {tokenizer.vocab_size} tokens, the word embeddings have {model.vocab_size} rows'
        raise BadInput(str(file), found, 'a row for every token', 'use the tokenizer that belongs to these weights')
