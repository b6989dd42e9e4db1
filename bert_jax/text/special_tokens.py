"""Finds the special tokens of a tokenizer by their role.

A role is declared by the files of `transformers` next to a tokenizer.json, shown by its post-processor (which puts
tokens around a text), or follows from a conventional name.
"""

import pathlib
from collections.abc import Collection
from typing import Any, NamedTuple

from bert_jax.errors import BadInput
from bert_jax.json_files import read_given_json


class SpecialTokens(NamedTuple):
    """The names of the special tokens of a vocabulary."""

    pad: str
    unk: str
    cls: str
    sep: str
    mask: str


SPECIAL_TOKENS = SpecialTokens('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')  # ids 0 to 4 in a vocabulary trained here

_FILES = ('special_tokens_map.json', 'tokenizer_config.json')
_KEYS = {
    'pad': ('pad_token',),
    'unk': ('unk_token',),
    'cls': ('cls_token', 'bos_token'),
    'sep': ('sep_token', 'eos_token'),
    'mask': ('mask_token',),
}
_NAMES = {
    'pad': ('[PAD]', '<pad>', '<|pad|>', '<|padding|>', '<|finetune_right_pad_id|>'),
    'unk': ('[UNK]', '<unk>', '<|unk|>'),
    'cls': ('[CLS]', '<s>', '<cls>', '<bos>', '<|begin_of_text|>', '<|startoftext|>', '<|endoftext|>'),
    'sep': ('[SEP]', '</s>', '<sep>', '<eos>', '<|end_of_text|>', '<|endoftext|>'),
    'mask': ('[MASK]', '<mask>', '<|mask|>'),
}
_MEANINGS = {
    'pad': 'a padding token',
    'cls': 'a token that begins a text',
    'sep': 'a token that ends a text',
    'mask': 'a mask token',
}


def find_special_tokens(path: pathlib.Path, content: dict[str, Any], tokens: Collection[str]) -> SpecialTokens:
    """Returns the special tokens of a tokenizer.json.

    A vocabulary that can represent every text may have no token for unknown text. The mask token then takes that role:
    text never yields it.

    Args:
      path: of the tokenizer.json; the other files of its directory may declare roles.
      content: of the tokenizer.json.
      tokens: the vocabulary, with added tokens.

    Raises:
      BadInput: if a role is not filled, for example without a mask or padding token.
    """
    declared: dict[str, Any] = {}
    for name in reversed(_FILES):
        if (path.parent / name).is_file():
            declared |= read_given_json(path.parent / name, 'the settings of a tokenizer')
    framing = _framing(content.get('post_processor'))
    candidates = {
        role: [*(_name(declared.get(key)) for key in _KEYS[role]), framing.get(role), *names]
        for role, names in _NAMES.items()
    }
    candidates['unk'].insert(0, _unknown_token(content.get('model') or {}))
    found = {role: next((name for name in names if name and name in tokens), '') for role, names in candidates.items()}
    found['unk'] = found['unk'] or found['mask']
    missing = [meaning for role, meaning in _MEANINGS.items() if not found[role]]
    if missing:
        conventional = ', '.join(name for role in _MEANINGS if not found[role] for name in _NAMES[role][:2])
        raise BadInput(
            f'tokenizer {path}',
            f'lacks {" and ".join(missing)}',
            f'{", ".join(missing)}, with a conventional name ({conventional}) or declared in {_FILES[0]}',
            'add the tokens to tokenizer.json (`add_special_tokens` of the `tokenizers` library), '
            f'or name existing ones in {_FILES[0]} next to it',
        )
    return SpecialTokens(**found)


def _name(value: Any) -> str | None:
    """Returns the token of a setting, which is a string or an added token in JSON."""
    value = value.get('content') if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _unknown_token(model: dict[str, Any]) -> str | None:
    """Returns the token that the model itself uses for unknown text."""
    index, vocabulary = model.get('unk_id'), model.get('vocab')
    if isinstance(index, int) and isinstance(vocabulary, list):
        return vocabulary[index][0]
    return model.get('unk_token')


def _framing(processor: dict[str, Any] | None) -> dict[str, str]:
    """Returns the `cls` and `sep` tokens that a post-processor puts around a single text."""
    if processor is None:
        return {}
    if processor['type'] == 'Sequence':
        found: dict[str, str] = {}
        for step in processor['processors']:
            found |= _framing(step)
        return found
    if processor['type'] in ('BertProcessing', 'RobertaProcessing'):
        return {role: processor[role][0] for role in ('cls', 'sep')}
    if processor['type'] != 'TemplateProcessing':
        return {}
    found, role = {}, 'cls'
    for piece in processor['single']:
        if 'Sequence' in piece:
            role = 'sep'
        else:
            name = piece['SpecialToken']['id']
            found.setdefault(role, ''.join(processor['special_tokens'][name]['tokens']))
    return found
