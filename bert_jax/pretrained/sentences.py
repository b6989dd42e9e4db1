"""Reads how a sentence-transformers directory turns a text into one vector, and pools token vectors accordingly.

    modules.json                       the modules in order: Transformer, Pooling and perhaps Normalize
    sentence_bert_config.json          max_seq_length, do_lower_case
    1_Pooling/config.json              pooling_mode; in old versions pooling_mode_cls_token and so on
    config_sentence_transformers.json  prompts, default_prompt_name, similarity_fn_name

`B` texts, `L` positions, `D` hidden, `M` ways of pooling.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.errors import BadInput
from bert_jax.json_files import read_given_json

# Ways of pooling the token vectors of a text -> their keys in the config.json of a Pooling of old versions, which
# concatenate the pooled vectors in this order.
MODES = {
    'cls': 'pooling_mode_cls_token',
    'max': 'pooling_mode_max_tokens',
    'mean': 'pooling_mode_mean_tokens',
    'mean_sqrt_len_tokens': 'pooling_mode_mean_sqrt_len_tokens',
    'weightedmean': 'pooling_mode_weightedmean_tokens',
    'lasttoken': 'pooling_mode_lasttoken',
}

SIMILARITIES = ('cosine', 'dot')
# Names of prompts, in the order in which sentence-transformers looks for them.
_QUERY_PROMPTS = ('query',)
_PASSAGE_PROMPTS = ('document', 'passage', 'corpus')


@dataclasses.dataclass(frozen=True)
class SentenceSettings:
    """How a text becomes one vector; the defaults apply to a directory without `modules.json`.

    Attributes:
      directory: the directory of the encoder.
      max_length: number of tokens to which a text is truncated; None for those that the encoder was trained on.
      lowercase: whether a text is lower-cased before it is tokenized.
      prompt: precedes every text.
      modes: keys of `MODES`; their vectors are concatenated.
      normalize: whether vectors are scaled to length 1.
    """

    directory: str
    max_length: int | None = None
    lowercase: bool = False
    prompt: str = ''
    modes: tuple[str, ...] = ('mean',)
    normalize: bool = False

    def limit(self, trained_length: int, max_positions: int) -> int:
        """Returns the number of tokens to which a text is truncated.

        Args:
          trained_length: the longest texts, in tokens, on which the model was trained.
          max_positions: the most tokens that the model can read.
        """
        return min(self.max_length or trained_length, max_positions)

    def prepare(self, text: str) -> str:
        """Returns the text to tokenize."""
        text = self.prompt + text
        return text.lower() if self.lowercase else text


def read_settings(directory: str) -> SentenceSettings:
    """Reads the settings of a directory; returns the defaults if it has no modules.json, as a workdir for example.

    Raises:
      BadInput: if a file is not JSON, or a module or a way of pooling is not supported.
    """
    path = Path(directory) / 'modules.json'
    if not path.is_file():
        return SentenceSettings(directory)
    modules = _read_modules(path)
    kinds = [kind for kind, _ in modules]
    if kinds not in (['Transformer', 'Pooling'], ['Transformer', 'Pooling', 'Normalize']):
        raise BadInput(
            str(path),
            f'has the modules {", ".join(kinds) or "none"}',
            'Transformer, Pooling and, optionally, Normalize',
            'use the package sentence-transformers for other modules',
        )
    encoder, pooling = (Path(directory) / subdirectory for _, subdirectory in modules[:2])
    settings = SentenceSettings(str(encoder), modes=_read_modes(pooling / 'config.json'), normalize=len(modules) == 3)
    path = encoder / 'sentence_bert_config.json'
    if path.is_file():
        content = read_given_json(path, 'the settings of a Transformer')
        _check_takes_vectors(content, path)
        length = content.get('max_seq_length')
        if length is not None and (type(length) is not int or length < 3):
            raise BadInput(str(path), f'max_seq_length is {length!r}', 'a number of at least 3, or null')
        settings = dataclasses.replace(settings, max_length=length, lowercase=content.get('do_lower_case') is True)
    path = Path(directory) / 'config_sentence_transformers.json'
    if not path.is_file():
        return settings
    return dataclasses.replace(settings, prompt=_read_prompt(path, pooling / 'config.json'))


@dataclasses.dataclass(frozen=True)
class RetrievalSettings:
    """How queries and passages become vectors, and how two vectors are compared.

    Attributes:
      similarity: one of `SIMILARITIES`.
    """

    queries: SentenceSettings
    passages: SentenceSettings
    similarity: str = 'cosine'


def read_retrieval_settings(
    directory: str,
    queries_prompt: str | None = None,
    passages_prompt: str | None = None,
    similarity: str | None = None,
) -> RetrievalSettings:
    """Reads the settings of a directory for queries and passages.

    As in sentence-transformers, the default prompt applies to neither.

    Args:
      queries_prompt: precedes each query; None for the prompt `query` of the directory, if it has one.
      passages_prompt: precedes each passage; None for the prompt `document`, `passage` or `corpus`.
      similarity: None for that of the directory, or else `cosine`.

    Raises:
      BadInput: see `read_settings`; also for another similarity than `SIMILARITIES`.
    """
    settings = read_settings(directory)
    path = Path(directory) / 'config_sentence_transformers.json'
    content: dict[str, Any] = {}
    if (Path(directory) / 'modules.json').is_file() and path.is_file():
        content = read_given_json(path, 'the settings of sentence-transformers')
    prompts: Any = content.get('prompts')
    prompts = prompts if isinstance(prompts, dict) else {}

    def prompt_of(names: tuple[str, ...], given: str | None) -> str:
        found = next((prompts[name] for name in names if isinstance(prompts.get(name), str)), '')
        return found if given is None else given

    if similarity is not None and similarity not in SIMILARITIES:
        raise BadInput(f'--similarity={similarity}', 'is not supported', ' or '.join(SIMILARITIES))
    similarity = similarity or content.get('similarity_fn_name') or 'cosine'
    if similarity not in SIMILARITIES:
        found, expected = f'similarity_fn_name is {similarity!r}', ' or '.join(SIMILARITIES)
        raise BadInput(str(path), found, expected, '--similarity=cosine')
    return RetrievalSettings(
        dataclasses.replace(settings, prompt=prompt_of(_QUERY_PROMPTS, queries_prompt)),
        dataclasses.replace(settings, prompt=prompt_of(_PASSAGE_PROMPTS, passages_prompt)),
        similarity,
    )


def _read_modules(path: Path) -> list[tuple[str, str]]:
    """Returns (last part of its type, its directory) of each module."""
    modules: Any = read_given_json(path, 'the modules of sentence-transformers', list)
    for module in modules:
        if not isinstance(module, dict) or not all(isinstance(module.get(key), str) for key in ('type', 'path')):
            raise BadInput(str(path), 'has a module without a type or a path', 'a list of {idx, name, path, type}')
        if '..' in Path(module['path']).parts or Path(module['path']).is_absolute():
            raise BadInput(str(path), f'names the directory {module["path"]!r}', 'directories inside this one')
    return [(module['type'].rpartition('.')[2], module['path']) for module in modules]


def _check_takes_vectors(content: dict[str, Any], path: Path) -> None:
    """Raises BadInput if a Transformer returns anything but the last hidden state."""
    text = content.get('modality_config') or {'text': {}}
    text = text.get('text') if isinstance(text, dict) else None
    output = text.get('method_output_name', 'last_hidden_state') if isinstance(text, dict) else None
    if output != 'last_hidden_state':
        expected = "text, and the output 'last_hidden_state'"
        raise BadInput(str(path), f'modality_config takes {output!r} of text', expected)


def _read_modes(path: Path) -> tuple[str, ...]:
    content = read_given_json(path, 'the settings of a Pooling')
    mode = content.get('pooling_mode')
    if mode is None:
        keys = {key for key, value in content.items() if key.startswith('pooling_mode_') and value is True}
        modes = tuple(mode for mode, key in MODES.items() if key in keys)
        unknown = sorted(keys - {*MODES.values()})
    else:
        listed = mode if isinstance(mode, list) else [mode]
        modes = tuple(each if isinstance(each, str) else repr(each) for each in listed)
        unknown = [each for each in modes if each not in MODES]
    if unknown or not modes:
        found = f'has the pooling {", ".join(unknown) or "none"}'
        raise BadInput(str(path), found, f'one or more of {", ".join(MODES)}')
    return modes


def _read_prompt(path: Path, pooling: Path) -> str:
    content = read_given_json(path, 'the settings of sentence-transformers')
    name, prompts = content.get('default_prompt_name'), content.get('prompts')
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    if name is not None and not isinstance(prompt, str):
        raise BadInput(str(path), f'default_prompt_name is {name!r}', 'null, or the name of one of its prompts')
    if prompt and read_given_json(pooling, 'the settings of a Pooling').get('include_prompt') is False:
        found = 'include_prompt is false, and there is a default prompt'
        raise BadInput(str(pooling), found, 'a pooling over all tokens', 'use the package sentence-transformers')
    return prompt or ''


def pool(hidden: jax.Array, lengths: jax.Array, modes: tuple[str, ...]) -> jax.Array:
    """Returns [B, M x D], the concatenated vectors of each mode.

    Args:
      hidden: vectors of tokens, [B, L, D].
      lengths: number of tokens of each text, [B].
    """
    return jnp.concatenate([_pool(hidden, lengths, mode) for mode in modes], axis=1)


def _pool(hidden: jax.Array, lengths: jax.Array, mode: str) -> jax.Array:
    positions = jnp.arange(hidden.shape[1])
    present, counts = positions < lengths[:, None], jnp.maximum(lengths, 1)[:, None]
    if mode == 'cls':
        return hidden[:, 0]
    if mode == 'lasttoken':
        return jnp.take_along_axis(hidden, counts[..., None] - 1, axis=1)[:, 0]
    if mode == 'max':
        return jnp.where(present[..., None], hidden, -jnp.inf).max(axis=1, initial=-1e9)
    if mode == 'weightedmean':  # later tokens count more
        weights = present * (positions + 1.0)
        return (hidden * weights[..., None]).sum(1) / jnp.maximum(weights.sum(1, keepdims=True), 1)
    total = (hidden * present.astype(jnp.int32)[..., None]).sum(1)
    return total / (counts if mode == 'mean' else jnp.sqrt(counts))
