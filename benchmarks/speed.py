"""How fast the train step is, next to PyTorch: every contestant in a process of its own, taking turns A B A B.

    python -m benchmarks.speed                      # the CPU table (make bench)
    python -m benchmarks.speed --workloads=base,large --contestants=…   (see benchmarks/gpu.sh)

All have the same sizes, weights to start from, batches, dropout rates and optimiser. Before anything is timed they
train a small model for 200 steps without dropout, and must have the same losses: float32 within 1e-3 of ours at each
step, bfloat16 within 2% on the average of the last 50. Each then takes a few steps at a time; figures are medians over
turns. The ceiling is what the matrix products of a step take by themselves, in XLA and in PyTorch. PyTorch comes by
`pip install -e '.[test]'`.
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
        'PyTorch page float32',
        'PyTorch page bfloat16',
        'PyTorch page float32 compiled',
        'PyTorch page bfloat16 compiled',
    ),
    'base-cpu': ('bert_jax bfloat16', 'PyTorch page bfloat16 compiled'),
}
_WORKLOADS = flags.DEFINE_list('workloads', list(_CPU), f'of {", ".join(workloads.WORKLOADS)}')
_CONTESTANTS = flags.DEFINE_list('contestants', None, f'of {", ".join(CONTESTANTS)}; ratios are of those of bert_jax')
_THREADS = flags.DEFINE_integer('threads', len(os.sched_getaffinity(0)), 'of a contestant in PyTorch', lower_bound=1)
_TURNS = flags.DEFINE_integer('turns', 3, 'at most, of each contestant', lower_bound=1)
_TURN_S = flags.DEFINE_float('turn_seconds', 2.0, 'of a turn, at least')
_BUDGET_S = flags.DEFINE_float(
    'budget_seconds', 60.0, 'of the turns of one workload; three turns there are in any case'
)
_PARITY = flags.DEFINE_boolean('parity', True, 'compare losses over 200 steps first')
_JSON = flags.DEFINE_string('json', None, 'a file to write all figures to')
_PARITY_STEPS, _FEWEST_TURNS = 200, 3


class Process:
    """A contestant, waiting for its turn."""

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

    def ask(self, **what: object) -> dict:
        """Has it do something, and waits.

        Raises:
          RuntimeError: with the end of what it said, when it ended instead.
        """
        start = time.perf_counter()
        try:
            self._process.stdin.write(json.dumps(what) + '\n')
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ''
        task = ' '.join(f'{key} {Path(value).name if key == "load" else value}' for key, value in what.items())
        print(f'  {time.perf_counter() - start:6.2f} s  {self.name}: {task}', file=sys.stderr)
        if not answer:
            said = Path(self._log.name).read_text(errors='replace').splitlines()[-15:]
            status = self._process.wait()
            raise RuntimeError(f'{self.name} ended with status {status} (-9: no memory?):\n' + '\n'.join(said))
        return json.loads(answer)

    def close(self) -> None:
        """Lets it end."""
        with contextlib.suppress(BrokenPipeError):  # it ended already, and what it was asked last was not written
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._log.close()


def check_parity(processes: dict[str, Process], directory: Path) -> list[str]:
    """Lines to print: how far the losses of each are from those of the first.

    Raises:
      RuntimeError: when one of them trains something else.
    """
    workloads.write(workloads.WORKLOADS['parity'], directory)
    losses: dict[str, list[float]] = {}
    for name, process in processes.items():
        losses[name] = process.ask(load=str(directory))['losses']
        losses[name] += process.ask(steps=_PARITY_STEPS - 1)['losses']
    ours = next(iter(losses.values()))
    lines = [
        f'Losses over {_PARITY_STEPS} steps from the same weights, without dropout: {ours[0]:.4f} to {ours[-1]:.4f}'
    ]
    for name, theirs in losses.items():
        largest = max(abs(a - b) / b for a, b in zip(theirs, ours, strict=True))
        last = abs(sum(theirs[-50:]) / sum(ours[-50:]) - 1)
        lines.append(f'  {name:32} largest difference {largest:.1e}, of the last 50 on average {last:.1e}')
        if last > 2e-2 or ('float32' in name and 'float32' in next(iter(losses)) and largest > 1e-3):
            raise RuntimeError('\n'.join([*lines, f'{name} does not train the same model']))
    return lines


def take_turns(processes: dict[str, Process], directory: Path, name: str) -> dict[str, dict[str, float]]:
    """Figures of each contestant on a workload."""
    workloads.write(workloads.WORKLOADS[name], directory)
    found: dict[str, dict] = {}
    counts = {}
    for who, process in processes.items():
        found[who] = {'load_seconds': process.ask(load=str(directory))['seconds']}
        once = process.ask(steps=1)['seconds']
        counts[who] = max(1, round(_TURN_S.value / once))
        found[who]['turns'] = [once] if once > _TURN_S.value else []  # a step so long is a turn
        if counts[who] > 1:
            process.ask(steps=counts[who])  # memory is taken for steps at each other's heels
    started = time.perf_counter()
    for _ in range(_TURNS.value):
        for who, process in processes.items():
            answer = process.ask(steps=counts[who])
            found[who]['turns'].append(answer['seconds'] / counts[who])
            found[who] |= {name: answer[name] for name in ('peak_bytes', 'peak_flops')}
        fewest = min(len(figures['turns']) for figures in found.values())
        if fewest >= _FEWEST_TURNS and time.perf_counter() - started > _BUDGET_S.value:
            break
    for who, process in processes.items():
        found[who]['step_seconds'] = statistics.median(found[who]['turns'])
        if who.startswith('bert_jax') or who == 'PyTorch page bfloat16 compiled':
            found[who]['products_seconds'] = process.ask(products=True)['products']
    return found


def table(name: str, directory: Path, found: dict[str, dict]) -> list[str]:
    """Markdown."""
    from bert_jax.plan.bench import mean_counts

    config, batches = workloads.read(directory)
    counts = mean_counts(config, config.tokenizer.vocab_size, batches)
    rows = config.train.global_batch_size
    ours = [who for who in found if who.startswith('bert_jax')]
    peak = next((figures['peak_flops'] for figures in found.values() if figures['peak_flops']), None)
    lines = [
        f'{name}: {workloads.WORKLOADS[name].describe}; {counts.flops / 1e9:,.0f} GFLOP a step',
        '',
        '| | rows/s | real tokens/s | ms a step (range) | GFLOP/s | of its own products | MFU | peak GiB '
        + ''.join(f'| takes, of {who} ' for who in ours)
        + '|',
        '|---|--:|--:|--:|--:|--:|--:|--:' + '|--:' * len(ours) + '|',
    ]
    for who, figures in found.items():
        seconds, alone = figures['step_seconds'], figures.get('products_seconds')
        span = f'{min(figures["turns"]) * 1e3:,.0f} to {max(figures["turns"]) * 1e3:,.0f}'
        lines.append(
            f'| {who} | {rows / seconds:.1f} | {counts.tokens / seconds:,.0f} | {seconds * 1e3:,.0f} ({span}) '
            f'| {counts.flops / seconds / 1e9:,.0f} | {f"{alone / seconds:.0%}" if alone else ""} '
            f'| {f"{counts.flops / seconds / peak:.1%}" if peak else ""} | {figures["peak_bytes"] / 2**30:.2f} '
            + ''.join(f'| {seconds / found[one]["step_seconds"]:.2f} x ' for one in ours)
            + '|'
        )
    shown = '; '.join(
        f'{who} {counts.flops / figures["products_seconds"] / 1e9:,.0f} GFLOP/s'
        for who, figures in found.items()
        if 'products_seconds' in figures
    )
    return [*lines, '', f'Matrix products of a step alone: {shown}', '']


@contextlib.contextmanager
def _started(names: Iterable[str], directory: Path) -> Iterator[dict[str, Process]]:
    """Contestants by name; they end with the block, so that no workload is in the memory of the next."""
    processes = {who: Process(who, directory / f'{number}.log') for number, who in enumerate(names)}
    try:
        yield processes
    finally:
        for process in processes.values():
            process.close()


def main(_: list[str]) -> None:
    figures: dict[str, dict] = {}
    chosen = {name: tuple(_CONTESTANTS.value or _CPU[name]) for name in _WORKLOADS.value}
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        if _PARITY.value:
            everyone = dict.fromkeys(who for names in chosen.values() for who in names)
            with _started(everyone, directory) as processes:
                print('\n'.join(check_parity(processes, directory / 'parity')) + '\n', flush=True)
        for name, names in chosen.items():
            with _started(names, directory) as processes:
                figures[name] = take_turns(processes, directory / name, name)
            print('\n'.join(table(name, directory / name, figures[name])), flush=True)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(figures, indent=2) + '\n')


if __name__ == '__main__':
    app.run(main)
