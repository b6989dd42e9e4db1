"""What the devices exchange in a compiled step: all that is needed, once, and nothing else."""

import jax
import numpy as np
import pytest

from bert_jax import config
from bert_jax.plan import hlo
from bert_jax.plan.planning import axis_of
from bert_jax.plan.program import compile_step
from bert_jax.train.optimizer import make_optimizer
from bert_jax.train.sharding import make_mesh
from bert_jax.train.state import state_shardings

MODEL = config.Model(
    num_layers=3, hidden_size=32, num_heads=4, intermediate_size=96, max_positions=64, attention_dropout_rate=0.1
)
VOCAB, LENGTH, BATCH = 2000, 64, 32
VOCAB_PADDED = 2048
SMALL = 1024  # bytes: losses, weights and norms


def _config(axes: dict[str, int], microbatches: int) -> config.Config:
    return config.Config(
        model=MODEL,
        data=config.Data(sequence_length=LENGTH),
        tokenizer=config.Tokenizer(vocab_size=VOCAB),
        train=config.Train(steps=10, global_batch_size=BATCH, microbatches=microbatches),
        optimizer=config.Optimizer(warmup_steps=5),
        mesh=config.Mesh(**axes),
    )


def _collectives(axes: dict[str, int], microbatches: int = 1) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """(bytes, calls) of the collectives of more than a few numbers, by kind and axis."""
    devices = jax.devices()[: int(np.prod(list(axes.values())))]
    program, _ = compile_step(_config(axes, microbatches), devices)
    mesh = {'data': 1, 'fsdp': 1, 'tensor': 1} | axes
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for collective in program.work.collectives:
        if collective.bytes > SMALL:
            key = collective.kind, axis_of(collective, mesh)
            found.setdefault(key, []).append((collective.bytes, collective.count))
    return found


def _parameters() -> list[tuple[tuple[str, ...], int]]:
    """(axes that a mesh of two on each axis splits it over, bytes) of each parameter, by the table."""
    mesh = make_mesh(config.Mesh(data=2, fsdp=2, tensor=2), MODEL, config.Train(), jax.devices())
    shapes, shardings = state_shardings(MODEL, VOCAB, make_optimizer(config.Optimizer(), 10), mesh)
    pairs = zip(jax.tree.leaves(shapes.params), jax.tree.leaves(shardings.params), strict=True)
    return [(tuple(filter(None, sharding.spec)), shape.size * 4) for shape, sharding in pairs]


@pytest.mark.parametrize('microbatches', [1, 4])
def test_data_parallelism_reduces_every_gradient_once_and_gathers_nothing(microbatches: int) -> None:
    found = _collectives({'data': 2}, microbatches)
    assert found.keys() == {('all-reduce', 'data')}
    exchanged = sum(size * count for size, count in found['all-reduce', 'data'])
    everything = sum(size for _, size in _parameters())
    assert everything - SMALL * 8 <= exchanged <= everything + SMALL


def test_fsdp_gathers_weights_and_scatters_gradients_and_never_exchanges_activations() -> None:
    found = _collectives({'data': 1, 'fsdp': 2}, microbatches=2)
    assert found.keys() <= {('all-gather', 'fsdp'), ('reduce-scatter', 'fsdp'), ('all-reduce', 'fsdp')}
    split = sum(size for axes, size in _parameters() if 'fsdp' in axes)
    whole = sum(size for axes, size in _parameters() if 'fsdp' not in axes)
    word = VOCAB_PADDED * MODEL.hidden_size * 4
    largest_weight = max(word, MODEL.hidden_size * MODEL.intermediate_size * 4)
    assert all(size <= largest_weight for of_kind in found.values() for size, _ in of_kind)

    def total(kind: str) -> int:
        return sum(size * count for size, count in found[kind, 'fsdp'])

    # Layers: gathered in the forward and again in the backward pass, scattered once, in each of two microbatches. The
    # rest: once. The tied embedding is the largest of it.
    assert total('reduce-scatter') <= 2 * split
    assert total('all-gather') <= 4 * split
    assert [count for size, count in found['reduce-scatter', 'fsdp'] if size == word] == [1]
    assert [count for size, count in found['all-gather', 'fsdp'] if size == word] == [1]
    assert sum(size for size, _ in found['all-reduce', 'fsdp']) <= whole + SMALL


def test_under_tensor_parallelism_logits_over_the_vocabulary_stay_split() -> None:
    found = _collectives({'data': 1, 'tensor': 4})
    predictions = config.num_predictions(config.Data(sequence_length=LENGTH))
    logits = BATCH * predictions * VOCAB_PADDED * 4
    hidden = BATCH * LENGTH * MODEL.hidden_size * 4
    assert all(size < logits for of_kind in found.values() for size, _ in of_kind)
    # What is exchanged is the input or output of a layer, summed over its split products; no weight is gathered.
    assert {kind for kind, _ in found} == {'all-reduce'}
    assert all(size <= 3 * hidden for size, _ in found['all-reduce', 'tensor'])


def test_on_a_mixed_mesh_nothing_larger_than_a_weight_goes_over_data_or_fsdp() -> None:
    devices = jax.devices()
    program, compiled = compile_step(_config({'data': 2, 'fsdp': 2, 'tensor': 2}, 1), devices)
    mesh = {'data': 2, 'fsdp': 2, 'tensor': 2}
    everything = sum(size for _, size in _parameters())
    exchanged = sum(c.bytes * c.count for c in program.work.collectives if axis_of(c, mesh) == 'data')
    assert exchanged <= everything / 2 + 8 * SMALL  # tensor and fsdp hold parts of most
    kinds = {c.kind for c in hlo.read(compiled.as_text()).collectives if c.bytes > SMALL}
    assert 'all-to-all' not in kinds
