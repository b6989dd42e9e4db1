"""Measures what lease, watchdog and signal handling cost a training step: python -m benchmarks.watching [--step_ms=100]

Measures the processor time of the calls that the loop makes: those of every step, and the check of the lease every
`log_every` steps. Background threads wake every five seconds; their work is included. One process, local disk.
"""

import argparse
import json
import tempfile
import time

import jax.numpy as jnp

from bert_jax.config import Train
from bert_jax.runtime.lease import HEARTBEAT_SECONDS
from bert_jax.runtime.supervisor import Supervisor


def measure(step_ms: float, repeats: int = 20_000) -> dict[str, float]:
    """Returns the microseconds per step, and their share of a step of `step_ms` milliseconds."""
    result = jnp.zeros(()).block_until_ready()
    train = Train()
    seconds = {'watchdog_seconds': train.watchdog_seconds, 'watchdog_long_seconds': train.watchdog_long_seconds}
    with tempfile.TemporaryDirectory() as workdir, Supervisor(**seconds) as supervisor:
        supervisor.acquire(workdir)
        start = time.process_time()
        for step in range(repeats):
            with supervisor.step(step):
                pass
            supervisor.should_stop(1.0)
            supervisor.end_step(result)
        per_step = (time.process_time() - start) / repeats
        start = time.process_time()
        for _ in range(repeats // 20):
            supervisor.check_lease()
        per_check = (time.process_time() - start) / (repeats // 20)
        start = time.process_time()
        time.sleep(2 * HEARTBEAT_SECONDS)
        thread_share = (time.process_time() - start) / (2 * HEARTBEAT_SECONDS)
    step_share = (per_step + per_check / train.log_every) / (step_ms / 1e3) + thread_share
    return {
        'microseconds_per_step': per_step * 1e6,
        'microseconds_per_lease_check': per_check * 1e6,
        'share_of_the_threads': thread_share,
        'step_ms': step_ms,
        'share_of_a_step': step_share,
    }


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--step_ms', type=float, default=100.0, help='step time to compare with, in ms (default: 100)')
    print(json.dumps(measure(parser.parse_args().step_ms), indent=2))
