"""Kernels that keep the scores on the chip compute what plain attention does; here they are interpreted on a CPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import config
from bert_jax.data.batches import Batch
from bert_jax.errors import BadInput
from bert_jax.model import attention, tpu_attention
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.products import compiled_for
from bert_jax.train.memory import batch_shapes
from bert_jax.train.optimizer import make_optimizer, make_schedule
from bert_jax.train.sharding import make_mesh
from bert_jax.train.state import init_state, model_graph, state_shardings
from bert_jax.train.step import make_train_step

ROWS, LENGTH, HEADS = 2, 128, 2


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpu_attention, 'attend', functools.partial(tpu_attention.attend, interpret=True))
    kernels = attention._kernels(attention._FOR_GPU)
    monkeypatch.setattr(kernels, 'mha', functools.partial(kernels.mha, interpret=True))


def _packed() -> np.ndarray:
    """Three sequences and padding; one sequence and padding."""
    ids = np.zeros((ROWS, LENGTH), np.int32)
    ids[0, :50], ids[0, 50:90], ids[0, 90:120], ids[1, :77] = 1, 2, 3, 1
    return ids


def _outputs(platform: str, size: int, rate: float, dtype: str) -> list[np.ndarray]:
    """[B, L, D] of the real positions: what comes out, and the gradients of q, k, v for one that is 0 in padding."""
    ids = _packed()
    real = ids[..., None] > 0
    rng = np.random.default_rng(0)
    q, k, v, gradient = (jnp.asarray(rng.standard_normal((ROWS, LENGTH, HEADS * size)), dtype) for _ in range(4))
    key = DropoutKey(jnp.uint32(7), jnp.arange(3, 3 + ROWS, dtype=jnp.uint32), 2)

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple:
        with compiled_for(platform):
            attend = functools.partial(
                attention.attend, sequence_ids=ids, num_heads=HEADS, rate=rate, key=key, how='auto', is_packed=True
            )
            out, pull = jax.vjp(attend, q, k, v)
            return out, *pull(jnp.where(real, gradient, 0))

    found = [np.asarray(array, np.float32) for array in run(q, k, v)]
    assert all(np.isfinite(array).all() for array in found)
    return [np.where(real, array, 0) for array in found]


@pytest.mark.parametrize(
    'platform, size, rate, dtype, within',
    [
        ('tpu', 64, 0.1, 'float32', 1e-5),  # two heads in a tile, three blocks of queries
        ('tpu', 128, 0.0, 'bfloat16', 0.02),
        ('gpu', 64, 0.0, 'bfloat16', 0.02),
    ],
)
def test_a_kernel_computes_what_plain_attention_does_on_packed_rows(
    interpreted: None, monkeypatch: pytest.MonkeyPatch, platform: str, size: int, rate: float, dtype: str, within: float
) -> None:
    monkeypatch.setattr(tpu_attention, '_SCORES', 32 * LENGTH)
    for found, expected in zip(_outputs(platform, size, rate, dtype), _outputs('cpu', size, rate, dtype), strict=True):
        assert np.abs(found - expected).max() < within * np.abs(expected).max()


@pytest.mark.parametrize('axes', [{'data': 1, 'tensor': 2}, {'data': 1, 'fsdp': 2, 'tensor': 2}])
def test_a_step_with_kernels_on_any_mesh_is_the_plain_step(
    interpreted: None, monkeypatch: pytest.MonkeyPatch, axes: dict[str, int]
) -> None:
    chosen = config.bert('tiny')
    chosen.tokenizer.vocab_size, chosen.data.sequence_length, chosen.data.packing = 500, LENGTH, True
    chosen.model.update(hidden_size=32, num_heads=2, intermediate_size=64, attention='plain', scan_layers=True)
    chosen.train.update(global_batch_size=2, steps=10)
    chosen.optimizer.warmup_steps = 1
    plain = config.resolve(chosen)
    expected = _first_step(plain, {'data': 1})
    monkeypatch.setattr(attention, 'target_platform', lambda: 'tpu')
    fused = dataclasses.replace(plain, model=dataclasses.replace(plain.model, attention='fused'))
    np.testing.assert_allclose(_first_step(fused, axes), expected, rtol=1e-5)


def _first_step(chosen: config.Config, axes: dict[str, int]) -> tuple[float, float]:
    """(loss, norm of the gradient)."""
    num_devices, vocab_size = int(np.prod(list(axes.values()))), chosen.tokenizer.vocab_size
    mesh = make_mesh(config.Mesh(**axes), chosen.model, chosen.train, jax.devices()[:num_devices])
    optimizer, schedule = make_optimizer(chosen.optimizer, 10), make_schedule(chosen.optimizer, 10)
    _, shardings = state_shardings(chosen.model, vocab_size, optimizer, mesh)
    graph = model_graph(chosen.model, vocab_size)
    step = make_train_step(graph, optimizer, schedule, mesh, shardings, seed=0, microbatches=1)
    rng = np.random.default_rng(0)
    shapes = batch_shapes(chosen, mesh)
    batch = Batch(*(jnp.ones(leaf.shape, leaf.dtype) for leaf in shapes))._replace(
        input_ids=rng.integers(5, vocab_size, shapes.input_ids.shape).astype(np.int32),
        sequence_ids=_packed(),
        masked_lm_positions=rng.integers(0, 77, shapes.masked_lm_positions.shape).astype(np.int32),
    )
    batch = jax.tree.map(lambda array, leaf: jax.device_put(array, leaf.sharding), batch, shapes)
    _, metrics = step(init_state(chosen.model, vocab_size, optimizer, mesh, seed=0), batch)
    return float(metrics['loss']), float(metrics['grad_norm'])


@pytest.mark.parametrize(
    'platform, length, dtype, rate, mend',
    [
        ('tpu', 100, 'bfloat16', 0.0, 'multiple of 128'),
        ('gpu', 128, 'float32', 0.0, 'model.dtype=bfloat16'),
        ('gpu', 128, 'bfloat16', 0.1, 'attention_dropout_rate=0.0'),
    ],
)
def test_what_no_kernel_suits_is_computed_plainly_unless_fused_is_asked_for(
    platform: str, length: int, dtype: str, rate: float, mend: str
) -> None:
    x, ids = jnp.ones((1, length, 64), dtype), jnp.ones((1, length), jnp.int32)
    key = DropoutKey(jnp.uint32(0), jnp.arange(1, dtype=jnp.uint32))
    with compiled_for(platform):
        run = functools.partial(attention.attend, x, x, x, ids, 1, rate, key, is_packed=True)
        assert 'pallas_call' not in str(jax.make_jaxpr(functools.partial(run, 'auto'))())
        with pytest.raises(BadInput, match=mend):
            run('fused')
