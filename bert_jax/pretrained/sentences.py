"""Reads and writes how a sentence-transformers directory turns a text into one vector, and pools token vectors so.

    modules.json                       the modules in order: Transformer, Pooling and perhaps Normalize
    sentence_bert_config.json          max_seq_length, do_lower_case
    1_Pooling/config.json              pooling_mode; in old versions pooling_mode_cls_token and so on
    config_sentence_transformers.json  prompts, default_prompt_name, similarity_fn_name, truncate_dim

`B` texts, `L` positions, `D` hidden, `M` ways of pooling.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
SIMILARITIES = ('cosine', 'dot', 'euclidean', 'manhattan')
FILES = ('modules.json', 'sentence_bert_config.json', '1_Pooling/config.json', 'config_sentence_transformers.json')
_OLDEST_MODES = ('cls', 'mean', 'max', 'mean_sqrt_len_tokens')  # version 2.0 rejects the keys of others, even if false
_DIMS_KEY = 'matryoshka_dims'  # only bert_jax reads it
_SIMILARITIES_OF_SEARCH = ('cosine', 'dot')
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
      prompts: name -> prompt that may precede a text, such as 'query' and 'document'.
      include_prompt: whether the tokens of a prompt are pooled.
      similarity: one of `SIMILARITIES`, by which vectors are to be compared.
      truncate_dim: number of leading dims that are kept, after `normalize`; None for all.
      matryoshka_dims: the numbers of leading dims for which the model was trained, besides all.
    """

    directory: str
    max_length: int | None = None
    lowercase: bool = False
    prompt: str = ''
    modes: tuple[str, ...] = ('mean',)
    normalize: bool = False
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    include_prompt: bool = True
    similarity: str = 'cosine'
    truncate_dim: int | None = None
    matryoshka_dims: tuple[int, ...] = ()

    @property
    def default_prompt_name(self) -> str | None:
        """The name of `prompt`; None if there is no prompt."""
        return next(name for name, text in self.prompts.items() if text == self.prompt) if self.prompt else None

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

    def finish(self, vectors: np.ndarray, dims: int | None = None) -> np.ndarray:
        """Normalizes and truncates pooled vectors, [B, M x D] float32.

        Args:
          dims: number of leading dims to keep. They are normalized again if `normalize`. None keeps `truncate_dim`
            dims and does not normalize again, as sentence-transformers does.
        """
        kept = vectors[:, :dims]
        if self.normalize:
            kept = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12)
        return kept if dims is not None else kept[:, : self.truncate_dim]


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
    modes, include_prompt = _read_pooling(pooling / 'config.json')
    settings = SentenceSettings(str(encoder), modes=modes, normalize=len(modules) == 3, include_prompt=include_prompt)
    path = encoder / 'sentence_bert_config.json'
    if path.is_file():
        content = read_given_json(path, 'the settings of a Transformer')
        _check_takes_vectors(content, path)
        length = content.get('max_seq_length')
        if length is not None and (type(length) is not int or length < 3):
            raise BadInput(str(path), f'max_seq_length is {length!r}', 'a number of at least 3, or null')
        settings = dataclasses.replace(settings, max_length=length, lowercase=content.get('do_lower_case') is True)
    path = Path(directory) / 'config_sentence_transformers.json'
    content = read_given_json(path, 'the settings of sentence-transformers') if path.is_file() else {}
    settings = dataclasses.replace(settings, **_read_uses(content, path))
    check_prompt(settings, directory)
    return settings


@dataclasses.dataclass(frozen=True)
class RetrievalSettings:
    """How queries and passages become vectors, and how two vectors are compared.

    Attributes:
      similarity: 'cosine' or 'dot'.
    """

    queries: SentenceSettings
    passages: SentenceSettings
    similarity: str = 'cosine'


def read_retrieval_settings(
    directory: str,
    settings: SentenceSettings,
    queries_prompt: str | None = None,
    passages_prompt: str | None = None,
    similarity: str | None = None,
) -> RetrievalSettings:
    """Returns the settings of a model for queries and passages.

    As in sentence-transformers, the default prompt applies to neither.

    Args:
      directory: named in errors.
      settings: those of the model; `finetune.sentences.read_settings` also reads those of a run.
      queries_prompt: precedes each query; None for the prompt `query` of the model, if it has one.
      passages_prompt: precedes each passage; None for the prompt `document`, `passage` or `corpus`.
      similarity: None for that of the model.

    Raises:
      BadInput: for a similarity by which no search is implemented; see also `check_prompt`.
    """
    prompts = settings.prompts

    def prompt_of(names: tuple[str, ...], given: str | None) -> str:
        found = next((prompts[name] for name in names if name in prompts), '')
        return found if given is None else given

    if similarity is not None and similarity not in _SIMILARITIES_OF_SEARCH:
        raise BadInput(f'--similarity={similarity}', 'is not supported', ' or '.join(_SIMILARITIES_OF_SEARCH))
    similarity = similarity or settings.similarity
    if similarity not in _SIMILARITIES_OF_SEARCH:
        path, expected = f'{directory}/config_sentence_transformers.json', ' or '.join(_SIMILARITIES_OF_SEARCH)
        raise BadInput(path, f'similarity_fn_name is {similarity!r}', expected, '--similarity=cosine')
    retrieval = RetrievalSettings(
        dataclasses.replace(settings, prompt=prompt_of(_QUERY_PROMPTS, queries_prompt)),
        dataclasses.replace(settings, prompt=prompt_of(_PASSAGE_PROMPTS, passages_prompt)),
        similarity,
    )
    for each in (retrieval.queries, retrieval.passages):
        check_prompt(each, directory)
    return retrieval


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


