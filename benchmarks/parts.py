"""Benchmarks of several parts: each part runs commands of bert_jax, and its result is stored as a file."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
_STOPPED = 75  # exit status of a run that saved and stopped at its time limit
_SPARE = 0.05  # fraction of the steps that is not planned, in case the machine slows down


@dataclasses.dataclass(frozen=True)
class Parts:
    """The results in OUTPUT/results, one file per part. A finished part is not repeated."""

    output: Path

    def result(self, part: str) -> dict[str, Any] | None:
        """Returns the result of a part, or None if it has not finished."""
        path = self.output / 'results' / f'{part}.json'
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, part: str, result: dict[str, Any]) -> None:
        """Writes the result of a part, atomically."""
        path = self.output / 'results' / f'{part}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix('.partial').write_text(json.dumps(result, indent=1))
        path.with_suffix('.partial').rename(path)

    def keep_settings(self, flags: argparse.Namespace, *free: str) -> None:
        """Exits if the results in OUTPUT were measured with other flags, which the first run stores beside them.

        Args:
          free: flags that choose what to run and change no result, such as the number of seeds.
        """
        settings = {name: str(value) for name, value in vars(flags).items() if name not in ('output', *free)}
        stored = self.result('settings')
        if stored is None:
            self.write('settings', settings)
        for name, value in settings.items():
            if stored and stored.get(name, value) != value:
                sys.exit(
                    f'--{name}: {value}; the results in {self.output} were measured with {stored[name]}\n'
                    '  fix:  give the same value, or another --output'
                )


def run_module(module: str, *arguments: str, may_stop: bool = False, **environment: str) -> str:
    """Runs a module on the CPU and returns its standard output (if --json is given); exits if the module fails.

    Args:
      may_stop: whether the module may stop at its time limit.
      environment: additional variables.
    """
    print('$ python -m', module, *arguments, flush=True)
    variables = os.environ | {'JAX_PLATFORMS': 'cpu', 'TOKENIZERS_PARALLELISM': 'true'} | environment
    captured = subprocess.PIPE if '--json' in arguments else None
    done = subprocess.run(
        [sys.executable, '-m', module, *arguments], env=variables, cwd=_ROOT, stdout=captured, text=True
    )
    if done.returncode and not (may_stop and done.returncode == _STOPPED):
        sys.exit(f'{module} {arguments[0]} failed with status {done.returncode}; rerun the same command to resume')
    return done.stdout or ''


def run_bert_jax(*arguments: str, **options: Any) -> dict[str, Any]:
    """Runs a command of bert_jax and returns its JSON; options as for `run_module`."""
    return json.loads(run_module('bert_jax', *arguments, '--json', **options))


def fitting_steps(seconds: float, overhead: float, step_seconds: float) -> int:
    """Returns how many steps fit into `seconds`, of which `overhead` is not training, with a small reserve."""
    return max(10, int((seconds - overhead) * (1 - _SPARE) / step_seconds))
