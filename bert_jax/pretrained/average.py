"""Averages the weights of several checkpoints of one run or of several (Izmailov et al. 2018, Wortsman et al. 2022)."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.files import json_digest
from bert_jax.model.replaced_tokens import to_family
from bert_jax.pretrained.load import Pretrained, from_params
from bert_jax.pretrained.provenance import AveragedCheckpoint, Provenance, of_run, start_of
from bert_jax.runtime.paths import check_path
from bert_jax.text.tokenizer import Tokenizer, load_saved_tokenizer
from bert_jax.workdir import identity, seal
from bert_jax.workdir.checkpoint import checkpoint_directory, restore_whole

_EXAMPLE = '--average=9000,10000 with --workdir, or --average=runs/a@10000:0.7,runs/b@10000:0.3'


def parse(text: str, workdir: str | None = None) -> tuple[AveragedCheckpoint, ...]:
    """Returns the checkpoints that `--average` names: `STEP` or `WORKDIR@STEP`, separated by commas, with `:WEIGHT`.

    The parts are checked: the checkpoints exist and fit together. No device is used.

    Args:
      workdir: that of parts without one.

    Raises:
      BadInput: names what is missing or does not fit.
    """
    named = [_parse_part(part.strip(), workdir) for part in text.split(',')]
    if len({(part.workdir, part.step) for part in named}) < max(len(named), 2):
        raise BadInput(f'--average={text}', 'does not name several checkpoints, each once', _EXAMPLE)
    total = sum(part.weight for part in named)
    if not 0 < total < math.inf:
        raise BadInput(f'--average={text}', f'has weights that add up to {total:g}', 'a sum above 0', _EXAMPLE)
    for part in named:
        _check_exists(part)
    _check_fit(named)
    return tuple(dataclasses.replace(part, weight=part.weight / total) for part in named)


def _parse_part(text: str, workdir: str | None) -> AveragedCheckpoint:
    name, colon, weight = text.rpartition(':')
    if not colon or not name or '@' in weight:
        name, weight = text, '1'
    directory, at, step = name.rpartition('@')
    directory = directory if at else workdir or ''
    try:
        part = AveragedCheckpoint(directory, int(step), float(weight))
    except ValueError:
        found = f'names {text!r}'
        raise BadInput('--average', found, 'STEP or WORKDIR@STEP, and an optional :WEIGHT', _EXAMPLE) from None
    if not directory:
        raise BadInput('--average', f'names step {step} of no run', 'WORKDIR@STEP, or a --workdir', _EXAMPLE)
    check_path('average', directory)
    return part


def _check_exists(part: AveragedCheckpoint) -> None:
    if not identity.is_workdir(part.workdir):
        raise BadInput(f'--average: {part.workdir}', 'is not the workdir of a run', 'WORKDIR@STEP', _EXAMPLE)
    steps = seal.sealed_steps(checkpoint_directory(part.workdir))
    if part.step not in steps:
        fix = 'train.keep_checkpoints and train.keep_every say which checkpoints stay'
        raise BadInput(
            f'--average: {part.workdir}', f'holds no checkpoint of step {part.step}', seal.describe_steps(steps), fix
        )


def _check_fit(parts: Sequence[AveragedCheckpoint]) -> None:
    """Raises BadInput if the models have different architectures or tokenizers."""
    first, *others = parts
    model, tokenizer = _model(first), identity.load_fingerprint(first.workdir)['tokenizer']
    for other in others:
        theirs = model.with_architecture_of(_model(other))
        names = [field.name for field in dataclasses.fields(theirs)]
        differ = [f'model.{name}' for name in names if getattr(theirs, name) != getattr(model, name, None)]
        if identity.load_fingerprint(other.workdir)['tokenizer'] != tokenizer:
            differ.append('the tokenizer')
        if differ:
            found = f'differs from {first.workdir}@{first.step} in {", ".join(differ)}'
            expected = 'checkpoints of one architecture with one tokenizer'
            raise BadInput(f'--average: {other.workdir}@{other.step}', found, expected)


def _model(part: AveragedCheckpoint) -> config.Model:
    return config.model_at(identity.load_config(part.workdir), part.step)


def evaluation_stem(parts: Sequence[AveragedCheckpoint]) -> str:
    """Returns the stem of the file in which `evaluate` keeps its result: distinct averages have distinct files."""
    if not parts:
        return 'evaluation'
    manifests = [(checkpoint_directory(part.workdir) / str(part.step) / seal.MANIFEST).read_text() for part in parts]
    contents = [[text, part.weight] for text, part in zip(manifests, parts, strict=True)]
    return f'evaluation-average-{json_digest(contents)[:8]}'


def averaged_params(parts: Sequence[AveragedCheckpoint]) -> nnx.State:
    """Returns the weighted mean of the checkpoints' parameters, float32, summed in float64 one checkpoint at a time.

    Raises:
      BadInput: if a checkpoint is damaged.
    """
    weighted = (
        jax.tree.map(functools.partial(_scaled, part.weight), params)
        for part, params in zip(parts, _params_of(parts), strict=True)
    )
    total = functools.reduce(lambda first, second: jax.tree.map(np.add, first, second), weighted)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), total)


def _scaled(weight: float, leaf: jax.Array) -> np.ndarray:
    return weight * np.asarray(leaf, np.float64)


def _params_of(parts: Sequence[AveragedCheckpoint]) -> Iterator[nnx.State]:
    for part in parts:
        tokenizer, resolved = _tokenizer(part), identity.load_config(part.workdir)
        yield restore_whole(part.workdir, resolved, tokenizer.vocab_size, part.step).weights


def _tokenizer(part: AveragedCheckpoint) -> Tokenizer:
    return load_saved_tokenizer(Path(part.workdir) / 'tokenizer')


def load_average(parts: Sequence[AveragedCheckpoint]) -> Pretrained:
    """Returns the averaged model, with the tokenizer of the first run. Its `step` is the largest of the averaged ones.

    Raises:
      BadInput: if a checkpoint is damaged.
    """
    first, step = parts[0], max(part.step for part in parts)
    model, tokenizer = _model(first), _tokenizer(first)
    objective = identity.load_config(first.workdir).in_phases[0].objective
    params = to_family(averaged_params(parts), objective, model, tokenizer.vocab_size)
    pretrained = from_params(params, model, tokenizer, step, _provenance(parts))
    return dataclasses.replace(pretrained, average=tuple(parts))


def _provenance(parts: Sequence[AveragedCheckpoint]) -> Provenance:
    """Returns what all checkpoints have trained."""
    each = [of_run(identity.load_config(part.workdir), part.step, start_of(part.workdir)) for part in parts]
    positions = [one.positions_trained for one in each if one.positions_trained is not None]
    untrained = dict.fromkeys(head for one in each for head in one.untrained_heads)
    return Provenance(min(positions, default=None), tuple(untrained))


def describe_average(parts: Sequence[AveragedCheckpoint]) -> str:
    """Lists the checkpoints: `steps 4,000 and 5,000 of mine`, with weights where they differ."""
    is_uniform = len({part.weight for part in parts}) == 1
    runs = dict.fromkeys(part.workdir for part in parts)
    if is_uniform and len(runs) == 1:
        *steps, last = (f'{part.step:,}' for part in parts)
        return f'steps {", ".join(steps)} and {last} of {parts[0].run_name}'
    listed = [
        f'{part.run_name} at step {part.step:,}' + ('' if is_uniform else f' (weight {part.weight:.3g})')
        for part in parts
    ]
    return f'{", ".join(listed[:-1])} and {listed[-1]}'
