"""A device whose replica differs by a single bit is detected and named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import config
from bert_jax.errors import DeviceFault
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.program import build_program
from bert_jax.train.replicas import Replicas
from bert_jax.train.state import TrainState

MODEL = config.Bert(num_layers=1, hidden_size=16, num_heads=4, intermediate_size=32, max_positions=16)


def _state(**axes: int) -> tuple[TrainState, TrainState]:
    size = int(np.prod(list(axes.values())))
    mesh = make_mesh(config.Mesh(**axes), MODEL, config.Train(global_batch_size=size), jax.devices()[:size])
    program = build_program(MODEL, config.Optimizer(), config.Train(), 200, mesh)
    return program.init_state(seed=0), program.shardings


def _with_flipped_bit(array: jax.Array, device: int, rng: np.random.Generator) -> jax.Array:
    parts = []
    for shard in array.addressable_shards:
        part = np.array(shard.data)
        if shard.device.id == device:
            flat = part.reshape(-1).view(np.uint32)
            flat[rng.integers(flat.size)] ^= np.uint32(1 << rng.integers(32))
        parts.append(jax.device_put(part, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


@pytest.mark.compiles
@pytest.mark.parametrize(
    'axes, device, named',
    [
        ({'data': 3, 'fsdp': 2}, 3, [3]),
        pytest.param({'data': 4}, 2, [2], marks=pytest.mark.slow),
        pytest.param({'data': 2}, 1, [0, 1], marks=pytest.mark.slow, id='either of two replicas may be wrong'),
    ],
)
def test_differing_device_is_named(axes: dict, device: int, named: list[int]) -> None:
    state, shardings = _state(**axes)
    replicas, rng = Replicas(shardings), np.random.default_rng(0)
    replicas.check(state, 1)
    leaves, tree = jax.tree.flatten(state)
    for index in rng.choice(len(leaves), 12, replace=False):
        changed = [*leaves]
        changed[index] = _with_flipped_bit(leaves[index], device, rng)
        with pytest.raises(DeviceFault, match='step 7') as raised:
            replicas.check(jax.tree.unflatten(tree, changed), 7)
        message = raised.value.found
        assert [device_id for device_id in range(8) if f'cpu:{device_id} (process 0)' in message] == named
        assert '1 arrays differ' in message


@pytest.mark.slow
def test_shards_without_a_replica_are_not_compared() -> None:
    state, shardings = _state(data=1, fsdp=2)
    kernel = state.params['bert']['encoder']['layers']['intermediate']['kernel']
    changed = jax.tree.map(lambda leaf: leaf, state)
    flipped = _with_flipped_bit(kernel.get_value(), 1, np.random.default_rng(0))
    changed.params['bert']['encoder']['layers']['intermediate']['kernel'].set_value(flipped)
    Replicas(shardings).check(changed, 1)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32, jnp.int32])
def test_hash_depends_on_the_order_of_values(dtype: jnp.dtype) -> None:
    from bert_jax.train.replicas import _hash

    values = jnp.arange(1, 9).astype(dtype)
    assert int(_hash(values)) == int(_hash(values + 0)) != int(_hash(values[::-1]))
