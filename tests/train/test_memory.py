"""Needed and available memory, and settings to try, are reported before or after a device runs out."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train import memory
from bert_jax.train.memory import (
    device_bytes,
    highest_bytes,
    refused_bytes,
    reporting_out_of_memory,
    resolve_microbatches,
)

MODEL = config.Bert(num_layers=1, hidden_size=32, num_heads=2, intermediate_size=64, max_positions=64)
VOCAB = 300
CONFIG = config.Config(
    model=MODEL,
    data=config.Data(sequence_length=64),
    train=config.Train(steps=10, global_batch_size=2, microbatches=-1),
    optimizer=config.Optimizer(name='adamw', warmup_steps=5),
)
MESH = make_mesh(config.Mesh(data=1), MODEL, CONFIG.train, jax.devices()[:1])


def _needs(microbatches: int) -> int:
    train = dataclasses.replace(CONFIG.train, microbatches=microbatches)
    lowered = memory.lower_step(dataclasses.replace(CONFIG, train=train), MESH, VOCAB)
    return highest_bytes(lowered.compile().memory_analysis(), 'cpu')


@pytest.mark.slow
def test_fewest_microbatches_that_fit_are_chosen_or_alternatives_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, 'lower_step', functools.cache(memory.lower_step))  # trace each step once
    whole, halves = _needs(1), _needs(2)
    assert halves < whole
    assert resolve_microbatches(CONFIG, MESH, VOCAB, limit=whole).train.microbatches == 1
    assert resolve_microbatches(CONFIG, MESH, VOCAB, limit=whole - 1).train.microbatches == 2
    with pytest.raises(BadInput, match=r'needs .* with 2 microbatches; a device has 0.10 MiB') as raised:
        resolve_microbatches(CONFIG, MESH, VOCAB, limit=100_000)
    assert '--config.model.remat=dots' in raised.value.fix and 'microbatches' not in raised.value.fix


@pytest.mark.compiles
def test_cpu_update_makes_no_copy_of_the_moments() -> None:
    model, train = dataclasses.replace(MODEL, hidden_size=128), dataclasses.replace(CONFIG.train, microbatches=1)
    settings = dataclasses.replace(CONFIG, model=model, train=train)
    analysis = memory.lower_step(settings, MESH, 8000).compile().memory_analysis()  # parameters exceed activations
    parameters = analysis.argument_size_in_bytes / 3  # the state is parameters and two moments
    assert analysis.temp_size_in_bytes < 3.5 * parameters  # gradients, their squares, and gradients after clipping


def test_each_phase_gets_the_fewest_microbatches_that_fit_it() -> None:
    """A phase of few long rows may need more of them than one of many short rows, or fewer."""
    phases = tuple(config.Phase(steps=5, sequence_length=64, global_batch_size=rows) for rows in (2, 8))
    run = dataclasses.replace(CONFIG, phases=phases)
    resolved = resolve_microbatches(run, MESH, VOCAB, limit=_needs(1))
    first, second = (phase.train.microbatches for phase in resolved.in_phases)
    assert first == 1 and second > 1
    alone = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, global_batch_size=8))
    assert resolve_microbatches(alone, MESH, VOCAB, limit=_needs(1)).train.microbatches == second
    kept = dataclasses.replace(run, phases=tuple(dataclasses.replace(phase, microbatches=2) for phase in phases))
    assert resolve_microbatches(kept, MESH, VOCAB, limit=1) == kept


def test_explicit_number_of_microbatches_is_kept() -> None:
    train = dataclasses.replace(CONFIG.train, microbatches=3)
    assert resolve_microbatches(dataclasses.replace(CONFIG, train=train), MESH, VOCAB, limit=1).train.microbatches == 3


def test_out_of_memory_error_suggests_settings() -> None:
    train = config.Train(global_batch_size=48, microbatches=2)
    settings = dataclasses.replace(CONFIG, train=train)
    with pytest.raises(BadInput) as raised, reporting_out_of_memory(settings):
        jax.jit(lambda: jnp.zeros(2**50, jnp.int8))().block_until_ready()
    assert re.search(r'asked for 1,048,576\.00 GiB more; a device has [\d.]+ GiB', raised.value.found)
    assert raised.value.fix.startswith('--config.train.microbatches=3, or --config.model.remat=dots')
    assert '--config.train.microbatches=-1' in raised.value.fix
    with pytest.raises(BadInput) as raised, reporting_out_of_memory(settings, finds_microbatches=False):
        jax.jit(lambda: jnp.zeros(2**50, jnp.int8))().block_until_ready()
    assert raised.value.fix.startswith('--config.train.microbatches=3, ') and '=-1 finds' not in raised.value.fix
    with pytest.raises(ZeroDivisionError), reporting_out_of_memory(settings):
        raise ZeroDivisionError


def test_requested_bytes_are_parsed_from_the_message() -> None:
    libtpu = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm.'
    assert refused_bytes(libtpu) == 20.5 * 2**30
    assert refused_bytes('RESOURCE_EXHAUSTED: Out of memory') == float('inf')


def test_simulated_devices_share_the_free_memory() -> None:
    total = 8 * device_bytes()  # the tests simulate eight devices
    with open('/proc/meminfo') as lines:
        installed = int(next(lines).split()[1]) * 1024
    assert 0 < total <= installed
