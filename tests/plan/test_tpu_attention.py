"""The TPU's compiler accepts the attention kernels at every length, and stores nothing for them."""

import json
import os
import subprocess
import sys

import pytest

from bert_jax.plan import program, targets

pytestmark = pytest.mark.plan

_COMPILE = """
import json, sys
import jax, jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from bert_jax.model import tpu_attention
from bert_jax.plan import program, targets

name, shapes = sys.argv[1], json.loads(sys.argv[2])
mesh = Mesh(np.array(program._devices(targets.parse_target(name))[:1]), ('data',))
whole = NamedSharding(mesh, PartitionSpec())
for length, num_heads, head_size, rate, radius, dtype in shapes:
    def run(q, k, v, gradient, ids, row_keys, first_head):
        def attend(q, k, v):
            return tpu_attention.attend(
                q, k, v, ids, row_keys, first_head, num_heads=num_heads, rate=rate, radius=radius
            )
        out, pull = jax.vjp(attend, q, k, v)
        return out, pull(gradient)
    arrays = (((1, length, num_heads * head_size), dtype), ((1, length), 'int32'), ((1,), 'uint32'))
    x, ids, key = (jax.ShapeDtypeStruct(*array, sharding=whole) for array in arrays)
    compiled = jax.jit(run, out_shardings=whole).lower(x, x, x, x, ids, key, key).compile()
    print(json.dumps([compiled.memory_analysis().temp_size_in_bytes, compiled.as_text().count(f's32[1,{length},1]')]))
"""
_SHAPES = [  # positions, heads, head size, dropout, radius, dtype
    (128, 1, 64, 0.1, None, 'bfloat16'),
    (512, 12, 64, 0.1, None, 'bfloat16'),
    (640, 2, 32, 0.1, 64, 'bfloat16'),
    (1024, 2, 256, 0.1, None, 'bfloat16'),
    (8192, 12, 64, 0.0, None, 'bfloat16'),
    (8192, 12, 64, 0.0, 64, 'bfloat16'),
    (8192, 2, 64, 0.1, 700, 'bfloat16'),
    (8192, 4, 64, 0.1, 64, 'float32'),
    (8192, 4, 64, 0.1, None, 'float32'),
    (32_768, 2, 64, 0.0, 128, 'bfloat16'),
    (16_384, 2, 64, 0.0, None, 'bfloat16'),
]


@pytest.mark.parametrize('name', ['tpu-v5e:2x2', 'tpu-v4:2x2x1'])
def test_kernels_compile_at_every_length_without_temporary_arrays(name: str) -> None:
    """No ids are padded to 128 lanes. Beyond 8,192 positions without a window, gradients are summed in parts."""
    environment = os.environ | program._environment(targets.parse_target(name))
    command = [sys.executable, '-c', _COMPILE, name, json.dumps(_SHAPES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(_SHAPES)
    for (length, num_heads, head_size, _, radius, _), (temporary, padded_ids) in zip(_SHAPES, found, strict=True):
        in_parts = radius is None and length > 8192
        assert temporary < (16 * length * num_heads * head_size if in_parts else 2**16)
        assert not padded_ids
