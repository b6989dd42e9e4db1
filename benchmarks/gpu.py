"""Measures a machine with one GPU in one call of about ten minutes, and writes a table.

    python -m benchmarks.gpu [--output=runs/gpu] [--minutes=10] [--tiny]

The kernels are compared with plain attention on the device; then bert_jax and the optimized PyTorch pages take turns
on BERT and ModernBERT (packed rows, bfloat16, flash attention and `torch.compile` in PyTorch); then `plan` predicts two
of these steps. Each part runs in processes of its own. Its result is kept in OUTPUT/results, so that a second call
repeats only the parts that failed or did not start in time. OUTPUT/gpu.json has all results, OUTPUT/gpu.md the tables.
--tiny runs every part in small on a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.parts import Parts

_ROOT = Path(__file__).resolve().parent.parent
_WORKLOADS = ('base', 'large', 'modernbert-1024', 'modernbert-8192', 'base-128', 'large-128')  # the first matter most
_PLANNED = ('base', 'modernbert-1024')
_CHECKED = ('base', 'modernbert-1024')
_TINY = ('smoke-bert', 'smoke-modernbert')
_LIMIT_S = 240  # of a part


class Part(NamedTuple):
    """A measurement.

    Attributes:
      command: arguments of `python -m`; `{}` stands for the file that it writes its JSON to, else to standard output.
    """

    name: str
    command: tuple[str, ...]


def parts(*, tiny: bool) -> Iterator[Part]:
    """Yields the parts in the order in which they run."""
    dtype = 'float32' if tiny else 'bfloat16'
    yield Part('device', ('benchmarks.gpu_parts', 'device'))
    for workload in _TINY if tiny else _CHECKED:
        yield Part(f'kernels-{workload}', ('benchmarks.gpu_parts', 'kernels', workload, dtype))
    pytorch = 'PyTorch float32' if tiny else 'PyTorch bfloat16 compiled'
    turns = ('--turns=3', '--turn_seconds=0.1', '--budget_seconds=1') if tiny else ('--turns=5', '--budget_seconds=15')
    for workload in _TINY if tiny else _WORKLOADS:
        contestants = f'--contestants=bert_jax {dtype},{pytorch}'
        options = (f'--workloads={workload}', contestants, *turns, '--noparity', '--json={}')
        yield Part(f'speed-{workload}', ('benchmarks.speed', *options))
    for workload in _TINY[:1] if tiny else _PLANNED:
        yield Part(f'plan-{workload}', ('benchmarks.gpu_parts', 'plan', workload, dtype))


def run(part: Part, output: Path) -> dict[str, Any]:
    """Runs a part, with its log in OUTPUT/logs; returns its result, or the last lines of the log as `error`."""
    log, written = output / 'logs' / f'{part.name}.txt', output / 'logs' / f'{part.name}.json'
    log.parent.mkdir(parents=True, exist_ok=True)
    written.unlink(missing_ok=True)
    command = [sys.executable, '-m', *(argument.replace('{}', str(written)) for argument in part.command)]
    # Two processes share the device.
    environment = os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
    start = time.monotonic()
    with log.open('w') as stderr:
        try:
            done = subprocess.run(
                command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=_LIMIT_S
            )
            failure = '' if done.returncode == 0 else f'exit status {done.returncode}'
        except subprocess.TimeoutExpired:
            failure = f'stopped after {_LIMIT_S} s'
    if failure:
        return {'error': '\n'.join([failure, *log.read_text(errors='replace').splitlines()[-5:]])}
    text = written.read_text() if written.exists() else done.stdout.splitlines()[-1]
    return json.loads(text) | {'seconds': time.monotonic() - start}


def measure(chosen: Sequence[Part], output: Path, minutes: float) -> dict[str, dict[str, Any] | None]:
    """Runs the parts without a result until the time is over; returns all results, None for what is left.

    The result of a part that failed is not kept, so that the next call tries again.
    """
    kept, start = Parts(output), time.monotonic()
    results: dict[str, dict[str, Any] | None] = {}
    for part in chosen:
        result = kept.result(part.name)
        if result is None and time.monotonic() - start < 60 * minutes:
            result = run(part, output)
            if 'error' not in result:
                kept.write(part.name, result)
            print(f'{time.monotonic() - start:6.1f} s  {part.name}: {result.get("error", "done")}', flush=True)
        results[part.name] = result
    return results


def tables(results: dict[str, dict[str, Any] | None]) -> str:
    """Returns the results as Markdown; parts without a result have no row."""
    found = {name: result for name, result in results.items() if result is not None and 'error' not in result}
    device = found.get('device', {}).get('device', 'unknown')
    lines = [f'Device: {device}; jax {found.get("device", {}).get("jax", "unknown")}', '']
    lines += ['| gradients with kernels, and attention dropout | error | of plain attention | |', '|---|--:|--:|---|']
    for name, result in _of(found, 'kernels'):
        errors, verdict = result['errors'], 'correct' if result['is_correct'] else '**WRONG**'
        lines.append(f'| {name} | {errors["auto"]:.2e} | {errors["plain"]:.2e} | {verdict} |')
    lines += ['', '| step | bert_jax | rows/s | MFU | peak GiB | PyTorch | rows/s | MFU | peak GiB | speed-up |']
    lines.append('|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|')
    lines += [_speed_row(name, result) for name, result in _of(found, 'speed')]
    lines += ['', '| `plan` | measured | predicted | from the data sheet | memory: measured | predicted |']
    lines.append('|---|--:|--:|--:|--:|--:|')
    lines += [_plan_row(name, result) for name, result in _of(found, 'plan')]
    left = [name for name, result in results.items() if result is None or 'error' in result]
    if left:
        lines += ['', f'Without a result: {", ".join(left)}; the same command runs them']
    return '\n'.join([*lines, ''])


def _of(found: dict[str, dict[str, Any]], kind: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name.removeprefix(f'{kind}-'), each) for name, each in found.items() if name.startswith(f'{kind}-')]


def _speed_row(name: str, result: dict[str, Any]) -> str:
    from benchmarks.workloads import WORKLOADS, batches_of
    from bert_jax.plan.bench import mean_counts

    config = WORKLOADS[name].config
    flops = mean_counts(config, config.tokenizer.vocab_size, batches_of(WORKLOADS[name])).flops
    measured = result[name]
    peak = next((each['peak_flops'] for each in measured.values() if each.get('peak_flops')), None)
    cells = [name]
    seconds = [each['step_seconds'] for each in measured.values()]  # ours first
    for each in measured.values():
        rows = config.train.global_batch_size / each['step_seconds']
        mfu = f'{flops / each["step_seconds"] / peak:.1%}' if peak else ''
        cells += [f'{each["step_seconds"] * 1e3:,.1f} ms', f'{rows:,.1f}', mfu, f'{each["peak_bytes"] / 2**30:.2f}']
    return f'| {" | ".join([*cells, f"{seconds[1] / seconds[0]:.2f} x"])} |'


def _plan_row(name: str, result: dict[str, Any]) -> str:
    measured = result['step_seconds']

    def predicted(seconds: float | None) -> str:
        return '' if seconds is None else f'{seconds * 1e3:,.1f} ms ({seconds / measured - 1:+.0%})'

    cells = [name, f'{measured * 1e3:,.1f} ms', predicted(result['predicted_seconds'])]
    cells += [predicted(result['predicted_from_data_sheet_seconds']), f'{result["peak_bytes"] / 2**30:.2f} GiB']
    cells.append(f'{result["predicted_bytes"] / 2**30:.2f} GiB')
    return f'| {" | ".join(cells)} |'


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is left, then writes the JSON and the tables of all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, default=Path('runs/gpu'), help='directory (default: runs/gpu)')
    parser.add_argument('--minutes', type=float, default=10.0, help='after which no part starts (default: 10)')
    parser.add_argument('--tiny', action='store_true', help='small models, in float32, for a CPU')
    given = parser.parse_args(arguments)
    results = measure([*parts(tiny=given.tiny)], given.output.resolve(), given.minutes)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / 'gpu.json').write_text(json.dumps(results, indent=1) + '\n')
    (given.output / 'gpu.md').write_text(tables(results))
    print(tables(results), flush=True)


if __name__ == '__main__':
    main()
