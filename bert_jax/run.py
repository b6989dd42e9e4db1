"""A workdir's config.json: what a run is, so that it can be continued and read without its config file."""

import dataclasses
import json
from importlib import metadata

from etils import epath

from bert_jax import config as config_module
from bert_jax.config import Config
from bert_jax.errors import BadInput
from bert_jax.files import write_whole
from bert_jax.text.corpus import Corpus

_RECORDED_VERSIONS = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'tokenizers', 'sentencepiece')


def fingerprint(config: Config, corpus: Corpus) -> dict[str, object]:
    """What must not change when a run is continued: content, never paths, mesh, microbatches or intervals."""
    data = dataclasses.asdict(config.data)
    for path in ('source', 'corpus', 'validation_source', 'validation_fraction', 'text_field', 'split_sentences'):
        del data[path]  # the corpus's content hash covers them
    model = dataclasses.asdict(config.model)
    for execution in ('remat', 'scan_layers'):
        del model[execution]
    sections = {'data': data, 'model': model, 'optimizer': dataclasses.asdict(config.optimizer)}
    flat = {f'{section}.{name}': value for section, values in sections.items() for name, value in values.items()}
    return flat | {
        'corpus': corpus.manifest['content_hash'],
        'tokenizer': corpus.tokenizer.hash,
        'train.seed': config.train.seed,
        'train.steps': config.train.steps,
        'train.global_batch_size': config.train.global_batch_size,
    }


def claim(workdir: str, config: Config, corpus: Corpus) -> None:
    """Writes config.json and the tokenizer into a new workdir, or checks that the workdir holds this very run.

    Raises:
      BadInput: names every field in which the workdir's run differs.
    """
    path = epath.Path(workdir) / 'config.json'
    ours = json.loads(json.dumps(fingerprint(config, corpus)))
    if path.exists():
        theirs = _read(path)['fingerprint']
        differ = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
        if differ:
            listed = ', '.join(
                f'{name} ({theirs.get(name)!r} there, {ours.get(name)!r} asked)' for name in sorted(differ)
            )
            raise BadInput(str(workdir), f'holds another run: {listed}', 'the same values', 'name another --workdir')
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    corpus.tokenizer.save(path.parent / 'tokenizer')  # a workdir can be used where its corpus is not
    resolved = dataclasses.asdict(config)
    versions = {name: metadata.version(name) for name in _RECORDED_VERSIONS}
    write_whole(path, json.dumps({'config': resolved, 'fingerprint': ours, 'versions': versions}, indent=2) + '\n')


def is_workdir(directory: str) -> bool:
    """Whether a directory's config.json is a run's (and not a model's)."""
    path = epath.Path(directory) / 'config.json'
    return path.exists() and 'fingerprint' in path.read_text()


def load_config(workdir: str) -> Config:
    """The config of the run in a workdir.

    Raises:
      BadInput: when there is none.
    """
    return config_module.resolve(_read(epath.Path(workdir) / 'config.json')['config'])


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
