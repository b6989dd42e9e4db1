"""The counts of `plan` agree with published sizes, real arrays and compiled programs."""

import math
from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.family import build_model, num_parameters
from bert_jax.model.inputs import Inputs
from bert_jax.plan import planning, search, targets
from bert_jax.plan.analytic import estimate
from bert_jax.plan.program import compile_step
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.memory import batch_shapes
from bert_jax.train.program import build_program
from bert_jax.train.speed import full_batch_flops
from tests.support.configs import PLANNED_FAMILIES, planned_run

DATA_ALONE = {'data': 4, 'fsdp': 1, 'tensor': 1}


def published(size: str, **changes: object) -> config.Config:
    chosen = config.bert(size)
    chosen.update_from_flattened_dict({'model.dtype': 'bfloat16'} | changes)
    return config.resolve(chosen)


ROWS, LENGTH, PREDICTIONS = 256, 512, 77


def _run(model: config.Model, vocab_size: int) -> config.Config:
    """A run of `ROWS` full rows."""
    return config.Config(
        model=model,
        data=config.Data(sequence_length=LENGTH, pairing='nsp' if model.LEARNS_PAIRS else 'none'),
        tokenizer=config.Tokenizer(vocab_size=vocab_size),
        train=config.Train(global_batch_size=ROWS),
    )


def _dense(*sizes: tuple[int, int], tokens: int = ROWS * LENGTH) -> list[tuple[int, int, int]]:
    """Matmuls of tokens with weights of these sizes."""
    return [(tokens, *size) for size in sizes]


def _attention(num_heads: int, head: int, visible: int = LENGTH) -> list[tuple[int, int, int]]:
    return ROWS * num_heads * [(LENGTH, head, visible), (LENGTH, visible, head)]


