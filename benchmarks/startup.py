"""Measures the time from the start of `train` to its first step: cold, with cached programs, and resuming.

    python -m bert_jax prepare --config=configs/demo.py
    python -m benchmarks.startup [--sizes=tiny,base]

For each size, `train` is started three times: with an empty compilation cache; again in a new workdir; and again in
that workdir, after the second run was killed following its first save. `--help` is measured as well.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

_CORPUS = flags.DEFINE_string('corpus', 'corpora/python-docs', 'directory written by `prepare`')
_SIZES = flags.DEFINE_list('sizes', ['tiny', 'base'], 'model sizes')
_ROWS = flags.DEFINE_integer('rows', 2, 'rows per batch; small, so that the first step itself is fast', lower_bound=1)
_LENGTH = flags.DEFINE_integer('length', 64, 'positions per row', lower_bound=8)
_LIMIT_S = 300.0


def until_first_step(size: str, workdir: Path, cache: Path, *, saves: bool) -> float:
    """Returns the seconds until a run reports its first step, then kills it (with `saves`, after its first checkpoint).

    Raises:
      RuntimeError: with its output, if the run ends or takes too long.
    """
    command = [
        sys.executable, '-m', 'bert_jax', 'train', f'--config=configs/bert.py:{size}', f'--workdir={workdir}',
        f'--config.data.corpus={_CORPUS.value}', f'--config.data.sequence_length={_LENGTH.value}',
        f'--config.train.global_batch_size={_ROWS.value}', '--config.train.log_every=1',
        f'--config.train.checkpoint_every={1 if saves else 1_000_000}',
    ]  # fmt: skip
    start, lines = time.perf_counter(), []
    process = subprocess.Popen(
        command, env=os.environ | {'XDG_CACHE_HOME': str(cache)}, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in process.stderr:
            lines.append(line)
            if line.startswith('step '):
                break
        seconds = time.perf_counter() - start
        if not lines or not lines[-1].startswith('step '):
            raise RuntimeError(''.join(lines))
        while saves and not list(workdir.glob('checkpoints/*/manifest.json')):
            if time.perf_counter() - start > _LIMIT_S:
                raise RuntimeError(f'no checkpoint in {workdir}')
            time.sleep(0.1)
        return seconds
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def help_seconds() -> float:
    """Returns the median of five runs of `--help`."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, '-m', 'bert_jax', '--help'], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main(_: list[str]) -> None:
    print(f'--help: {help_seconds():.2f} s', flush=True)
    for size in _SIZES.value:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            cold = until_first_step(size, directory / 'a', directory / 'cache', saves=False)
            warm = until_first_step(size, directory / 'b', directory / 'cache', saves=True)
            resumed = until_first_step(size, directory / 'b', directory / 'cache', saves=False)
        print(
            f'{size}: first step after {cold:.1f} s (cold), {warm:.1f} s (cached), {resumed:.1f} s (resuming)',
            flush=True,
        )


if __name__ == '__main__':
    app.run(main)
