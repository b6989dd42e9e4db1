"""Measures the cost of faults (saving, verifying, restarting), and the share of time that is left for training.

    python -m benchmarks.goodput --size=base --step_seconds=0.0464
    python -m benchmarks.goodput --size=base --step_seconds=0.0464 --compile

A state of a published size is saved, read back, verified and restored by the functions that `train` uses, on this
machine's disk and processors. `--step_seconds` is the step time on the target devices (`plan` predicts it). The
remaining figures are computed:

    interval = checkpoint_every x step + blocked           a save blocks training briefly, then runs in the background
    lost     = interval / 2 + save + noticed + restart     average loss per failure
    goodput  = (1 - (blocked + checks) / interval) x (1 - lost / time between failures)

`noticed` is the time until the watchdog ends the processes; `restart` is importing, verifying, restoring and compiling.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import config
from bert_jax.data.batches import Batch
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.program import TrainProgram, build_program
from bert_jax.train.replicas import Replicas
from bert_jax.train.state import TrainState, is_finite
from bert_jax.workdir.checkpoint import Checkpoints

VOCAB = 30_522


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs in seconds, and the bytes of a checkpoint; `compile` is None if it was not measured."""

    checkpoint_bytes: int
    save_blocked: float
    save: float
    verify: float
    restore: float
    finite_check: float
    replica_check: float
    imports: float
    compile: float | None


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start, result


def measure(size: str, directory: str, compiles: bool, devices: int) -> Costs:
    """Saves a new state of a model size below `directory`, and restores it."""
    model = config.resolve(config.bert(size)).model
    train = config.Train(global_batch_size=8, steps=1000)
    mesh = make_mesh(config.Mesh(), model, train, jax.devices()[:devices])
    program = build_program(model, config.Optimizer(), train, VOCAB, mesh)
    state = _used(program.init_state(seed=0), program.shardings)
    replicas = Replicas(program.shardings)
    is_finite(state), replicas.check(state, 0)  # compiles both
    finite_check, _ = _timed(is_finite, state)
    replica_check, _ = _timed(replicas.check, state, 0)
    checkpoints = Checkpoints(directory, keep=2)
    checkpoints.save(state._replace(step=state.step + 1), known_finite=True)  # the first save initializes Orbax
    checkpoints._wait_for_save()
    start = time.perf_counter()
    checkpoints.save(state, known_finite=True)  # `finite_check` is counted separately
    save_blocked = time.perf_counter() - start
    checkpoints._wait_for_save()
    save = time.perf_counter() - start
    compile_seconds = _compile(program) if compiles else None
    del state
    verify, damage = _timed(checkpoints.damage, 0)
    assert damage == ''
    restore, _ = _timed(checkpoints.restore, program.shapes, program.shardings, 0)
    checkpoints.close()
    files = [path for path in (Path(directory) / 'checkpoints' / '0').rglob('*') if path.is_file()]
    imports, _ = _timed(subprocess.run, [sys.executable, '-c', 'import bert_jax.pretrain'])
    num_bytes = sum(path.stat().st_size for path in files)
    return Costs(num_bytes, save_blocked, save, verify, restore, finite_check, replica_check, imports, compile_seconds)


def _used(state: TrainState, shardings: TrainState) -> TrainState:
    """A state whose moments are no longer zeros, which would be compressed to nothing."""

    def fill(moments: Any) -> Any:
        leaves, tree = jax.tree.flatten(moments)
        keys = jax.random.split(jax.random.key(0), len(leaves))
        is_float = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
        filled = [
            jax.random.normal(key, leaf.shape) if real else leaf
            for key, leaf, real in zip(keys, leaves, is_float, strict=True)
        ]
        return jax.tree.unflatten(tree, filled)

    return state._replace(opt_state=jax.jit(fill, out_shardings=shardings.opt_state)(state.opt_state))


def _compile(program: TrainProgram) -> float:
    data = config.Data(sequence_length=128)
    rows, length, predictions = 8, data.sequence_length, config.num_predictions(data)
    widths = [length] * 4 + [predictions] * 3 + [1] * 3
    floats = ('masked_lm_weights', 'next_sentence_weights')
    kinds = [jnp.float32 if name in floats else jnp.int32 for name in Batch._fields]
    batch = Batch(*(jax.ShapeDtypeStruct((rows, width), kind) for width, kind in zip(widths, kinds, strict=True)))
    seconds, _ = _timed(lambda: program.lower(batch).compile() and None)
    return seconds


def goodput(
    costs: Costs, step: float, every: int, noticed: float, between: float, compile_seconds: float
) -> dict[str, float]:
    """Evaluates the formulas at the top of this file.

    Args:
      step: seconds per step.
      every: steps between saves.
      between: seconds between failures.
    """
    checks = costs.finite_check + costs.replica_check
    interval = every * step + costs.save_blocked + checks
    restart = costs.imports + costs.verify + costs.restore + compile_seconds
    lost = interval / 2 + costs.save + noticed + restart
    overhead = (costs.save_blocked + checks) / interval
    return {'overhead': overhead, 'restart_seconds': restart, 'lost_seconds': lost} | {
        'goodput': (1 - overhead) * max(1 - lost / between, 0.0)
    }


def main() -> None:
    """Measures one size and prints a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', default='base', choices=[*config.SIZES])
    parser.add_argument('--step_seconds', type=float, required=True, help='step time on the target devices')
    parser.add_argument('--checkpoint_every', type=int, default=config.Train().checkpoint_every)
    noticed = config.Train().watchdog_seconds
    parser.add_argument('--noticed_seconds', type=float, default=noticed, help='seconds until a stuck process is ended')
    parser.add_argument('--hours_between_failures', type=float, default=3.0)
    parser.add_argument('--compile', action='store_true', help='also measure compiling the step on this machine')
    parser.add_argument('--compile_seconds', type=float, default=60.0, help='compile time without --compile')
    parser.add_argument('--devices', type=int, default=1, help='number of (simulated) devices to use')
    parser.add_argument('--place', help='directory on the disk to measure')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.place) as directory:
        costs = measure(arguments.size, directory, arguments.compile, arguments.devices)
    compile_seconds = arguments.compile_seconds if costs.compile is None else costs.compile
    computed = goodput(
        costs,
        arguments.step_seconds,
        arguments.checkpoint_every,
        arguments.noticed_seconds,
        arguments.hours_between_failures * 3600,
        compile_seconds,
    )
    rate = costs.checkpoint_bytes / 2**30 / costs.verify
    results = dataclasses.asdict(costs) | {'verify_gib_per_second': rate} | computed
    rounded = {name: np.round(value, 4).item() if value else value for name, value in results.items()}
    print(json.dumps(rounded, indent=2))


if __name__ == '__main__':
    main()
