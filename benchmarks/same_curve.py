"""Compares the loss curves and final parameters of the same run on many meshes with those on one device.

    python -m benchmarks.same_curve                # takes minutes to an hour, depending on the load of the machine
    python -m benchmarks.same_curve --steps=10 --processes=1
    python -m benchmarks.same_curve --objective=rtd --steps=10 --processes=1

Trains 50 steps with dropout in float32 on {1, 2, 4, 8} simulated devices x {data, fsdp, tensor, mixed} x {1, 2, 4}
microbatches x {1, 2, 4} processes. The table has one row per number of devices. A cell holds the largest relative
difference of any loss, that of the final parameters (norm of the difference / norm), and the number of runs. Key biases
are excluded: their gradient is zero up to rounding, and Adam turns rounding into full steps. `exact` counts the runs
with `train.reduction='exact'` (data and fsdp) whose parameters are bit-identical to those of one device.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NUM_DEVICES, PROCESSES, MICROBATCHES, KINDS = (1, 2, 4, 8), (1, 2, 4), (1, 2, 4), ('data', 'fsdp', 'tensor', 'mixed')
BATCH, LENGTH, VOCAB, SEED = 32, 32, 500, 0


@dataclasses.dataclass(frozen=True)
class Case:
    """One run. `kind` is the mesh axis over which the devices are split, or 'mixed'."""

    processes: int
    devices: int
    kind: str
    microbatches: int
    reduction: str

    def axes(self) -> dict[str, int]:
        """Returns {axis: size}; 'mixed' uses two devices each for fsdp and tensor, and the rest for data."""
        if self.kind != 'mixed':
            return {'data': 1, 'fsdp': 1, 'tensor': 1} | {self.kind: self.devices}
        return {'data': self.devices // 4 or 1, 'fsdp': 2, 'tensor': 2}


def cases(processes: int) -> Iterator[Case]:
    """Yields all valid combinations: a process has at least one device, and 'mixed' needs four."""
    for devices, kind in itertools.product(NUM_DEVICES, KINDS):
        if devices < processes or (devices == 1 and kind != 'data') or (devices < 4 and kind == 'mixed'):
            continue
        for microbatches in MICROBATCHES:
            yield Case(processes, devices, kind, microbatches, 'fast')
        if kind in ('data', 'fsdp'):
            yield Case(processes, devices, kind, 1, 'exact')


# --- A worker: one process of a group, which runs all cases with this number of processes. ---


def work(processes: int, steps: int, output: Path, objective: str) -> None:
    """Runs all cases without a result; process 0 writes a JSON line and the final parameters (.npy) of each."""
    import jax
    import numpy as np

    from bert_jax.runtime.processes import initialize

    initialize()
    with open(output / f'{processes}.jsonl', 'a+') as lines:
        lines.seek(0)
        done = {Case(*json.loads(line)['case']) for line in lines}
        for index, case in enumerate(cases(processes)):
            if case in done:
                continue
            losses, params = _run(case, steps, objective)
            if jax.process_index() == 0:
                name = f'{processes}-{index}.npy'
                np.save(output / name, params)
                lines.write(json.dumps({'case': dataclasses.astuple(case), 'losses': losses, 'params': name}) + '\n')
                lines.flush()


def start(case: Case, steps: int, objective: str = 'mlm', **model: int) -> tuple[Any, Callable, Callable]:
    """Returns (state, train step, function from an index to a global batch); `model` changes the default sizes."""
    import jax

    from bert_jax import config
    from bert_jax.data.device_batches import local_rows, make_global
    from bert_jax.data.random_rows import RandomRows
    from bert_jax.model.replaced_tokens import build_of
    from bert_jax.runtime.mesh import make_mesh
    from bert_jax.train.objectives import objective_of
    from bert_jax.train.program import build_program

    sizes = {'num_layers': 2, 'hidden_size': 64, 'num_heads': 8, 'intermediate_size': 128} | model
    model = config.Bert(**sizes, max_positions=LENGTH)
    train = config.Train(
        steps=steps, global_batch_size=BATCH, microbatches=case.microbatches, reduction=case.reduction, seed=SEED
    )
    of_process = itertools.groupby(jax.devices(), key=lambda device: device.process_index)
    devices = [device for _, group in of_process for device in list(group)[: case.devices // case.processes]]
    mesh = make_mesh(config.Mesh(**case.axes()), model, train, devices)
    settings = config.Optimizer(peak_learning_rate=1e-3, warmup_steps=5)
    learned = config.Objective(name=objective, generator_width=1.0)  # any tensor axis divides its heads
    build = build_of(learned)
    program = build_program(model, settings, train, VOCAB, mesh, build=build, objective=objective_of(learned))
    stream = RandomRows(config.Data(sequence_length=LENGTH), VOCAB, batch_size=BATCH, seed=SEED)
    rows = local_rows(mesh, BATCH)

    def batch(index: int) -> Any:
        return make_global(stream.batch(index % 8, rows), rows, mesh, BATCH)

    return program.init_state(SEED), program.train_step, batch


def _run(case: Case, steps: int, objective: str) -> tuple[list[float], Any]:
    import jax
    import numpy as np

    from bert_jax.runtime.mesh import replicated

    state, step, batch = start(case, steps, objective)
    losses = []
    for index in range(steps):
        state, metrics = step(state, batch(index))
        losses.append(float(metrics['loss']))
    whole = jax.jit(lambda params: params, out_shardings=replicated(state.step.sharding.mesh))(state.params)
    compared = [
        np.asarray(leaf.addressable_data(0)).ravel()
        for path, leaf in jax.tree.leaves_with_path(whole)
        if case.reduction == 'exact' or "['key']['bias']" not in jax.tree_util.keystr(path)
    ]
    return losses, np.concatenate(compared)


# --- The parent: starts the workers and prints the table. ---


def _launch(processes: int, steps: int, output: Path, objective: str) -> None:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{listener.getsockname()[1]}'
    common = os.environ | {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={max(NUM_DEVICES) // processes}',
    }
    command = [
        sys.executable,
        '-m',
        'benchmarks.same_curve',
        f'--worker={processes}',
        f'--steps={steps}',
        f'--output={output}',
        f'--objective={objective}',
    ]
    running = []
    for rank in range(processes):
        group = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': str(processes), 'JAX_PROCESS_ID': str(rank)}
        running.append(subprocess.Popen(command, env=common | (group if processes > 1 else {})))
    if any(process.wait() for process in running):
        sys.exit(f'a worker failed (with {processes} processes)')


def tabulate(output: Path) -> str:
    """Returns a Markdown table of the workers' results."""
    import numpy as np

    found = {}
    for path in sorted(output.glob('*.jsonl')):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            found[Case(*entry['case'])] = np.array(entry['losses']), np.load(output / entry['params'])
    one, one_exact = (found[Case(1, 1, 'data', 1, reduction)] for reduction in ('fast', 'exact'))
    rows = []
    for devices in NUM_DEVICES:
        fast = {case: run for case, run in found.items() if (case.devices, case.reduction) == (devices, 'fast')}
        exact = [run for case, run in found.items() if (case.devices, case.reduction) == (devices, 'exact')]
        last = sorted(run[0][-1] for run in fast.values())
        cells = []
        for kind in KINDS:
            runs = [run for case, run in fast.items() if case.kind == kind]
            losses = max((np.max(np.abs(run[0] / one[0] - 1)) for run in runs), default=None)
            params = max((np.linalg.norm(run[1] - one[1]) / np.linalg.norm(one[1]) for run in runs), default=None)
            cells.append('' if losses is None else f'{losses:.1e}, {params:.1e} ({len(runs)})')
        same = sum(_digest(run[1]) == _digest(one_exact[1]) for run in exact)
        rows.append([str(devices), f'{last[0]:.6f} to {last[-1]:.6f}', *cells, f'{same} of {len(exact)}'])
    header = ['devices', f'loss after {len(one[0])} steps', *KINDS, 'exact']
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in [header, ['---'] * len(header), *rows])


def _digest(array: Any) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def main() -> None:
    """Runs all cases, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=50)
    parser.add_argument('--processes', type=int, nargs='*', default=PROCESSES)
    parser.add_argument('--objective', default='mlm', choices=('mlm', 'clm', 'mntp', 'rtd'))
    parser.add_argument('--worker', type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        '--output', type=Path, help='directory that keeps results, so that an interrupted benchmark can resume'
    )
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.steps, arguments.output, arguments.objective)
        return
    with tempfile.TemporaryDirectory() as temporary:
        output = arguments.output or Path(temporary)
        output.mkdir(parents=True, exist_ok=True)
        for processes in sorted({1, *arguments.processes}):
            _launch(processes, arguments.steps, output, arguments.objective)
        print(tabulate(output))


if __name__ == '__main__':
    main()
