"""The TPU kernels, interpreted on a CPU, compute the same as plain attention: any length, windows, dropout."""

import functools
from collections.abc import Callable

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model import tpu_attention
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.plain_attention import attend_by_scores

pytestmark = pytest.mark.compiles

ROWS = 2


def _sequence_ids(length: int) -> np.ndarray:
    """[B, L]: a packed row of four sequences and a row of one, both with padding."""
    ids = np.zeros((ROWS, length), np.int32)
    for index, part in enumerate(np.split(np.arange(length - 30), [length // 9, length // 3, length // 2])):
        ids[0, part] = index + 1
    ids[1, : length * 5 // 8] = 1
    return ids


def _outputs(attend: Callable[..., jax.Array], ids: np.ndarray, width: int) -> list[np.ndarray]:
    """Returns the output and the gradients of q, k and v, [B, L, D] each, zero in padding."""
    real = ids[..., None] > 0
    rng = np.random.default_rng(0)
    q, k, v, gradient = (jnp.asarray(rng.standard_normal((*ids.shape, width)), 'float32') for _ in range(4))

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple:
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(jnp.where(real, gradient, 0))

    found = [np.asarray(array) for array in run(q, k, v)]
    assert all(np.isfinite(array).all() for array in found)
    return [np.where(real, array, 0) for array in found]


@pytest.mark.parametrize(
    'length, num_heads, head_size, rate, radius, limits',
    [
        (256, 2, 64, 0.1, 64, {}),  # one block with a window
        (640, 2, 64, 0.1, None, {'_BLOCK_BYTES': 128 * 128 * 4}),  # five blocks of queries and of keys
        (640, 1, 128, 0.0, None, {'_SCORES': 640 * 128, '_BLOCK_BYTES': 640 * 128 * 4}),  # all keys in one block
        (640, 2, 64, 0.1, None, {'_BLOCK_BYTES': 128 * 128 * 4, '_SUMS': 256 * 128}),  # three backward passes
        (640, 2, 64, 0.1, 64, {}),  # a band of three blocks
        (1024, 1, 64, 0.1, 160, {'_LARGEST_IN_BAND': 128}),  # a band of five
        (640, 1, 64, 0.0, 300, {'_BLOCK_BYTES': 128 * 64 * 4}),  # a window too wide for a band
        (384, 4, 16, 0.1, 1, {'_BLOCK_BYTES': 128 * 64 * 4}),  # fewer lanes than a tile
    ],
)
def test_outputs_and_gradients_equal_plain_attention(
    monkeypatch: pytest.MonkeyPatch,
    length: int,
    num_heads: int,
    head_size: int,
    rate: float,
    radius: int | None,
    limits: dict[str, int],
) -> None:
    """With the same dropout masks: indices count in [B, H, L, L] whatever the blocks are."""
    for name, value in limits.items():
        monkeypatch.setattr(tpu_attention, name, value)
    ids, key = _sequence_ids(length), DropoutKey(jnp.uint32(7), jnp.arange(3, 3 + ROWS, dtype=jnp.uint32), 2)
    kernel = functools.partial(
        tpu_attention.attend, sequence_ids=jnp.asarray(ids), row_keys=key.of_rows(1), first_head=jnp.zeros(1, 'uint32'),
        num_heads=num_heads, rate=rate, radius=radius, interpret=True,
    )  # fmt: skip

    def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k, v = (x.reshape(ROWS, length, num_heads, head_size).transpose(0, 2, 1, 3) for x in (q, k, v))
        sees = (ids[:, :, None] == ids[:, None, :]) & (ids[:, None, :] > 0)
        if radius is not None:
            sees &= np.abs(np.arange(length)[:, None] - np.arange(length)) <= radius
        out = attend_by_scores(q, k, v, jnp.asarray(sees[:, None]), rate, key, 1)
        return out.transpose(0, 2, 1, 3).reshape(ROWS, length, -1)

    width = num_heads * head_size
    for found, expected in zip(_outputs(kernel, ids, width), _outputs(plain, ids, width), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_work_and_memory_of_a_window_grow_linearly_with_length() -> None:
    """By the costs that the kernels state, and the scratch memory that they request."""

    def of(length: int, radius: int | None) -> tuple[int, int]:
        x, ids, key = jnp.ones((1, length, 128), 'bfloat16'), jnp.ones((1, length), 'int32'), jnp.zeros(1, 'uint32')
        run = functools.partial(tpu_attention.attend, num_heads=2, rate=0.0, radius=radius)
        gradients = jax.grad(lambda q: run(q, x, x, ids, key, key).astype('float32').sum())
        calls = [
            each for each in _equations(jax.make_jaxpr(gradients)(x).jaxpr) if each.primitive.name == 'pallas_call'
        ]
        scratch = [
            aval.inner_aval.size for call in calls for aval in call.params['jaxpr'].in_avals
            if aval.memory_space == tpu_attention.pltpu.VMEM
        ]  # fmt: skip
        return sum(call.params['cost_estimate'].flops for call in calls), sum(scratch)

    (short, short_memory), (long, long_memory) = of(4096, 64), of(8192, 64)
    assert 1.9 * short < long < 2.1 * short and long_memory == short_memory
    assert of(8192, None)[0] == 4 * of(4096, None)[0] > 10 * long


def _equations(jaxpr: jax.extend.core.Jaxpr) -> list[jax.extend.core.JaxprEqn]:
    """Returns all equations of a program, those of inner programs too."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, 'eqns')):
            inner = getattr(inner, 'jaxpr', inner)
            if hasattr(inner, 'eqns') and equation.primitive.name != 'pallas_call':
                found += _equations(inner)
    return found
