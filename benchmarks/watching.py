"""What lease, watchdog and listening for signals cost a training step: python -m benchmarks.watching [--step_ms=100]

Times what the loop calls, in processor time of this process: once a step, and once every `log_every` steps (the look
at the lease). The threads beside it wake every five seconds; their work is counted too. One process; local disk.
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
    """Microseconds a step, and their share of a step of so many milliseconds."""
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
        of_a_step = (time.process_time() - start) / repeats
        start = time.process_time()
        for _ in range(repeats // 20):
            supervisor.check_lease()
        of_a_look = (time.process_time() - start) / (repeats // 20)
        start = time.process_time()
        time.sleep(2 * HEARTBEAT_SECONDS)
        of_the_threads = (time.process_time() - start) / (2 * HEARTBEAT_SECONDS)  # of a second
    share = (of_a_step + of_a_look / train.log_every) / (step_ms / 1e3) + of_the_threads
    return {
        'microseconds_a_step': of_a_step * 1e6,
        'microseconds_a_look_at_the_lease': of_a_look * 1e6,
        'share_of_the_threads': of_the_threads,
        'step_ms': step_ms,
        'share_of_a_step': share,
    }


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--step_ms', type=float, default=100.0, help='the step that it is a share of (100)')
    print(json.dumps(measure(parser.parse_args().step_ms), indent=2))