def _bert(layers: int, hidden: int, vocabulary: int) -> list[tuple[int, int, int]]:
    layer = _dense(*4 * [(hidden, hidden)], *2 * [(hidden, 4 * hidden)]) + _attention(hidden // 64, 64)
    heads = _dense((hidden, hidden), (hidden, vocabulary), tokens=ROWS * PREDICTIONS)
    return layers * layer + heads + _dense((hidden, hidden), (hidden, 2), tokens=ROWS)


# A family in published sizes; all matmuls (m, k, n) of its forward pass; its parameters.
PUBLISHED = {
    'bert_base': (_run(config.Bert(), 30_522), _bert(12, 768, 30_522), 110_106_428),
    'bert_large': (
        _run(config.Bert(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096), 30_522),
        _bert(24, 1024, 30_522),
        336_226_108,
    ),
    'modernbert_base': (
        _run(config.ModernBert(), 50_368),
        22 * _dense(*4 * [(768, 768)], *3 * [(768, 1152)])
        + 8 * _attention(12, 64)
        + 14 * _attention(12, 64, visible=64 + 1 + 64)
        + _dense((768, 768), (768, 50_368), tokens=ROWS * PREDICTIONS),
        149_655_232,
    ),
    'eurobert_210m': (
        _run(config.EuroBert(), 128_256),
        12 * (_dense(*4 * [(768, 768)], *3 * [(768, 3072)]) + _attention(12, 64))
        + _dense((768, 128_256), tokens=ROWS * PREDICTIONS),
        12 * (4 * 768**2 + 3 * 768 * 3072 + 2 * 768) + 768 + 2 * 128_256 * 768,
    ),
    'eurobert_610m': (
        _run(
            config.EuroBert(
                num_layers=26, hidden_size=1152, num_heads=18, num_key_value_heads=6, intermediate_size=4096
            ),
            128_256,
        ),
        26 * (_dense(*2 * [(1152, 1152)], *2 * [(1152, 6 * 64)], *3 * [(1152, 4096)]) + _attention(18, 64))
        + _dense((1152, 128_256), tokens=ROWS * PREDICTIONS),
        26 * (2 * 1152**2 + 2 * 1152 * 6 * 64 + 3 * 1152 * 4096 + 2 * 1152) + 1152 + 2 * 128_256 * 1152,
    ),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_flops_and_parameters_of_published_sizes_equal_a_list_by_hand(name: str) -> None:
    run, matmuls, parameters = PUBLISHED[name]
    assert num_parameters(run.model, run.tokenizer.vocab_size) == parameters
    assert full_batch_flops(run, run.tokenizer.vocab_size) == 3 * 2 * sum(map(math.prod, matmuls))


FAMILIES_AND_DROPOUT = [
    ('bert', {}),
    ('bert', {'model.dropout_rate': 0.0, 'model.attention_dropout_rate': 0.0}),
    ('modernbert', {}),
    ('modernbert', {'model.attention_dropout': 0.1, 'model.mlp_dropout': 0.1, 'model.embedding_dropout': 0.1}),
    ('modernbert', {'model.layer_types': ('sliding_attention',) * 6, 'data.sequence_length': 30}),
    ('modernbert', {'model.local_attention': 64}),  # wider than a row
    ('eurobert', {}),
    ('eurobert', {'model.attention_dropout': 0.1}),
]


@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
@pytest.mark.parametrize('family, changes', FAMILIES_AND_DROPOUT)
def test_counted_activations_are_what_the_traced_encoder_keeps(
    family: str, changes: dict[str, object], remat: str
) -> None:
    run = planned_run(family, **{'train.global_batch_size': 5, 'model.remat': remat} | changes)
    counted = estimate(run, {'data': 1, 'fsdp': 1, 'tensor': 1})
    assert counted.activation_bytes == pytest.approx(_kept_by_layers(run), rel=0.02)


def _kept_by_layers(run: config.Config) -> int:
    """Bytes of the residuals of the encoder's backward pass that the scan over its layers stacks up."""
    rows, length = run.train.global_batch_size, run.data.sequence_length
    graph, params = nnx.split(nnx.eval_shape(lambda: build_model(run.model, 1000, nnx.Rngs(0))))
    ids, scalar = jax.ShapeDtypeStruct((rows, length), np.int32), jax.ShapeDtypeStruct((), np.uint32)

    def residuals(params: nnx.State, ids: jax.Array, base: jax.Array) -> object:
        key = DropoutKey(base, ids[:, 0].astype(np.uint32))
        return jax.vjp(lambda params: nnx.merge(graph, params).encode(Inputs(ids, ids, ids, ids), key), params)[1]

    shapes = jax.tree.leaves(jax.eval_shape(residuals, params, ids, scalar))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in shapes if leaf.ndim > 2 and leaf.shape[1] == rows)


@pytest.mark.parametrize('family', PLANNED_FAMILIES)
def test_bytes_per_device_equal_those_of_real_arrays(family: str) -> None:
    chosen = planned_run(family, **{'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2})
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


# Batch fields that the step of a family without pairs and token types does not read, so that XLA drops them.
UNREAD = ('token_type_ids', 'cls_positions', 'next_sentence_labels', 'next_sentence_weights')
# A long row with narrow layers, in which attention is a large part of the work.
NARROW = {'data.sequence_length': 128, 'model.max_positions': 128, 'model.intermediate_size': 64}


@pytest.mark.slow
@pytest.mark.parametrize(
    'family, changes',
    [
        ('bert', {}),
        ('bert', NARROW | {'model.remat': 'dots'}),
        ('modernbert', {}),
        ('modernbert', NARROW | {'model.local_attention': 64}),
        ('modernbert', NARROW | {'model.local_attention': 64, 'model.remat': 'dots'}),
        ('eurobert', {}),
        ('eurobert', {'model.remat': 'full'}),
    ],
)
def test_compiled_step_has_the_counted_matmuls_activations_and_gradients(
    family: str, changes: dict[str, object]
) -> None:
    chosen = planned_run(family, **{'mesh.data': 4} | changes)
    program, compiled = compile_step(chosen, jax.devices()[:4])
    counted = estimate(chosen, DATA_ALONE)
    assert program.work.matmul_flops == pytest.approx(counted.work.matmul_flops, rel=0.05)  # padding of the vocabulary
    assert program.activations == pytest.approx(counted.activation_bytes, rel=0.05)
    batch = batch_shapes(chosen, make_mesh(chosen.mesh, chosen.model, chosen.train, jax.devices()[:4]))
    unread = 0 if family == 'bert' else sum(getattr(batch, name).size * 4 // 4 for name in UNREAD)  # 4 bytes, 4 devices
    state = counted.parameter_bytes + counted.optimizer_bytes
    assert program.arguments == state + counted.batch_bytes - unread + 4
    memory = compiled.memory_analysis()
    assert program.total_bytes == (
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    )  # fmt: skip
    assert program.total_bytes == pytest.approx(counted.total_bytes, rel=0.2)
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
    undecided = planning.apply_changes(chosen, {'train.microbatches': -1})
    assert planning.choose_microbatches(undecided, target).train.microbatches == num_microbatches
    name = next(change.removeprefix('--target=') for change in changes if change.startswith('--target='))
    assert planning.analytic_plan(chosen, targets.parse_target(name)).fits


@pytest.mark.parametrize('get_config', [config.bert, config.modernbert])
def test_flags_of_the_best_candidate_give_its_plan(
    get_config: Callable[[str], ConfigDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('bert_jax.plan.program.missing_compiler', lambda target: 'not to be used here')
    target = targets.parse_target('tpu-v5e:2x2')
    overridden = get_config('base')
    overridden.model.dtype = 'bfloat16'
    chosen = config.resolve(overridden)
    ranking = search.search(chosen, target)
    seconds = [plan.time.total for _, plan in ranking.plans]
    assert seconds == sorted(seconds) and all(plan.fits and not plan.is_compiled for _, plan in ranking.plans)
    assert ranking.tried == ranking.too_large + len(ranking.plans)
    for override in planning.as_flags(ranking.plans[0][0]).split():
        name, value = override.removeprefix('--config.').split('=')
        overridden.update_from_flattened_dict({name: int(value) if value.isdigit() else value})
    assert config.resolve(overridden) == ranking.plans[0][1].config
    too_few = planning.apply_changes(chosen, {'train.global_batch_size': 1})
    with pytest.raises(BadInput, match='no mesh of 16 devices divides it'):
        search.search(too_few, targets.parse_target('tpu-v5e:4x4'))
