"""A workdir's config.json: what a run is, so that it can be continued and read without its config file."""

import dataclasses
import difflib
import functools
import json
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any, Protocol, TypeVar

from etils import epath

from bert_jax import config as config_module
from bert_jax.config import Config, Data, Model, Optimizer, Train
from bert_jax.config.fields import Role, identity_of, names_with, with_values_before, without_places_to_write
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.console import say
from bert_jax.data.streams import Streams
from bert_jax.errors import BadInput
from bert_jax.files import write_whole
from bert_jax.json_files import read_given_json
from bert_jax.runtime.processes import is_process_zero
from bert_jax.text.tokenizer import Tokenizer
from bert_jax.workdir.recorded_paths import current_directory_from, resolve_recorded_paths

ConfigT = TypeVar('ConfigT', Config, FinetuneConfig)
_RECORDED_VERSIONS = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'tokenizers', 'sentencepiece')


class Recorded(Protocol):
    """What a workdir's config.json keeps beside the config (`pretrained.provenance.Provenance`)."""

    def to_json(self) -> dict[str, Any]:
        """The values to write."""


def fingerprint(config: Config, streams: Streams) -> dict[str, Any]:
    """What must not change when a run is resumed: content, never paths, mesh, microbatches or intervals."""
    found = identity_of(config) | {'corpus': streams.content_hash, 'tokenizer': streams.tokenizer.hash}
    if not config_module.is_records(config.data.source):
        del found['data.remask']  # means nothing to text
    return found


def with_recorded_defaults(
    config: ConfigT, workdir: str, changing: Sequence[str] = (), *, quiet: bool = False
) -> ConfigT:
    """The config to resume a workdir's run with: defaults that are newer than the run keep the values that it had.

    So does what a run chooses once for itself, the sequences of a packed row.

    Args:
      changing: names of fields that take their new value (--allow_change).
      quiet: does not report what is kept.
    """
    if not is_workdir(workdir):
        return config
    recorded = _read(epath.Path(workdir) / 'config.json')['config']
    if 'data.max_sequences' not in changing:
        config = _with_recorded_sequences(config, recorded)
    kept = with_values_before(config, recorded, changing)
    if kept != config and not quiet:
        fields = ', '.join(sorted(_differing(identity_of(config), identity_of(kept))))
        say(f'{workdir} was begun by an earlier version and keeps its defaults for {fields}')
    return kept


def _with_recorded_sequences(config: ConfigT, recorded: dict[str, Any]) -> ConfigT:
    """A config of pretraining with the recorded `data.max_sequences` in place of 0; any other as it is."""
    chosen = recorded.get('data', {}).get('max_sequences')
    if not isinstance(config, Config) or config.data.max_sequences != 0 or chosen is None:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, max_sequences=chosen))


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
    """Writes config.json and the tokenizer into a new workdir, or checks that the workdir holds this very run.

    Args:
      fingerprint: of the run (see `fingerprint`), and a hash of the weights that it starts from.
      start: what else is known of those weights (`pretrained/provenance.py`); a new workdir records it.
      allow_change: names in the fingerprint whose value may be another than before; config.json then takes the new
        values, and records the old ones and the `step` that the run had reached. None for a command without
        --allow_change.

    Raises:
      BadInput: names every field in which the workdir's run differs and may not.
    """
    path = epath.Path(workdir) / 'config.json'
    ours = json.loads(json.dumps(fingerprint))
    allowed = {*(allow_change or ())}
    if unknown := sorted(allowed - ours.keys() - _OPTIONAL):
        near = difflib.get_close_matches(unknown[0], ours, n=1)
        raise BadInput(
            '--allow_change',
            f'names {", ".join(unknown)}, which is no field of a fingerprint',
            ', '.join(sorted(ours)),
            f'--allow_change={near[0]}' if near else '',
        )
    if path.exists():
        content = _read(path)
        theirs = content['fingerprint']
        differ = _differing(ours, theirs)
        _check_may_change(workdir, differ - allowed, theirs, ours, has_flag=allow_change is not None)
        _check_keeps_shapes(workdir, differ)
        if differ and is_process_zero():
            changes = [
                {'step': step, 'field': name, 'from': theirs.get(name), 'to': ours.get(name)} for name in sorted(differ)
            ]
            changes = [*content.get('changes', []), *changes]
            _save(workdir, config, tokenizer, ours, content, changes=changes)
            say(f'Changed from step {step or 0} on: {describe_differences(differ, theirs, ours)}')
        return
    if is_process_zero():
        write(workdir, config, tokenizer, ours, start)


_OPTIONAL = {  # what a fingerprint need not hold
    'init',  # a hash of the initial weights
    *names_with(Role.IDENTITY_IF_SET, Config),
    *(f'data.{name}' for name in names_with(Role.IDENTITY_IF_SET, Data)),
    *(f'train.{name}' for name in names_with(Role.IDENTITY_IF_SET, Train)),
}
_SHAPES = {  # what the arrays of a state get their shapes and names from
    'tokenizer',
    *(f'model.{name}' for name in names_with(Role.SHAPES, Model)),
    *(f'optimizer.{name}' for name in names_with(Role.SHAPES, Optimizer)),
}


