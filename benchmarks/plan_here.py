"""Measures the error of `plan --target=here`: step time and memory, predicted and then measured, for several runs.

    python -m benchmarks.plan_here [--only=NAME]

Each line is one process, `plan --target=here --json` with these flags. It measures matmuls, a copy and elementwise
operations, compiles the step, predicts its time, and runs it on random ids. The table compares the planned memory
(state, batch, and the compiler's figure for everything else) with the growth of the process for state and one step, and
shows the peak of the process, including compiler and Python. The memory of an empty jax process is printed first.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

_DEMO, _BERT = 'configs/demo.py', 'configs/bert.py'
RUNS = {
    'demo, 32 x 64': (_DEMO, {}),
    'tiny, 64 x 128': (f'{_BERT}:tiny', {'batch': 64, 'length': 128}),
    'mini, 32 x 128': (f'{_BERT}:mini', {'batch': 32, 'length': 128}),
    'mini, 8 x 512': (f'{_BERT}:mini', {'batch': 8, 'length': 512}),
    'mini, 32 x 128, LAMB': (f'{_BERT}:mini', {'batch': 32, 'length': 128, 'optimizer.name': 'lamb'}),
    'mini, 32 x 128, remat': (f'{_BERT}:mini', {'batch': 32, 'length': 128, 'model.remat': 'full'}),
    'small, 16 x 128': (f'{_BERT}:small', {'batch': 16, 'length': 128}),
    'medium, 16 x 128': (f'{_BERT}:medium', {'batch': 16, 'length': 128}),
    'base, 8 x 128': (f'{_BERT}:base', {'batch': 8, 'length': 128}),
    'base, 2 x 512': (f'{_BERT}:base', {'batch': 2, 'length': 512}),
}
_SHORT = {'batch': 'train.global_batch_size', 'length': 'data.sequence_length'}


def plan(config: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Returns what `plan` reports for a config on this machine."""
    overrides = [f'--config.{_SHORT.get(name, name)}={value}' for name, value in fields.items()]
    command = [sys.executable, '-m', 'bert_jax', 'plan', f'--config={config}', '--target=here', '--json', *overrides]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def empty_process_bytes() -> int:
    """Returns the peak resident size of a process that has created one array."""
    program = (
        'import jax, resource; jax.numpy.ones(1).block_until_ready()\n'
        'print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)'
    )
    done = subprocess.run([sys.executable, '-c', program], check=True, stdout=subprocess.PIPE)
    return int(done.stdout) * 1024


def main() -> None:
    """Prints the table line by line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=RUNS)
    only = parser.parse_args().only
    os.environ['JAX_PLATFORMS'] = 'cpu'
    cores = len(os.sched_getaffinity(0))
    print(
        f'{cores} core{"s" if cores != 1 else ""}; an empty jax process uses {empty_process_bytes() / 2**20:,.0f} MiB\n'
    )
    print('| run | step: predicted | measured | error | memory: planned | measured | error | process peak |')
    print('|---|--:|--:|--:|--:|--:|--:|--:|')
    for name, (config, fields) in RUNS.items():
        if only not in (None, name):
            continue
        result = plan(config, fields)
        predicted, measured = result['step_seconds'], result['measured']['step_seconds']
        planned, grown = result['required_bytes']['total'], result['measured']['grown_bytes']
        cells = [
            name,
            f'{predicted * 1e3:,.0f} ms',
            f'{measured * 1e3:,.0f} ms',
            f'{predicted / measured - 1:+.0%}',
            f'{planned / 2**20:,.0f} MiB',
            f'{grown / 2**20:,.0f} MiB',
            f'{planned / grown - 1:+.0%}',
            f'{result["measured"]["peak_bytes"] / 2**20:,.0f} MiB',
        ]
        print(f'| {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
    main()