def _read_pooling(path: Path) -> tuple[tuple[str, ...], bool]:
    """Returns (ways of pooling, whether tokens of prompts are pooled)."""
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
    return modes, content.get('include_prompt') is not False


def _read_uses(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the fields of `SentenceSettings` in config_sentence_transformers.json."""
    name, prompts = content.get('default_prompt_name'), content.get('prompts') or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise BadInput(str(path), 'prompts has a value that is not text', 'a JSON object {name: prompt}')
    if name is not None and name not in prompts:
        raise BadInput(str(path), f'default_prompt_name is {name!r}', 'null, or the name of one of its prompts')
    similarity = content.get('similarity_fn_name') or 'cosine'
    if similarity not in SIMILARITIES:
        raise BadInput(str(path), f'similarity_fn_name is {similarity!r}', f'null or one of {", ".join(SIMILARITIES)}')
    truncate_dim, dims = content.get('truncate_dim'), content.get(_DIMS_KEY, [])
    for key, values in (('truncate_dim', [1 if truncate_dim is None else truncate_dim]), (_DIMS_KEY, dims)):
        if not isinstance(values, list) or not all(type(value) is int and value > 0 for value in values):
            raise BadInput(str(path), f'{key} is {content[key]!r}', 'numbers of dims, at least 1')
    return {
        'prompt': prompts[name] if name is not None else '',
        'prompts': prompts,
        'similarity': similarity,
        'truncate_dim': truncate_dim,
        'matryoshka_dims': tuple(dims),
    }


def check_prompt(settings: SentenceSettings, directory: str) -> None:
    """Raises BadInput if there is a prompt whose tokens are not to be pooled, which is not supported."""
    if settings.prompt and not settings.include_prompt:
        where, found = f'{directory}/1_Pooling/config.json', 'include_prompt is false, and there is a prompt'
        raise BadInput(where, found, 'a pooling over all tokens', 'use the package sentence-transformers')


def write_settings(directory: Path, settings: SentenceSettings, hidden_size: int) -> None:
    """Writes the files of sentence-transformers for an encoder whose files are in the same directory.

    Names are those of older versions, which version 6 reads, too. `read_settings` returns the same settings.

    Args:
      settings: their `directory` is not used, and `max_length` must not be None.
      hidden_size: D.
    """
    assert settings.max_length is not None
    # The names that all versions know; from version 6 on, they are aliases.
    modules = [('0', '', 'Transformer'), ('1', '1_Pooling', 'Pooling')]
    modules += [('2', '2_Normalize', 'Normalize')] * settings.normalize
    uses: dict[str, Any] = {
        'prompts': dict(settings.prompts),
        'default_prompt_name': settings.default_prompt_name,
        'similarity_fn_name': settings.similarity,
    }
    uses |= {'truncate_dim': settings.truncate_dim} if settings.truncate_dim is not None else {}
    uses |= {_DIMS_KEY: list(settings.matryoshka_dims)} if settings.matryoshka_dims else {}
    contents: tuple[Any, ...] = (
        [
            {'idx': int(name), 'name': name, 'path': path, 'type': f'sentence_transformers.models.{kind}'}
            for name, path, kind in modules
        ],
        {'max_seq_length': settings.max_length, 'do_lower_case': settings.lowercase},
        _pooling_json(settings, hidden_size),
        uses,
    )
    for name, content in zip(FILES, contents, strict=True):
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + '\n', 'utf-8')


def _pooling_json(settings: SentenceSettings, hidden_size: int) -> dict[str, Any]:
    in_old_order = settings.modes == tuple(mode for mode in MODES if mode in settings.modes)
    if in_old_order:
        content = {'word_embedding_dimension': hidden_size}
        content |= {MODES[mode]: mode in settings.modes for mode in dict.fromkeys(_OLDEST_MODES + settings.modes)}
    else:  # versions before 6 have one order
        content = {'embedding_dimension': hidden_size, 'pooling_mode': list(settings.modes)}
    return content | ({} if settings.include_prompt else {'include_prompt': False})


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
