"""A workdir's config.json, which identifies its run: commands can resume and read the run without its config file."""

import dataclasses
import difflib
import functools
import json
import os
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any, Protocol, TypeVar

from etils import epath

from bert_jax import config as config_module
from bert_jax.config import FAMILIES, Config, Data, Objective, Optimizer, Train
from bert_jax.config.fields import Role, identity_of, names_with, with_values_before, without_places_to_write
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.console import say
from bert_jax.data.streams import Streams
from bert_jax.errors import BadInput
from bert_jax.files import is_local, write_whole
from bert_jax.json_files import read_given_json
from bert_jax.runtime.processes import is_process_zero
from bert_jax.text.tokenizer import Tokenizer
from bert_jax.workdir.recorded_paths import current_directory_from, resolve_recorded_paths

ConfigT = TypeVar('ConfigT', Config, FinetuneConfig)
_RECORDED_VERSIONS = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'tokenizers', 'sentencepiece')


class Recorded(Protocol):
    """Further values that config.json records about a run (`pretrained.provenance.Provenance`)."""

    def to_json(self) -> dict[str, Any]:
        """Returns the values to write."""


def fingerprint(config: Config, streams: Streams) -> dict[str, Any]:
    """Returns what must not change when a run resumes: content, never paths, mesh, microbatches or intervals."""
    values = identity_of(config) | {'corpus': streams.content_hash, 'tokenizer': streams.tokenizer.hash}
    if not config_module.is_records(config.data.source):
        del values['data.remask']  # does not apply to text
    return values


def with_recorded_defaults(
    config: ConfigT, workdir: str, changing: Sequence[str] = (), *, quiet: bool = False
) -> ConfigT:
    """Returns the config to resume a workdir's run with.

    If a default has changed since the run was started, the run keeps the old value. It also keeps the number of
    sequences per packed row and the dtype, which a run chooses once.

    Args:
      changing: names of fields that take their new value (--allow_change).
      quiet: does not report which values are kept.
    """
    if not is_workdir(workdir):
        return config
    recorded = _read(epath.Path(workdir) / 'config.json')['config']
    if 'data.max_sequences' not in changing:
        config = _with_recorded_sequences(config, recorded)
    if 'model.dtype' not in changing:
        dtype = recorded.get('model', {}).get('dtype', 'auto')
        config = dataclasses.replace(config, model=config.model.with_dtype(dtype))
    resumed = with_values_before(config, recorded, changing)
    today = identity_of(config)  # None: taken from the initial model, then as now
    fields = ', '.join(sorted(name for name in _differing(today, identity_of(resumed)) if today[name] is not None))
    if fields and not quiet:
        say(f'{workdir} was started by an earlier version and keeps the defaults of that version for {fields}.')
    return resumed


def _with_recorded_sequences(config: ConfigT, recorded: dict[str, Any]) -> ConfigT:
    """Returns a pretraining config with the recorded `data.max_sequences` in place of 0; other configs unchanged."""
    max_sequences = recorded.get('data', {}).get('max_sequences')
    if not isinstance(config, Config) or config.data.max_sequences != 0 or max_sequences is None:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, max_sequences=max_sequences))


def claim(
    workdir: str,
    config: Config | FinetuneConfig,
    tokenizer: Tokenizer,
    fingerprint: dict[str, Any],
    *,
    start: Recorded | None = None,
    allow_change: Sequence[str] | None = None,
    step: int | None = None,
) -> None:
    """Writes config.json and the tokenizer into a new workdir, or checks that the workdir holds the same run.

    Args:
      fingerprint: of the run (see `fingerprint`), and a hash of the weights that it starts from.
      start: what else is known about those weights (`pretrained/provenance.py`); recorded in a new workdir.
      allow_change: names in the fingerprint whose value may change. config.json then takes the new values, and records
        the old ones and the `step` that the run had reached. None for a command without --allow_change.

    Raises:
      BadInput: if other fields of the workdir's run differ; the message names them all.
    """
    path = epath.Path(workdir) / 'config.json'
    ours = json.loads(json.dumps(fingerprint))
    allowed = {*(allow_change or ())}
    if unknown := sorted(allowed - ours.keys() - _OPTIONAL):
        near = difflib.get_close_matches(unknown[0], ours, n=1)
        raise BadInput(
            '--allow_change',
            f'names {", ".join(unknown)}, which cannot be changed or does not exist',
            ', '.join(sorted(ours)),
            f'--allow_change={near[0]}' if near else '',
        )
    if path.exists():
        content = _read(path)
        theirs = content['fingerprint']
        differ = _differing(ours, theirs)
        _check_may_change(workdir, differ - allowed, theirs, ours, has_flag=allow_change is not None)
        _check_keeps_shapes(workdir, differ)
        if isinstance(config, Config) and differ:
            _check_keeps_state(workdir, config)
        if differ and is_process_zero():
            changes = [
                {'step': step, 'field': name, 'from': theirs.get(name), 'to': ours.get(name)} for name in sorted(differ)
            ]
            changes = [*content.get('changes', []), *changes]
            _save(workdir, config, tokenizer, ours, content, changes=changes)
            say(f'Changed from step {step or 0} on: {describe_changes(differ, theirs, ours)}')
        return
    if is_process_zero():
        write(workdir, config, tokenizer, ours, start)


