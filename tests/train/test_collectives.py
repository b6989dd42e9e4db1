"""A compiled step exchanges exactly what it needs between devices, once."""

import jax
import numpy as np
import pytest

from bert_jax import config
from bert_jax.plan.planning import axis_of
from bert_jax.plan.program import compile_step
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.program import build_program

pytestmark = pytest.mark.compiles

SIZES = {'hidden_size': 32, 'num_heads': 4, 'intermediate_size': 96}
MODELS = {
    'bert': config.Bert(num_layers=3, max_positions=64, attention_dropout_rate=0.1, **SIZES),
    'modernbert': config.ModernBert(num_layers=7, local_attention=16, attention_dropout=0.1, **SIZES),
    'eurobert': config.EuroBert(num_layers=3, num_key_value_heads=2, attention_dropout=0.1, **SIZES),
}
SLOW_FAMILIES = [pytest.param(family, marks=[pytest.mark.slow] * (family != 'bert')) for family in MODELS]
VOCAB, LENGTH, BATCH = 2000, 64, 32
VOCAB_PADDED = 2048
SMALL = 1024  # bytes: losses, weights and norms


def _config(family: str, axes: dict[str, int], microbatches: int) -> config.Config:
    return config.Config(
        model=MODELS[family],
        data=config.Data(sequence_length=LENGTH),
        tokenizer=config.Tokenizer(vocab_size=VOCAB),
        train=config.Train(steps=10, global_batch_size=BATCH, microbatches=microbatches),
        optimizer=config.Optimizer(warmup_steps=5),
        mesh=config.Mesh(**axes),
    )


def _collectives(
    family: str, axes: dict[str, int], microbatches: int = 1
) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Returns (bytes, calls) of each collective larger than `SMALL`, by kind and axis."""
    devices = jax.devices()[: int(np.prod(list(axes.values())))]
    program, _ = compile_step(_config(family, axes, microbatches), devices)
    mesh = {'data': 1, 'fsdp': 1, 'tensor': 1} | axes
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for collective in program.work.collectives:
        if collective.bytes > SMALL:
            key = collective.kind, axis_of(collective, mesh)
            found.setdefault(key, []).append((collective.bytes, collective.count))
    return found


def _parameters(family: str) -> list[tuple[tuple[str, ...], int]]:
    """Returns (axes that a 2 x 2 x 2 mesh splits it over, bytes) of each parameter."""
    model = MODELS[family]
    mesh = make_mesh(config.Mesh(data=2, fsdp=2, tensor=2), model, config.Train(), jax.devices())
    program = build_program(model, config.Optimizer(), config.Train(), VOCAB, mesh)
    pairs = zip(jax.tree.leaves(program.shapes.params), jax.tree.leaves(program.shardings.params), strict=True)
    return [(tuple(filter(None, sharding.spec)), shape.size * 4) for shape, sharding in pairs]


@pytest.mark.slow
@pytest.mark.parametrize('family', MODELS)
def test_data_parallelism_only_reduces_each_gradient_once(family: str) -> None:
    found = _collectives(family, {'data': 2}, microbatches=4)
    assert found.keys() == {('all-reduce', 'data')}
    exchanged = sum(size * count for size, count in found['all-reduce', 'data'])
    everything = sum(size for _, size in _parameters(family))
    assert everything - SMALL * 8 <= exchanged <= everything + SMALL


@pytest.mark.parametrize('family', SLOW_FAMILIES)
def test_fsdp_exchanges_weights_and_gradients_but_no_activations(family: str) -> None:
    found = _collectives(family, {'data': 1, 'fsdp': 2}, microbatches=2)
    assert found.keys() <= {('all-gather', 'fsdp'), ('reduce-scatter', 'fsdp'), ('all-reduce', 'fsdp')}
    split = sum(size for axes, size in _parameters(family) if 'fsdp' in axes)
    whole = sum(size for axes, size in _parameters(family) if 'fsdp' not in axes)
    word = VOCAB_PADDED * SIZES['hidden_size'] * 4
    largest_weight = max(word, SIZES['hidden_size'] * SIZES['intermediate_size'] * 4)
    assert all(size <= largest_weight for of_kind in found.values() for size, _ in of_kind)

    def total(kind: str) -> int:
        return sum(size * count for size, count in found[kind, 'fsdp'])

    # Layers are gathered in the forward and in the backward pass and scattered once, in each of two microbatches.
    # All else, of which the tied embedding is the largest, is exchanged once.
    assert total('reduce-scatter') <= 2 * split
    assert total('all-gather') <= 4 * split
    num_tables = 2 if family == 'eurobert' else 1  # its decoder has its own weights
    assert [count for size, count in found['reduce-scatter', 'fsdp'] if size == word] == [1] * num_tables
    assert [count for size, count in found['all-gather', 'fsdp'] if size == word] == [1] * num_tables
    assert sum(size for size, _ in found.get(('all-reduce', 'fsdp'), [])) <= whole + SMALL


@pytest.mark.slow
@pytest.mark.parametrize('family', MODELS)
def test_weights_and_logits_stay_split_over_tensor(family: str) -> None:
    found = _collectives(family, {'data': 2, 'fsdp': 2, 'tensor': 2})
    rows = BATCH // 4
    logits = rows * config.num_predictions(config.Data(sequence_length=LENGTH)) * VOCAB_PADDED * 4
    hidden = rows * LENGTH * SIZES['hidden_size'] * 4
    # Over tensor: inputs or outputs of layers, summed over split matmuls; queries, keys and values together.
    assert {kind for kind, axis in found if axis == 'tensor'} == {'all-reduce'}
    assert max(size for size, _ in found['all-reduce', 'tensor']) <= 3 * hidden + SMALL < logits
    # Over fsdp: weights, each already split over tensor.
    half_of_word = VOCAB_PADDED * SIZES['hidden_size'] * 4 // 2
    for kind in ('all-gather', 'reduce-scatter'):
        assert max(size for size, _ in found[kind, 'fsdp']) == half_of_word
    # Over data: the local shard of each gradient, once.
    shards = sum(size // 2 ** len(axes) for axes, size in _parameters(family) if 'fsdp' in axes)
    assert shards - 8 * SMALL <= sum(size * count for size, count in found['all-reduce', 'data']) <= shards + SMALL
    assert found.keys() <= {
        ('all-reduce', 'tensor'),
        ('all-gather', 'fsdp'),
        ('reduce-scatter', 'fsdp'),
        ('all-reduce', 'data'),
        ('all-reduce', 'data+fsdp'),
    }
