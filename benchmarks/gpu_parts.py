"""The parts of `benchmarks.gpu` that run in a process of their own: each prints its result as a JSON object.

python -m benchmarks.gpu_parts device
python -m benchmarks.gpu_parts kernels WORKLOAD DTYPE    gradients with fused kernels against plain attention
python -m benchmarks.gpu_parts plan WORKLOAD DTYPE       what `plan` predicts of the step, and measurements
"""

import dataclasses
import json
import sys
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.workloads import WORKLOADS
from bert_jax.config import Config
from bert_jax.data.batches import Batch
from bert_jax.data.random_rows import RandomRows
from bert_jax.model.dropout import DropoutKey
from bert_jax.plan import planning
from bert_jax.plan.roofline import step_time
from bert_jax.plan.targets import parse_target
from bert_jax.plan.traffic import traffic_of
from bert_jax.runtime.devices import device_name, select_platform
from bert_jax.runtime.mesh import mesh_of_run
from bert_jax.train.objectives.masked import MASKED_TOKENS
from bert_jax.train.program import build_program

_KERNEL_ROWS = 4  # plain attention in float32 needs the memory of all scores
_DROPOUT = 0.1
# A kernel may round differently than plain attention, but is not further from float32.
_MOST_ERROR = 1.5


def _config(workload: str, **model: Any) -> Config:
    config = WORKLOADS[workload].config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model))


def describe_device() -> dict[str, Any]:
    """Returns what was measured on."""
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    return {'device': device.device_kind, 'memory_bytes': stats.get('bytes_limit'), 'jax': jax.__version__}


def check_kernels(workload: str, dtype: str) -> dict[str, Any]:
    """Returns how far loss and gradients are from those of plain attention in float32, with fused kernels and without.

    The weights of attention are dropped out too.
    """
    rate = 'attention_dropout_rate' if WORKLOADS[workload].config.model.family == 'bert' else 'attention_dropout'
    exact = _gradients(_config(workload, attention='plain', dtype='float32', **{rate: _DROPOUT}))
    errors = {
        name: _error(_gradients(_config(workload, attention=name, dtype=dtype, **{rate: _DROPOUT})), exact)
        for name in ('auto', 'plain')
    }
    return {'errors': errors, 'is_correct': errors['auto'] <= max(_MOST_ERROR * errors['plain'], 1e-6)}


def _gradients(config: Config) -> np.ndarray:
    """Returns the loss and all gradients of a few rows, in one array."""
    train = dataclasses.replace(config.train, global_batch_size=_KERNEL_ROWS)
    config = dataclasses.replace(config, train=train)
    vocab_size = config.tokenizer.vocab_size
    program = build_program(config.model, config.optimizer, train, vocab_size, mesh_of_run(config))
    batch = RandomRows(config.data, vocab_size, batch_size=_KERNEL_ROWS, seed=0).batch(0)
    key = DropoutKey(jax.numpy.uint32(1), jax.numpy.arange(_KERNEL_ROWS, dtype=jax.numpy.uint32))

    def loss(params: nnx.State, batch: Batch) -> jax.Array:
        sums = MASKED_TOKENS.sums(nnx.merge(program.graph, params), batch, key)
        return MASKED_TOKENS.loss(sums, MASKED_TOKENS.weights(batch))

    found = jax.jit(jax.value_and_grad(loss))(program.init_state(0).params, batch)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(found))])


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the relative distance of two vectors."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def compare_plan(workload: str, dtype: str) -> dict[str, Any]:
    """Returns time and memory as `plan` predicts them, by speeds measured here and by data sheets, and as measured."""
    config = _config(workload, dtype=dtype)
    target = planning.find_target('here', config)
    plan = planning.make_plan(config, target)
    assert plan.measured is not None and plan.is_compiled
    name = device_name()
    published = None
    if name is not None:
        published = step_time(plan.work, parse_target(f'{name}:1x1'), dtype).total
    return {
        'step_seconds': plan.measured.step_seconds,
        'predicted_seconds': plan.time.total,
        'predicted_from_data_sheet_seconds': published,
        'peak_bytes': plan.measured.peak_bytes,
        'predicted_bytes': plan.required_bytes['total'],
        'attention': plan.attention,
        'traffic': traffic_of(plan).to_json(),
    }


def main(part: str, *arguments: str) -> None:
    """Prints the result of a part."""
    select_platform('')
    parts = {'device': describe_device, 'kernels': check_kernels, 'plan': compare_plan}
    print(json.dumps(parts[part](*arguments)))


if __name__ == '__main__':
    main(*sys.argv[1:])
