"""A workdir's config.json: what a run is, so that it can be continued and read without its config file."""

import dataclasses
import json
from importlib import metadata

import jax
from etils import epath

from bert_jax import config as config_module
from bert_jax.config import Config
from bert_jax.data.streams import Streams
from bert_jax.errors import BadInput
from bert_jax.files import write_whole
from bert_jax.text.tokenizer import Tokenizer

# The fields of `config.data` that the corpus's content hash stands for.
_COVERED_BY_CONTENT = (
    'source',
    'corpus',
    'text_field',
    'group_field',
    'bad_records',
    'deduplicate_lines',
    'split_sentences',
    'validation_source',
    'validation_fraction',
    'local_copy',
)
_RECORDED_VERSIONS = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'tokenizers', 'sentencepiece')


def fingerprint(config: Config, streams: Streams) -> dict[str, object]:
    """What must not change when a run is continued: content, never paths, mesh, microbatches or intervals."""
    data = dataclasses.asdict(config.data)
    for path in _COVERED_BY_CONTENT:
        del data[path]
    if not config_module.is_records(config.data.source):
        del data['remask']
    model = dataclasses.asdict(config.model)
    for execution in ('remat', 'scan_layers'):
        del model[execution]
    sections = {'data': data, 'model': model, 'optimizer': dataclasses.asdict(config.optimizer)}
    flat = {f'{section}.{name}': value for section, values in sections.items() for name, value in values.items()}
    return flat | {
        'phases': [dataclasses.asdict(phase) for phase in config.phases],
        'corpus': streams.content_hash,
        'tokenizer': streams.tokenizer.hash,
        'train.seed': config.train.seed,
        'train.steps': config.train.steps,
        'train.global_batch_size': config.train.global_batch_size,
    }


def claim(workdir: str, config: Config, tokenizer: Tokenizer, fingerprint: dict[str, object]) -> None:
    """Writes config.json and the tokenizer into a new workdir, or checks that the workdir holds this very run.

    Args:
      fingerprint: of the run (see `fingerprint`), and what is known of the weights that it starts from.

    Raises:
      BadInput: names every field in which the workdir's run differs.
    """
    path = epath.Path(workdir) / 'config.json'
    ours = json.loads(json.dumps(fingerprint))
    if path.exists():
        theirs = _read(path)['fingerprint']
        differ = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
        if differ:
            listed = ', '.join(
                f'{name} ({theirs.get(name)!r} there, {ours.get(name)!r} asked)' for name in sorted(differ)
            )
            raise BadInput(str(workdir), f'holds another run: {listed}', 'the same values', 'name another --workdir')
        return
    if jax.process_index() == 0:
        write(workdir, config, tokenizer, ours)


def write(workdir: str, config: Config, tokenizer: Tokenizer, fingerprint: dict[str, object]) -> None:
    """Makes a directory a workdir: its tokenizer (so that it can be used where its corpus is not), then config.json."""
    path = epath.Path(workdir) / 'config.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(path.parent / 'tokenizer')
    versions = {name: metadata.version(name) for name in _RECORDED_VERSIONS}
    content = {'config': dataclasses.asdict(config), 'fingerprint': fingerprint, 'versions': versions}
    write_whole(path, json.dumps(content, indent=2) + '\n')


def is_workdir(directory: str) -> bool:
    """Whether a directory's config.json is a run's (and not a model's)."""
    path = epath.Path(directory) / 'config.json'
    return path.exists() and b'fingerprint' in path.read_bytes()


def load_config(workdir: str) -> Config:
    """The config of the run in a workdir.

    Raises:
      BadInput: when there is none.
    """
    path = epath.Path(workdir) / 'config.json'
    found = _read(path)['config']
    if 'task' in found:
        mend = f'python -m bert_jax export --workdir={workdir} --output=…'
        raise BadInput(str(path), 'is of a fine-tuned model', 'of a pretraining run', mend)
    return config_module.resolve(found)


def load_fingerprint(workdir: str) -> dict[str, object]:
    """The fingerprint of the run in a workdir.

    Raises:
      BadInput: when there is none.
    """
    return _read(epath.Path(workdir) / 'config.json')['fingerprint']


def _read(path: epath.Path) -> dict:
    if not path.exists():
        raise BadInput(
            str(path), 'does not exist', 'the workdir of a run', 'python -m bert_jax train --config=… --workdir=…'
        )
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(str(path), f'is not JSON ({error})', 'the file that train wrote') from error
    if not isinstance(content, dict) or not {'config', 'fingerprint'} <= content.keys():
        raise BadInput(str(path), 'is not the config of a run', 'the file that train wrote')
    return content
