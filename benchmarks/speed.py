"""Measures the speed of the train step compared with PyTorch: contestants take turns, each in its own process.

    python -m benchmarks.speed                      # the CPU table (make bench)
    python -m benchmarks.speed --workloads=base,large --contestants=…   (see benchmarks/gpu.sh)

All have the same sizes, initial weights, batches, dropout rates and optimizer. Before anything is timed, they train a
small model for 200 steps without dropout and must have the same losses: float32 within 1e-3 of bert_jax's at each step,
bfloat16 within 2% on average over the last 50. Then each runs a few steps per turn; the results are medians over turns.
The ceiling is the time that the matmuls of a step take alone, in XLA and in PyTorch. `pip install -e '.[test]'`
installs PyTorch.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from absl import app, flags

from benchmarks import workloads
from benchmarks.contestants import CONTESTANTS

_CPU = {
    'mini': (
        'bert_jax float32',
        'bert_jax bfloat16',
        'Hugging Face float32',
        'Hugging Face bfloat16',
        'PyTorch float32',
        'PyTorch bfloat16',
        'PyTorch float32 compiled',
        'PyTorch bfloat16 compiled',
    ),
    'base-cpu': ('bert_jax bfloat16', 'PyTorch bfloat16 compiled'),
    'ettin-17m': ('bert_jax bfloat16', 'Hugging Face bfloat16', 'PyTorch bfloat16', 'PyTorch bfloat16 compiled'),
}
_WORKLOADS = flags.DEFINE_list('workloads', list(_CPU), f'some of {", ".join(workloads.WORKLOADS)}')
_CONTESTANTS = flags.DEFINE_list(
    'contestants', None, f'some of {", ".join(CONTESTANTS)}; times are also given relative to those of bert_jax'
)
_THREADS = flags.DEFINE_integer('threads', len(os.sched_getaffinity(0)), 'threads of PyTorch', lower_bound=1)
_TURNS = flags.DEFINE_integer('turns', 3, 'largest number of turns of each contestant', lower_bound=1)
_TURN_S = flags.DEFINE_float('turn_seconds', 2.0, 'shortest duration of a turn')
_BUDGET_S = flags.DEFINE_float('budget_seconds', 60.0, 'after this time per workload, stop once all had three turns')
_PARITY = flags.DEFINE_boolean('parity', True, 'compare losses over 200 steps first')
_JSON = flags.DEFINE_string('json', None, 'file to write all results to')
_PARITY_STEPS, _FEWEST_TURNS = 200, 3


class Process:
    """A contestant in its own process, waiting for requests."""

    def __init__(self, name: str, log: Path):
        self.name = name
        threads = {'OMP_NUM_THREADS': str(_THREADS.value), 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
        self._log = log.open('wb')
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.contestants', name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | threads,
            text=True,
        )

    def ask(self, **request: object) -> dict:
        """Sends a request and waits for the answer.

        Raises:
          RuntimeError: the process has exited; the message has the end of its output.
        """
        start = time.perf_counter()
        try:
            self._process.stdin.write(json.dumps(request) + '\n')
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ''
        task = ' '.join(f'{key} {Path(value).name if key == "load" else value}' for key, value in request.items())
        print(f'  {time.perf_counter() - start:6.2f} s  {self.name}: {task}', file=sys.stderr)
        if not answer:
            output = Path(self._log.name).read_text(errors='replace').splitlines()[-15:]
            status = self._process.wait()
            hint = ' (out of memory?)' if status == -9 else ''
            raise RuntimeError(f'{self.name} exited with status {status}{hint}:\n' + '\n'.join(output))
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):  # it has exited, and the last request was not sent
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._log.close()


def check_parity(processes: dict[str, Process], directory: Path, family: str) -> list[str]:
    """Compares the losses of each contestant with those of the first; returns lines to print.

    Raises:
      RuntimeError: a contestant does not train the same model.
    """
    workloads.write(workloads.PARITY[family], directory)
    losses: dict[str, list[float]] = {}
    for name, process in processes.items():
        losses[name] = process.ask(load=str(directory))['losses']
        losses[name] += process.ask(steps=_PARITY_STEPS - 1)['losses']
    ours = next(iter(losses.values()))
    lines = [
        f'{family}: losses over {_PARITY_STEPS} steps from the same weights, without dropout: '
        f'{ours[0]:.4f} to {ours[-1]:.4f}'
    ]
    for name, theirs in losses.items():
        largest = max(abs(a - b) / b for a, b in zip(theirs, ours, strict=True))
        last = abs(sum(theirs[-50:]) / sum(ours[-50:]) - 1)
        lines.append(f'  {name:32} relative difference: at most {largest:.1e}, average over the last 50 {last:.1e}')
        if last > 2e-2 or ('float32' in name and 'float32' in next(iter(losses)) and largest > 1e-3):
            raise RuntimeError('\n'.join([*lines, f'{name} does not train the same model']))
    return lines


def take_turns(processes: dict[str, Process], directory: Path, name: str) -> dict[str, dict[str, float]]:
    """Returns the measurements of each contestant on a workload."""
    workloads.write(workloads.WORKLOADS[name], directory)
    found: dict[str, dict] = {}
    counts = {}
    for who, process in processes.items():
        found[who] = {'load_seconds': process.ask(load=str(directory))['seconds']}
        once = process.ask(steps=1)['seconds']
        counts[who] = max(1, round(_TURN_S.value / once))
        found[who]['turns'] = [once] if once > _TURN_S.value else []  # such a long step is a turn
        if counts[who] > 1:
            process.ask(steps=counts[who])  # allocates the memory that consecutive steps need
    started = time.perf_counter()
    for _ in range(_TURNS.value):
        for who, process in processes.items():
            answer = process.ask(steps=counts[who])
            found[who]['turns'].append(answer['seconds'] / counts[who])
            found[who] |= {name: answer[name] for name in ('peak_bytes', 'peak_flops')}
        fewest = min(len(measured['turns']) for measured in found.values())
        if fewest >= _FEWEST_TURNS and time.perf_counter() - started > _BUDGET_S.value:
            break
    for who, process in processes.items():
        found[who]['step_seconds'] = statistics.median(found[who]['turns'])
        if who.startswith('bert_jax') or who == 'PyTorch bfloat16 compiled':
            found[who]['matmul_seconds'] = process.ask(matmuls=True)['matmul_seconds']
    return found


def table(name: str, directory: Path, found: dict[str, dict]) -> list[str]:
    """Returns the lines of a Markdown table."""
    from bert_jax.plan.bench import mean_counts

    config, batches = workloads.read(directory)
    counts = mean_counts(config, config.tokenizer.vocab_size, batches)
    rows = config.train.global_batch_size
    ours = [who for who in found if who.startswith('bert_jax')]
    peak = next((measured['peak_flops'] for measured in found.values() if measured['peak_flops']), None)
    lines = [
        f'{name}: {workloads.WORKLOADS[name].description}; {counts.flops / 1e9:,.0f} GFLOP per step',
        '',
        '| | rows/s | non-padding tokens/s | ms per step (range) | GFLOP/s | share of its matmuls | MFU | peak GiB '
        + ''.join(f'| time relative to {who} ' for who in ours)
        + '|',
        '|---|--:|--:|--:|--:|--:|--:|--:' + '|--:' * len(ours) + '|',
    ]
    for who, measured in found.items():
        seconds, matmuls = measured['step_seconds'], measured.get('matmul_seconds')
        span = f'{min(measured["turns"]) * 1e3:,.0f} to {max(measured["turns"]) * 1e3:,.0f}'
        lines.append(
            f'| {who} | {rows / seconds:.1f} | {counts.tokens / seconds:,.0f} | {seconds * 1e3:,.0f} ({span}) '
            f'| {counts.flops / seconds / 1e9:,.0f} | {f"{matmuls / seconds:.0%}" if matmuls else ""} '
            f'| {f"{counts.flops / seconds / peak:.1%}" if peak else ""} | {measured["peak_bytes"] / 2**30:.2f} '
            + ''.join(f'| {seconds / found[one]["step_seconds"]:.2f} x ' for one in ours)
            + '|'
        )
    speeds = '; '.join(
        f'{who} {counts.flops / measured["matmul_seconds"] / 1e9:,.0f} GFLOP/s'
        for who, measured in found.items()
        if 'matmul_seconds' in measured
    )
    return [*lines, '', f'Matmuls of a step alone: {speeds}', '']


@contextlib.contextmanager
def _started(names: Iterable[str], directory: Path) -> Iterator[dict[str, Process]]:
    """Starts contestants and ends them with the block, so that each workload starts with free memory."""
    processes = {who: Process(who, directory / f'{index}.log') for index, who in enumerate(names)}
    try:
        yield processes
    finally:
        for process in processes.values():
            process.close()


def main(_: list[str]) -> None:
    measured: dict[str, dict] = {}
    chosen = {name: tuple(_CONTESTANTS.value or _CPU[name]) for name in _WORKLOADS.value}
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        if _PARITY.value:
            by_family: dict[str, dict[str, None]] = {}
            for name, names in chosen.items():
                family = workloads.WORKLOADS[name].config.model.family
                by_family[family] = by_family.get(family, {}) | dict.fromkeys(names)
            for family, names in by_family.items():
                with _started(names, directory) as processes:
                    lines = check_parity(processes, directory / f'parity-{family}', family)
                print('\n'.join(lines) + '\n', flush=True)
        for name, names in chosen.items():
            with _started(names, directory) as processes:
                measured[name] = take_turns(processes, directory / name, name)
            print('\n'.join(table(name, directory / name, measured[name])), flush=True)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(measured, indent=2) + '\n')


if __name__ == '__main__':
    app.run(main)
