"""How far `plan --target=here` is off: a step's time, and its memory, predicted and then measured, for several runs.

    python -m benchmarks.plan_here [--only=NAME]

Each line is a process of its own, `plan --target=here --json` with these flags: it measures matrix products, a copy and
elementwise work, compiles the step, predicts, and runs it on random ids. Memory is what the plan counts (state, batch,
and the compiler's figure for the rest) next to what the process grew by for state and a step, and to the most that it
held, compiler and Python included; what an empty process of jax holds is printed first.
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
    """What `plan` says of a config here."""
    overrides = [f'--config.{_SHORT.get(name, name)}={value}' for name, value in fields.items()]
    command = [sys.executable, '-m', 'bert_jax', 'plan', f'--config={config}', '--target=here', '--json', *overrides]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def empty_process_bytes() -> int:
    """The resident size of a process that has made one array."""
    program = (
        'import jax, resource; jax.numpy.ones(1).block_until_ready()\n'
        'print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)'
    )
    done = subprocess.run([sys.executable, '-c', program], check=True, stdout=subprocess.PIPE)
    return int(done.stdout) * 1024


def main() -> None:
    """Prints the table, a line as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=RUNS)
    only = parser.parse_args().only
    os.environ['JAX_PLATFORMS'] = 'cpu'
    cores = len(os.sched_getaffinity(0))
    print(f'{cores} cores; an empty process of jax holds {empty_process_bytes() / 2**20:,.0f} MiB\n')
    print('| run | step: predicted | measured | off by | memory: planned | grown | off by | process at most |')
    print('|---|--:|--:|--:|--:|--:|--:|--:|')
    for name, (config, fields) in RUNS.items():
        if only not in (None, name):
            continue
        found = plan(config, fields)
        predicted, measured = found['step_seconds'], found['measured']['step_seconds']
        planned, grown = found['required_bytes']['total'], found['measured']['grown_bytes']
        cells = [
            name,
            f'{predicted * 1e3:,.0f} ms',
            f'{measured * 1e3:,.0f} ms',
            f'{predicted / measured - 1:+.0%}',
            f'{planned / 2**20:,.0f} MiB',
            f'{grown / 2**20:,.0f} MiB',
            f'{planned / grown - 1:+.0%}',
            f'{found["measured"]["peak_bytes"] / 2**20:,.0f} MiB',
        ]
        print(f'| {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
    main()
