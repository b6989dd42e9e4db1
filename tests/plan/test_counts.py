"""The counts of `plan` agree with published sizes, real arrays and compiled programs."""

import math

import jax
import numpy as np
import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.plan import planning, search, targets
from bert_jax.plan.analytic import estimate, full_batch_flops
from bert_jax.plan.program import compile_step
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.program import build_program
from tests.support.configs import planned_run

DATA_ALONE = {'data': 4, 'fsdp': 1, 'tensor': 1}


def published(size: str, **changes: object) -> config.Config:
    chosen = config.bert(size)
    chosen.update_from_flattened_dict({'model.dtype': 'bfloat16'} | changes)
    return config.resolve(chosen)


@pytest.mark.parametrize(
    'size, layers, hidden, heads, flops',
    [('base', 12, 768, 12, 17_864_910_176_256), ('large', 24, 1024, 16, 61_554_926_026_752)],
)
def test_flops_of_published_sizes_equal_a_list_of_all_matmuls(
    size: str, layers: int, hidden: int, heads: int, flops: int
) -> None:
    rows, length, predictions, vocabulary = 256, 128, 19, 30_522
    head = hidden // heads
    layer = 4 * [(rows * length, hidden, hidden)] + 2 * [(rows * length, hidden, 4 * hidden)]
    layer += rows * heads * [(length, head, length), (length, length, head)]
    once = [(rows * predictions, hidden, hidden), (rows * predictions, hidden, vocabulary)]
    once += [(rows, hidden, hidden), (rows, hidden, 2)]
    forward = 2 * sum(map(math.prod, layers * layer + once))
    assert full_batch_flops(published(size)) == 3 * forward == flops


def test_bytes_per_device_equal_those_of_real_arrays() -> None:
    chosen = planned_run(**{'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2})
    mesh = make_mesh(chosen.mesh, chosen.model, chosen.train)
    program = build_program(chosen.model, chosen.optimizer, chosen.train, chosen.tokenizer.vocab_size, mesh)
    shapes, shardings = program.shapes, program.shardings
    state = jax.tree.map(
        lambda leaf, sharding: jax.device_put(np.zeros(leaf.shape, leaf.dtype), sharding), shapes, shardings
    )

    def on_first_device(tree: object) -> int:
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    counted = estimate(chosen, dict(mesh.shape))
    assert counted.parameter_bytes == on_first_device(state.params)
    assert counted.optimizer_bytes == on_first_device(state.opt_state)
    assert counted.checkpoint_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.slow
def test_compiled_step_has_the_counted_matmuls_activations_and_gradients() -> None:
    chosen = planned_run(**{'mesh.data': 4})
    program, compiled = compile_step(chosen, jax.devices()[:4])
    counted = estimate(chosen, DATA_ALONE)
    assert program.work.matmul_flops * 4 == pytest.approx(counted.flops_per_step, rel=0.05)  # padding of the vocabulary
    assert program.activations == pytest.approx(counted.activation_bytes, rel=0.05)
    assert program.arguments == counted.parameter_bytes + counted.optimizer_bytes + counted.batch_bytes + 4
    memory = compiled.memory_analysis()
    assert program.total_bytes == (
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    )  # fmt: skip
    over_data = [each for each in program.work.collectives if planning.axis_of(each, DATA_ALONE) == 'data']
    exchanged = sum(each.bytes * each.count for each in over_data if each.kind == 'all-reduce')
    assert exchanged == pytest.approx(counted.parameter_bytes, rel=1e-3)  # each gradient once


@pytest.mark.parametrize(
    'name, expected',
    [
        ('tpu-v5:4x4', 'did you mean tpu-v5'),
        ('h10:1x8', 'h100'),
        ('tpu-v5e:3x5', 'tpu-v5e is not offered as 3x5'),
        ('tpu-v5p:4x4', 'multiples of 4'),
        ('tpu-v4:8x4x4', 'is not offered as'),
        ('h200:1x9', 'at most 8 GPUs'),
        ('h200', 'h200:HOSTSxGPUS'),
        ('b200:0x8', 'b200:HOSTSxGPUS'),
    ],
)
def test_unknown_target_is_reported_with_a_valid_one(name: str, expected: str) -> None:
    with pytest.raises(BadInput) as found:
        targets.parse_target(name)
    assert expected in str(found.value)


def test_target_has_the_devices_and_hosts_of_its_name() -> None:
    for name, devices, hosts in [('tpu-v5e:4x4', 16, 4), ('tpu-v5p:8x8x8', 512, 128), ('H200:2x8', 16, 2)]:
        target = targets.parse_target(name)
        assert (target.num_devices, target.num_hosts) == (devices, hosts)


def test_mesh_that_does_not_cover_the_target_is_rejected() -> None:
    with pytest.raises(BadInput, match='there are 16 devices'):
        planning.analytic_plan(published('base', **{'mesh.data': 3}), targets.parse_target('tpu-v5e:4x4'))


def test_suggested_changes_are_the_smallest_that_fit() -> None:
    target = targets.parse_target('tpu-v5e:2x4')
    chosen = published('large', **{'data.sequence_length': 512})
    plan = planning.analytic_plan(chosen, target)
    assert not plan.fits
    changes = list(planning.smallest_changes(plan))
    num_microbatches = next(
        int(change.rpartition('=')[2]) for change in changes if change.startswith('--config.train.micro')
    )

    def fits(microbatches: int) -> bool:
        changed = planning.apply_changes(chosen, {'train.microbatches': microbatches})
        return planning.analytic_plan(changed, target).fits

    assert fits(num_microbatches) and not fits(num_microbatches // 2)
    name = next(change.removeprefix('--target=') for change in changes if change.startswith('--target='))
    assert planning.analytic_plan(chosen, targets.parse_target(name)).fits


def test_flags_of_the_best_candidate_give_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('bert_jax.plan.program.missing_compiler', lambda target: 'not to be used here')
    target = targets.parse_target('tpu-v5e:2x2')
    chosen = published('base')
    ranking = search.search(chosen, target)
    seconds = [plan.time.total for _, plan in ranking.plans]
    assert seconds == sorted(seconds) and all(plan.fits and not plan.is_compiled for _, plan in ranking.plans)
    assert ranking.tried == ranking.too_large + len(ranking.plans)
    overridden = config.bert('base')
    overridden.model.dtype = 'bfloat16'
    for override in planning.as_flags(ranking.plans[0][0]).split():
        name, value = override.removeprefix('--config.').split('=')
        overridden.update_from_flattened_dict({name: int(value) if value.isdigit() else value})
    assert config.resolve(overridden) == ranking.plans[0][1].config
    too_few = planning.apply_changes(chosen, {'train.global_batch_size': 1})
    with pytest.raises(BadInput, match='no mesh of 16 devices divides it'):
        search.search(too_few, targets.parse_target('tpu-v5e:4x4'))
