"""Finds the files of Hugging Face datasets: directories that `datasets` saved, parquet shards, and the hub.

The files themselves are Arrow or parquet; the library `datasets` is not needed.
"""

import re
from typing import NamedTuple

from etils import epath

from bert_jax.errors import BadInput
from bert_jax.json_files import read_given_json
from bert_jax.text.sources.files import find_files

HUB = 'hub/'
_CONVERTED = 'refs/convert/parquet'  # the branch in which the hub keeps each dataset as CONFIG/SPLIT/*.parquet
_PARTIAL = 'partial-'  # prefix of a split of which the hub converts only the first 5 GB
_DEFAULT_SPLIT = 'train'
_DICTIONARY = 'dataset_dict.json'
_STATE = 'state.json'


class Files(NamedTuple):
    """Files of one kind, `arrow` or `parquet`, in order."""

    kind: str
    paths: list[epath.Path]


def find_local(location: str) -> Files:
    """Finds the files of `DIR[:SPLIT]`: of `datasets.save_to_disk`, or a directory of parquet shards.

    Raises:
      BadInput: if the directory holds neither, or not the split.
    """
    directory, split = location, ''
    if not epath.Path(location).is_dir() and not location.rpartition(':')[2].startswith('//'):  # as in gs://bucket
        directory, _, split = location.rpartition(':')
    where = f'config.data.source=hf:{location}'
    path = epath.Path(directory or location)
    if not path.is_dir():
        fix = f'--config.data.source=hf:hub/{location}, if it is the name of a dataset on the hub'
        raise BadInput(where, f'{path} is not a directory', 'DIR[:SPLIT]', fix)
    if (path / _DICTIONARY).exists():
        splits = _read_names(path / _DICTIONARY, 'splits')
        path /= _chosen(split or _DEFAULT_SPLIT, splits, where, f'hf:{directory}')
    elif split and (path / split / _STATE).exists():
        path /= split
    elif split and (path / _STATE).exists():
        raise BadInput(where, f'{path} has no splits', 'one dataset', f'--config.data.source=hf:{directory}')
    if (path / _STATE).exists():
        return Files('arrow', [path / name for name in _read_names(path / _STATE, '_data_files', 'filename')])
    for kind in ('parquet', 'arrow'):
        if paths := find_files(str(path), (f'.{kind}',)):
            return Files(kind, _of_split(path, paths, split, where))
    expected = 'a directory of datasets.save_to_disk, or of .parquet or .arrow files'
    raise BadInput(where, f'{path} holds no dataset', expected)


def _read_names(path: epath.Path, key: str, inner_key: str = '') -> list[str]:
    """Returns the names that a file of `datasets` lists, each of a file or directory next to it."""
    expected = 'a file that datasets.save_to_disk wrote'
    listed = read_given_json(path, expected).get(key)
    entries = listed if isinstance(listed, list) else [None]
    names = [entry.get(inner_key) if inner_key and isinstance(entry, dict) else entry for entry in entries]
    valid = [name for name in names if isinstance(name, str) and name and '/' not in name]
    if len(valid) < len(names):
        raise BadInput(str(path), f'lists no names in {key!r}', expected, 'save the dataset again')
    return valid


def _chosen(name: str, names: list[str], where: str, prefix: str) -> str:
    if name not in names:
        fix = f'--config.data.source={prefix}:{names[0]}' if names else ''
        raise BadInput(where, f'has no {name!r}', ', '.join(names), fix)
    return name


def _of_split(directory: epath.Path, paths: list[epath.Path], split: str, where: str) -> list[epath.Path]:
    """Returns the files whose name or directory below `directory` names the split; without a split, train or all."""
    word = re.compile(rf'(?<![a-z0-9]){re.escape(split or _DEFAULT_SPLIT)}(?![a-z0-9])', re.IGNORECASE)
    of_split = [path for path in paths if word.search(str(path)[len(str(directory)) :])]
    if split and not of_split:
        raise BadInput(where, f'no file is named after the split {split!r}', 'such as train-00000-of-00008.parquet')
    return of_split or paths


def find_on_hub(location: str) -> Files:
    """Finds the parquet files of `hub/NAME[:CONFIG][:SPLIT]`, which are then read as a stream.

    Raises:
      BadInput: if the dataset, config or split does not exist, or the hub is not reachable.
    """
    name, *chosen = location.removeprefix(HUB).split(':')
    where = f'config.data.source=hf:{location}'
    root = epath.Path(f'hf://datasets/{name}@{_CONVERTED}')
    try:
        configs = _subdirectories(root)
    except Exception as error:  # of the hub's client, which has many: no such dataset, no access, no network
        fix = 'check the name; `hf auth login` for a dataset with restricted access'
        raise BadInput(where, f'cannot be opened ({type(error).__name__})', 'a dataset on the hub', fix) from error
    config, split = _config_and_split(chosen, configs, where, f'hf:{HUB}{name}')
    splits = _subdirectories(root / config)
    if split not in splits and f'{_PARTIAL}{split}' in splits:
        return Files('parquet', _original_files(name, config, split, where))
    whole = [each for each in splits if not each.startswith(_PARTIAL)]
    directory = root / config / _chosen(split, whole, where, f'hf:{HUB}{name}:{config}')
    return Files('parquet', sorted(path for path in directory.iterdir() if path.suffix == '.parquet'))


def _subdirectories(path: epath.Path) -> list[str]:
    return sorted(each.name for each in path.iterdir() if each.is_dir())


def _config_and_split(chosen: list[str], configs: list[str], where: str, dataset: str) -> tuple[str, str]:
    """Returns the config and split that [], [CONFIG], [SPLIT] or [CONFIG, SPLIT] name."""
    if len(chosen) > 2 or not all(chosen):
        raise BadInput(where, 'has another form', 'hf:hub/NAME[:CONFIG][:SPLIT]')
    default = configs[0] if len(configs) == 1 else 'default'
    config = chosen[0] if chosen and (len(chosen) == 2 or chosen[0] in configs) else default
    split = chosen[-1] if chosen and (len(chosen) == 2 or chosen[0] not in configs) else _DEFAULT_SPLIT
    return _chosen(config, configs, where, dataset), split


def _original_files(name: str, config: str, split: str, where: str) -> list[epath.Path]:
    """Returns the parquet files of a split in the dataset itself, for one that the hub converts only in part."""
    root = epath.Path(f'hf://datasets/{name}')
    folder = root / ('data' if config == 'default' and not (root / config).is_dir() else config)
    paths = find_files(str(folder), ('.parquet',)) if folder.is_dir() else []
    if not paths:
        fix = f'download it: hf download --repo-type dataset {name} --local-dir DIR'
        raise BadInput(where, 'is not in parquet, and the hub converts only its first 5 GB', 'parquet files', fix)
    return _of_split(folder, paths, split, where)