def _check_may_change(workdir: str, differ: set[str], theirs: dict, ours: dict, *, has_flag: bool) -> None:
    """Raises BadInput when a field differs. has_flag: whether the command has --allow_change."""
    if not differ:
        return
    fixed = sorted(differ & _SHAPES)
    fork = f'name another --workdir; with --config.init={workdir} it starts from the weights of this run'
    fix = fork if fixed or not has_flag else f'name another --workdir, or --allow_change={",".join(sorted(differ))}'
    raise BadInput(
        str(workdir), f'holds another run: {describe_differences(differ, theirs, ours)}', 'the same values', fix
    )


def _check_keeps_shapes(workdir: str, differ: set[str]) -> None:
    """Raises BadInput for a change that the arrays of a checkpoint cannot go along with."""
    if fixed := sorted(differ & _SHAPES):
        raise BadInput(
            '--allow_change',
            f'names {", ".join(fixed)}, which the checkpoints of {workdir} cannot follow',
            'fields that leave parameters and moments as they are',
            f'another --workdir with --config.init={workdir}',
        )


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> set[str]:
    """The names under which two fingerprints have different values, or only one of them has any."""
    return {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}


def describe_differences(differ: Iterable[str], theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Fields in which a workdir's run differs from the one requested, with both values."""
    return ', '.join(f'{name} ({theirs.get(name)!r} there, {ours.get(name)!r} asked)' for name in sorted(differ))


def write(
    workdir: str,
    config: Config | FinetuneConfig,
    tokenizer: Tokenizer,
    fingerprint: dict[str, Any],
    start: Recorded | None = None,
) -> None:
    """Makes a directory a workdir: its tokenizer (so that it can be used where its corpus is not), then config.json.

    Args: start, as of `claim`.
    """
    epath.Path(workdir).mkdir(parents=True, exist_ok=True)
    more = {} if start is None else {'start': start.to_json()}
    _save(workdir, config, tokenizer, fingerprint, {}, versions=package_versions(), **more)


def _save(
    workdir: str,
    config: Config | FinetuneConfig,
    tokenizer: Tokenizer,
    fingerprint: dict[str, Any],
    earlier: dict[str, Any],
    **more: Any,
) -> None:
    """Writes the tokenizer, then config.json: what it held earlier with the new values."""
    tokenizer.save(epath.Path(workdir) / 'tokenizer')
    run = {'config': dataclasses.asdict(config), 'directory': current_directory_from(workdir)}
    content = earlier | run | {'fingerprint': fingerprint} | more
    write_whole(epath.Path(workdir) / 'config.json', json.dumps(content, indent=2) + '\n')


def package_versions() -> dict[str, str]:
    """Those of the packages that a run's numbers may depend on."""
    return {name: metadata.version(name) for name in _RECORDED_VERSIONS}


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
    found = load_settings(workdir)
    if 'task' in found:
        fix = f'python -m bert_jax export --workdir={workdir} --output=…'
        raise BadInput(str(path), 'is of a fine-tuned model', 'of a pretraining run', fix)
    return with_values_before(config_module.resolve(found), found)


def load_settings(workdir: str) -> dict[str, Any]:
    """The values of the config of the run in a workdir, as JSON; relative paths lead to their files from here.

    A workdir may come from somebody else: fields that name a place to write to are left out, which is for the command
    line to say.

    Raises:
      BadInput: when there is none.
    """
    path = epath.Path(workdir) / 'config.json'
    content = _read(path)
    section = FinetuneConfig if 'task' in content['config'] else Config
    trusted, ignored = without_places_to_write(section, content['config'])
    if ignored:
        _report_ignored(str(path), tuple(f'{name}={value!r}' for name, value in ignored.items()))
    return resolve_recorded_paths(workdir, content.get('directory'), trusted)


@functools.cache  # a command reads a config more than once
def _report_ignored(path: str, settings: tuple[str, ...]) -> None:
    say(f'{path}: {", ".join(settings)} is ignored; what a command writes to is taken from --config alone.')


def load_fingerprint(workdir: str) -> dict[str, Any]:
    """The fingerprint of the run in a workdir.

    Raises:
      BadInput: when there is none.
    """
    return _read(epath.Path(workdir) / 'config.json')['fingerprint']


def load_recorded_start(workdir: str) -> dict[str, Any] | None:
    """What a workdir records of the weights that its run started from; None for random ones, and in old workdirs.

    Raises:
      BadInput: when there is no run.
    """
    return _read(epath.Path(workdir) / 'config.json').get('start')


def split_step(name: str) -> tuple[str, int | None]:
    """(directory, step) of a model's name, `DIRECTORY` or `WORKDIR@STEP`; the step is None where none is named.

    Raises:
      BadInput: when what follows the `@` is no step, or the directory is no workdir and so has none.
    """
    directory, at, step = name.rpartition('@')
    if not at or epath.Path(name).exists():
        return name, None
    if not (step.isascii() and step.isdecimal()):
        if epath.Path(directory).exists():
            raise BadInput(name, f'names the step {step!r}', 'WORKDIR@STEP with a number', directory)
        return name, None
    return directory, int(step)


def _read(path: epath.Path) -> dict:
    if not path.exists():
        raise BadInput(
            str(path), 'does not exist', 'the workdir of a run', 'python -m bert_jax train --config=… --workdir=…'
        )
    content = read_given_json(path, 'the file that train wrote')
    if not all(isinstance(content.get(name), dict) for name in ('config', 'fingerprint')):
        raise BadInput(
            str(path), 'is not the config of a run', 'the file that train wrote; that of an export is another'
        )
    return content
