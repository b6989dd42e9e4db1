"""Reads the safetensors files of a model directory."""

import shlex
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from bert_jax.errors import BadInput
from bert_jax.json_files import DamagedJson, read_json

_COPY_AGAIN = 'copy or download the file again'


def read_tensors(directory: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Reads `model.safetensors`, or all files that its index lists.

    Returns:
      The file to name in errors, and {name: tensor} as stored.

    Raises:
      BadInput: names the file if it is missing, truncated, damaged or a pickle, or lists a file or tensor by an unsafe
        name.
    """
    path, index = directory / 'model.safetensors', directory / 'model.safetensors.index.json'
    if path.is_file():
        return path, _read_file(path)
    if index.is_file():
        tensors: dict[str, np.ndarray] = {}
        for name in _shards(index):
            tensors |= _read_file(directory / name)
        return index, tensors
    pickles = sorted(directory.glob('pytorch_model*.bin'))
    if pickles:
        raise BadInput(
            str(pickles[0]),
            'is a pickle, which could run any program when it is opened, so bert_jax does not open it',
            'weights as safetensors',
            conversion_command(directory),
        )
    raise BadInput(str(path), 'does not exist', 'weights as safetensors')


def conversion_command(directory: Path) -> str:
    """Returns a shell command that converts pytorch_model*.bin to model.safetensors and loads nothing but tensors."""
    program = (
        'import glob, sys, torch, safetensors.torch as s; d = sys.argv[1]; '
        "load = lambda f: torch.load(f, map_location='cpu', weights_only=True); "
        "t = {n: x.clone().contiguous() for f in glob.glob(d + '/pytorch_model*.bin') for n, x in load(f).items()}; "
        "s.save_file(t, d + '/model.safetensors', {'format': 'pt'})"
    )
    return f'python -c "{program}" {shlex.quote(str(directory))}'


def _shards(index: Path) -> list[str]:
    try:
        names = sorted(set(read_json(index)['weight_map'].values()))
    except (DamagedJson, KeyError, AttributeError, TypeError) as error:
        raise BadInput(str(index), f'is not an index of safetensors files ({error})', 'a "weight_map"') from error
    for name in names:
        if _is_unsafe(name):
            raise BadInput(str(index), f'names the file {name!r}', 'files in the same directory', _COPY_AGAIN)
    return names


def _is_unsafe(name: object) -> bool:
    return not isinstance(name, str) or not name or '/' in name or '\\' in name or '\0' in name


def _read_file(path: Path) -> dict[str, np.ndarray]:
    """Returns {name: tensor} of a file; the library checks the header against the size of the file."""
    if not path.is_file():
        raise BadInput(str(path), 'does not exist', 'every file that the index names', _COPY_AGAIN)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:  # bad types or shapes
        found = f'has {path.stat().st_size:,} bytes and cannot be read ({error})'
        raise BadInput(str(path), found, 'a whole safetensors file', _COPY_AGAIN) from error
    for name in tensors:
        if _is_unsafe(name):
            raise BadInput(str(path), f'has a tensor named {name!r}', 'names without path separators', _COPY_AGAIN)
    return tensors