_IF_SET = (Role.IDENTITY_IF_SET, Role.SHAPES_IF_SET)
_OPTIONAL = {  # names that a fingerprint may lack
    'init',  # a hash of the initial weights
    *(f'model.{name}' for section in FAMILIES.values() for name in names_with(Role.IDENTITY_IF_SET, section)),
    *names_with(Role.IDENTITY_IF_SET, Config),
    *(f'data.{name}' for name in names_with(Role.IDENTITY_IF_SET, Data)),
    *(f'optimizer.{name}' for name in names_with(Role.IDENTITY_IF_SET, Optimizer)),
    *(f'train.{name}' for role in _IF_SET for name in names_with(role, Train)),
    *(f'objective.{name}' for role in _IF_SET for name in names_with(role, Objective)),
}
_SHAPES = {  # names that determine the shapes and names of the arrays of a state
    'tokenizer',
    'model.vocab_size',
    *(f'model.{name}' for section in FAMILIES.values() for name in names_with(Role.SHAPES, section)),
    *(f'optimizer.{name}' for name in names_with(Role.SHAPES, Optimizer)),
    *(f'train.{name}' for name in names_with(Role.SHAPES_IF_SET, Train)),
    *(f'objective.{name}' for name in names_with(Role.SHAPES_IF_SET, Objective)),
}


def _check_may_change(workdir: str, differ: set[str], theirs: dict, ours: dict, *, has_flag: bool) -> None:
    """Raises BadInput if a field differs. has_flag: whether the command has --allow_change."""
    if not differ:
        return
    fixed = sorted(differ & _SHAPES)
    fork = f'use another --workdir; with --config.init={workdir} the new run starts from the weights of this one'
    fix = fork if fixed or not has_flag else f'use another --workdir, or --allow_change={",".join(sorted(differ))}'
    raise BadInput(
        str(workdir), f'holds another run: {describe_differences(differ, theirs, ours)}', 'the same values', fix
    )


def _check_keeps_shapes(workdir: str, differ: set[str]) -> None:
    """Raises BadInput for a change that does not fit the arrays of existing checkpoints."""
    if fixed := sorted(differ & _SHAPES):
        raise BadInput(
            '--allow_change',
            f'names {", ".join(fixed)}, but the checkpoints of {workdir} depend on it',
            'fields that do not affect the shapes of parameters and optimizer state',
            f'use another --workdir, with --config.init={workdir}',
        )


def _check_keeps_state(workdir: str, config: Config) -> None:
    """Raises BadInput if a changed config schedules the weight decay and the workdir's does not, or the reverse."""
    ours, theirs = (len(config_module.weight_decays(run)) > 1 for run in (config, load_config(workdir)))
    if ours != theirs:
        raise BadInput(
            '--allow_change',
            f'changes whether phases differ in weight_decay, but the checkpoints of {workdir} depend on it',
            'one weight_decay for all phases' if ours else 'different ones, as before',
            f'use another --workdir, with --config.init={workdir}',
        )


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> set[str]:
    """Returns the names whose values differ between two fingerprints, or that only one of them has."""
    return {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}


