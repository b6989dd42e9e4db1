"""How a directory of sentence-transformers makes one vector of a text: its modules, their settings, and their pooling.

    modules.json                   the modules, one after another: Transformer, Pooling, Normalize
    sentence_bert_config.json      max_seq_length, do_lower_case
    1_Pooling/config.json          pooling_mode, of old versions pooling_mode_cls_token and so on
    config_sentence_transformers.json      prompts, default_prompt_name

`B` texts, `L` positions, `D` hidden.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.errors import BadInput
from bert_jax.json_files import read_given_json

# Ways to make one vector of a text's tokens, and the key of each in a Pooling's config.json of old versions; there the
# vectors are in this order.
MODES = {
    'cls': 'pooling_mode_cls_token',
    'max': 'pooling_mode_max_tokens',
    'mean': 'pooling_mode_mean_tokens',
    'mean_sqrt_len_tokens': 'pooling_mode_mean_sqrt_len_tokens',
    'weightedmean': 'pooling_mode_weightedmean_tokens',
    'lasttoken': 'pooling_mode_lasttoken',
}


@dataclasses.dataclass(frozen=True)
class SentenceSettings:
    """What is done with a text; the defaults are those of a directory without `modules.json`.

    Attributes:
      directory: where the encoder lies.
      max_length: tokens that a text is cut to; None: as many as the encoder was trained on.
      lowercase: whether a text is lower-cased before the tokenizer sees it.
      prompt: put before every text.
      modes: of `MODES`; their vectors are concatenated.
      normalize: whether a vector is divided by its length.
    """

    directory: str
    max_length: int | None = None
    lowercase: bool = False
    prompt: str = ''
    modes: tuple[str, ...] = ('mean',)
    normalize: bool = False

    def limit(self, trained_length: int, max_positions: int) -> int:
        """Tokens that a text is cut to, by a model with `max_positions` that was trained on `trained_length` tokens."""
        return min(self.max_length or trained_length, max_positions)

    def prepare(self, text: str) -> str:
        """A text as the tokenizer gets it."""
        text = self.prompt + text
        return text.lower() if self.lowercase else text


def read_settings(directory: str) -> SentenceSettings:
    """The settings of a directory; the defaults for one that is not of sentence-transformers, a workdir for example.

    Raises:
      BadInput: for a file that is not JSON, or for a module or a pooling that is not one of those above.
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
            'Transformer, Pooling, and Normalize or nothing',
            'other modules take the package sentence-transformers itself',
        )
    encoder, pooling = (Path(directory) / place for _, place in modules[:2])
    found = SentenceSettings(str(encoder), modes=_read_modes(pooling / 'config.json'), normalize=len(modules) == 3)
    path = encoder / 'sentence_bert_config.json'
    if path.is_file():
        content = read_given_json(path, 'the settings of a Transformer')
        _check_takes_vectors(content, path)
        length = content.get('max_seq_length')
        if length is not None and (type(length) is not int or length < 3):
            raise BadInput(str(path), f'max_seq_length is {length!r}', 'a number of at least 3, or null')
        found = dataclasses.replace(found, max_length=length, lowercase=content.get('do_lower_case') is True)
    path = Path(directory) / 'config_sentence_transformers.json'
    return dataclasses.replace(found, prompt=_read_prompt(path, pooling / 'config.json')) if path.is_file() else found


def _read_modules(path: Path) -> list[tuple[str, str]]:
    """(the last part of its type, its directory) of each module."""
    listed: Any = read_given_json(path, 'the modules of sentence-transformers', list)
    for module in listed:
        if not isinstance(module, dict) or not all(isinstance(module.get(key), str) for key in ('type', 'path')):
            raise BadInput(str(path), 'has a module without a type or a path', 'a list of {idx, name, path, type}')
        if '..' in Path(module['path']).parts or Path(module['path']).is_absolute():
            raise BadInput(str(path), f'names the directory {module["path"]!r}', 'directories inside its own')
    return [(module['type'].rpartition('.')[2], module['path']) for module in listed]


def _check_takes_vectors(content: dict[str, Any], path: Path) -> None:
    """Raises BadInput for a Transformer that passes on something else than the vectors of the last layer."""
    text = content.get('modality_config') or {'text': {}}
    text = text.get('text') if isinstance(text, dict) else None
    output = text.get('method_output_name', 'last_hidden_state') if isinstance(text, dict) else None
    if output != 'last_hidden_state':
        expected = "text, and the output 'last_hidden_state'"
        raise BadInput(str(path), f'modality_config takes {output!r} of text', expected)


def _read_modes(path: Path) -> tuple[str, ...]:
    content = read_given_json(path, 'the settings of a Pooling')
    named = content.get('pooling_mode')
    if named is None:
        known, chosen = MODES.values(), {key for key, value in content.items() if value is True}
        chosen = {key for key in chosen if key.startswith('pooling_mode_')}
        modes = tuple(mode for mode, key in MODES.items() if key in chosen)
        unknown = sorted(chosen - {*known})
    else:
        given = [named] if isinstance(named, str) else named
        given = [mode if isinstance(mode, str) else repr(mode) for mode in given] if isinstance(given, list) else ['?']
        modes, unknown = tuple(given), [mode for mode in given if mode not in MODES]
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
        raise BadInput(
            str(pooling), found, 'a pooling over all tokens', 'take the package sentence-transformers itself'
        )
    return prompt or ''


def pool(hidden: jax.Array, lengths: jax.Array, modes: tuple[str, ...]) -> jax.Array:
    """[B, L, D] vectors of tokens, [B] lengths -> [B, M x D], the vectors of the modes one after another."""
    return jnp.concatenate([_pool(hidden, lengths, mode) for mode in modes], axis=1)


def _pool(hidden: jax.Array, lengths: jax.Array, mode: str) -> jax.Array:
    place = jnp.arange(hidden.shape[1])
    present, counts = place < lengths[:, None], jnp.maximum(lengths, 1)[:, None]
    if mode == 'cls':
        return hidden[:, 0]
    if mode == 'lasttoken':
        return jnp.take_along_axis(hidden, counts[..., None] - 1, axis=1)[:, 0]
    if mode == 'max':
        return jnp.where(present[..., None], hidden, -jnp.inf).max(axis=1, initial=-1e9)
    if mode == 'weightedmean':  # later tokens count more
        weights = present * (place + 1.0)
        return (hidden * weights[..., None]).sum(1) / jnp.maximum(weights.sum(1, keepdims=True), 1)
    total = (hidden * present.astype(jnp.int32)[..., None]).sum(1)
    return total / (counts if mode == 'mean' else jnp.sqrt(counts))
