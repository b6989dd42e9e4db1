"""A run resumes with changed values only if allowed, and a fork keeps the moments only if requested."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.pretrain import pretrain
from bert_jax.pretrained.initialize import pretraining_start
from bert_jax.runtime.mesh import make_mesh
from bert_jax.text.tokenizer import load_tokenizer
from bert_jax.train.program import build_program
from bert_jax.workdir.checkpoint import restore_whole
from tests.support.configs import as_config, prepared

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]


@pytest.fixture(scope='module')
def begun(one_device, tmp_path_factory) -> tuple[config.Config, Path]:
    """Returns a config and the workdir of its run of four steps."""
    directory = tmp_path_factory.mktemp('fork')
    changes = {'train__steps': 4, 'train__examples': (), 'optimizer__warmup_steps': 1}
    resolved = as_config(prepared(directory, **changes))
    assert pretrain(resolved, str(directory / 'run')).finished
    return resolved, directory / 'run'


def _changed(resolved: config.Config, **values: dict) -> config.Config:
    sections = {name: dataclasses.replace(getattr(resolved, name), **changes) for name, changes in values.items()}
    return dataclasses.replace(resolved, **sections)


def test_changed_fields_are_rejected_or_allowed_by_name(begun) -> None:
    resolved, workdir = begun
    before = (workdir / 'config.json').read_text()
    longer = _changed(resolved, train={'steps': 6}, optimizer={'weight_decay': 0.5})
    with pytest.raises(
        BadInput, match='weight_decay .workdir: 0.01, requested: 0.5., train.steps .workdir: 4, requested: 6'
    ) as raised:
        pretrain(longer, str(workdir))
    assert raised.value.fix.endswith('--allow_change=optimizer.weight_decay,train.steps')
    with pytest.raises(BadInput, match='weight_decay'):
        pretrain(longer, str(workdir), allow_change=['train.steps'])
    with pytest.raises(BadInput, match='names train.step, which cannot be changed or does not exist') as raised:
        pretrain(longer, str(workdir), allow_change=['train.step'])
    assert raised.value.fix == '--allow_change=train.steps'
    wider = _changed(resolved, model={'intermediate_size': 64})
    with pytest.raises(BadInput, match='names model.intermediate_size, but the checkpoints of .* depend on it'):
        pretrain(wider, str(workdir), allow_change=['model.intermediate_size'])
    assert (workdir / 'config.json').read_text() == before
    outcome = pretrain(longer, str(workdir), allow_change=['train.steps', 'optimizer.weight_decay'])
    assert outcome.finished and outcome.resumed_from == 4 and outcome.step == 6
    recorded = json.loads((workdir / 'config.json').read_text())
    assert recorded['changes'] == [
        {'step': 4, 'field': 'optimizer.weight_decay', 'from': 0.01, 'to': 0.5},
        {'step': 4, 'field': 'train.steps', 'from': 4, 'to': 6},
    ]
    assert recorded['config']['train']['steps'] == 6
    assert pretrain(longer, str(workdir)).finished


def _new_state(resolved: config.Config, init: str, keeps_moments: bool):
    forked = dataclasses.replace(resolved, init=init, init_optimizer=keeps_moments)
    point = pretraining_start(forked, 'nowhere')
    tokenizer = load_tokenizer(Path(init.partition('@')[0]) / 'tokenizer', lowercase=True, strip_accents=None)
    mesh = make_mesh(config.Mesh(data=1, fsdp=2), point.config.model, config.Train(), jax.local_devices()[:2])
    model, optimizer, train = point.config.model, point.config.optimizer, config.Train(steps=4)
    program = build_program(model, optimizer, train, tokenizer.vocab_size, mesh)
    state = program.init_state(0, point.params(tokenizer))
    return point, point.restore_moments(state, program.shardings), program.shardings


def test_fork_keeps_the_moments_and_nothing_else(begun) -> None:
    resolved, workdir = begun
    theirs = restore_whole(str(workdir), resolved, 444)
    point, state, shardings = _new_state(resolved, str(workdir), True)
    assert point.fingerprint['init_optimizer'] is True
    adam, schedule = state.opt_state[1][0], state.opt_state[1][2]
    assert int(state.step) == 0 and int(schedule.count) == 0 and isinstance(schedule, optax.ScaleByScheduleState)
    assert int(adam.count) == int(theirs.step)
    pairs = [(state.params, theirs.params), (adam.mu, theirs.opt_state[1][0].mu), (adam.nu, theirs.opt_state[1][0].nu)]
    for ours, kept in pairs:
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(kept), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding == sharding
    _, new, _ = _new_state(resolved, str(workdir), False)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(new.opt_state))


def test_moments_of_another_shape_are_reported(begun, tmp_path) -> None:
    resolved, workdir = begun
    with pytest.raises(BadInput, match='has the moments of adamw; this run has lamb'):
        _new_state(_changed(resolved, optimizer={'name': 'lamb'}), str(workdir), True)
    longer = _changed(resolved, data={'sequence_length': 128}, model={'max_positions': 128})
    with pytest.raises(BadInput, match='other shapes'):
        _new_state(longer, str(workdir), True)
    with pytest.raises(BadInput, match='config.init names no run'):
        config.resolve({'init_optimizer': True})