def describe_differences(differ: Iterable[str], theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Lists the fields in which a workdir's run differs from the requested one, with both values."""
    return ', '.join(
        f'{name} (workdir: {theirs.get(name)!r}, requested: {ours.get(name)!r})' for name in sorted(differ)
    )


def describe_changes(differ: Iterable[str], theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Lists the fields that --allow_change changed, with their old and new values."""
    return ', '.join(f'{name} (was {theirs.get(name)!r}, now {ours.get(name)!r})' for name in sorted(differ))


def write(
    workdir: str,
    config: Config | FinetuneConfig,
    tokenizer: Tokenizer,
    fingerprint: dict[str, Any],
    start: Recorded | None = None,
    *,
    branch: dict[str, Any] | None = None,
) -> None:
    """Makes a directory a workdir: writes the tokenizer, so that it can be used without its corpus, then config.json.

    Args:
      start: as in `claim`.
      branch: the workdir and step that the run was branched off at.
    """
    epath.Path(workdir).mkdir(parents=True, exist_ok=True)
    more = {} if start is None else {'start': start.to_json()}
    more |= {} if branch is None else {'branch': branch}
    _save(workdir, config, tokenizer, fingerprint, {}, versions=package_versions(), **more)


def _save(
    workdir: str,
    config: Config | FinetuneConfig,
    tokenizer: Tokenizer,
    fingerprint: dict[str, Any],
    earlier: dict[str, Any],
    **more: Any,
) -> None:
    """Writes the tokenizer, then config.json: its earlier content updated with the new values."""
    tokenizer.save(epath.Path(workdir) / 'tokenizer')
    run = {'config': dataclasses.asdict(config), 'directory': current_directory_from(workdir)}
    content = earlier | run | {'fingerprint': fingerprint} | more
    write_whole(epath.Path(workdir) / 'config.json', json.dumps(content, indent=2) + '\n')


def package_versions() -> dict[str, str]:
    """Returns the versions of the packages that a run's results may depend on."""
    return {name: metadata.version(name) for name in _RECORDED_VERSIONS}


def is_workdir(directory: str) -> bool:
    """Returns whether a directory's config.json is that of a run, not of a model."""
    path = epath.Path(directory) / 'config.json'
    return path.exists() and b'fingerprint' in path.read_bytes()


def load_config(workdir: str) -> Config:
    """Returns the config of the run in a workdir.

    Raises:
      BadInput: if there is no run, or the run is a fine-tune.
    """
    path = epath.Path(workdir) / 'config.json'
    values = load_settings(workdir)
    if 'task' in values:
        fix = f'bert-jax export --workdir={workdir} --output=…'
        raise BadInput(str(path), 'belongs to a fine-tuned model', 'the config of a pretraining run', fix)
    return with_values_before(config_module.resolve(values), values)


def load_settings(workdir: str) -> dict[str, Any]:
    """Returns the config of the run in a workdir as JSON values, with relative paths that work from here.

    A workdir may come from somebody else, so fields that name an output path are dropped: only the command line may
    set those.

    Raises:
      BadInput: if there is no run.
    """
    path = epath.Path(workdir) / 'config.json'
    content = _read(path)
    section = FinetuneConfig if 'task' in content['config'] else Config
    trusted, ignored = without_places_to_write(section, content['config'])
    if ignored:
        _report_ignored(str(path), tuple(f'{name}={value!r}' for name, value in ignored.items()))
    return resolve_recorded_paths(workdir, content.get('directory'), trusted)


def check_corpus_exists(workdir: str, config: Config) -> None:
    """Raises BadInput if the run's corpus is a relative path that does not exist from the current directory.

    Workdirs of earlier versions do not record where the run was started, so the path cannot be resolved from elsewhere.
    """
    corpus = config.data.corpus
    is_relative = is_local(corpus) and not os.path.isabs(corpus)
    if config_module.is_records(config.data.source) or not is_relative or os.path.exists(corpus):
        return
    raise BadInput(
        f'{workdir}/config.json',
        f'names the corpus {corpus}, which does not exist relative to the current directory ({os.getcwd()})',
        'the corpus that the run was trained on',
        'run this command from the directory in which `train` was started, or pass other text with --source=text:GLOB',
    )


@functools.cache  # a command reads a config more than once
def _report_ignored(path: str, settings: tuple[str, ...]) -> None:
    say(f'{path}: {", ".join(settings)} is ignored, because only --config can set an output path.')


def load_fingerprint(workdir: str) -> dict[str, Any]:
    """Returns the fingerprint of the run in a workdir.

    Raises:
      BadInput: if there is no run.
    """
    return _read(epath.Path(workdir) / 'config.json')['fingerprint']


def load_recorded_start(workdir: str) -> dict[str, Any] | None:
    """Returns what a workdir records about the weights its run started from; None for random ones and old workdirs.

    Raises:
      BadInput: if there is no run.
    """
    return _read(epath.Path(workdir) / 'config.json').get('start')


def split_step(name: str) -> tuple[str, int | None]:
    """Splits a model's name, `DIRECTORY` or `WORKDIR@STEP`, into (directory, step); the step is None if not named.

    Raises:
      BadInput: if the directory exists and the part after the `@` is not a number.
    """
    directory, at, step = name.rpartition('@')
    if not at or epath.Path(name).exists():
        return name, None
    if not (step.isascii() and step.isdecimal()):
        if epath.Path(directory).exists():
            raise BadInput(name, f'names the step {step!r}', 'WORKDIR@STEP, with a number as STEP', directory)
        return name, None
    return directory, int(step)


def _read(path: epath.Path) -> dict:
    if not path.exists():
        raise BadInput(str(path), 'does not exist', 'the workdir of a run', 'bert-jax train --config=… --workdir=…')
    content = read_given_json(path, 'the file that train wrote')
    if not all(isinstance(content.get(name), dict) for name in ('config', 'fingerprint')):
        raise BadInput(
            str(path), 'is not the config of a run', 'the file that train wrote; an export has a different one'
        )
    return content
