"""`bert_jax` with a jumping clock or non-finite batches: python -m tests.soak.faulty FAULT COMMAND …

FAULT is `clock:SEED` (the time of day jumps by up to two days either way, several times a second) or
`batches:SEED:SHARE` (that share of the batches, chosen by step, has infinite weights).
"""

import random
import sys
import time

import numpy as np

from bert_jax import __main__ as command_line
from bert_jax.data.batches import Batch, CorpusStream
from bert_jax.runtime.stopping import leave


def jump(seed: int) -> None:
    """Makes the time of day jump; monotonic clocks are left alone, as they are in a real system."""
    real_time, rng = time.time, random.Random(seed)
    offset, until = 0.0, 0.0

    def jumping() -> float:
        nonlocal offset, until
        if time.monotonic() > until:
            offset, until = rng.uniform(-2, 2) * 86_400, time.monotonic() + rng.uniform(0.05, 0.5)
        return real_time() + offset

    time.time = jumping


def plant(seed: int, share: float) -> None:
    """Makes some batches of a stream non-finite, always the same ones."""
    original = CorpusStream.batch

    def batch(self: CorpusStream, step: int, rows: slice = slice(None)) -> Batch:
        batch = original(self, step, rows)
        if random.Random(f'{seed} {step // 2}').random() < share:  # two in a row, so that some cause a rollback
            batch = batch._replace(masked_lm_weights=np.full_like(batch.masked_lm_weights, np.inf))
        return batch

    CorpusStream.batch = batch


def main() -> int:
    kind, *arguments = sys.argv[1].split(':')
    if kind == 'clock':
        jump(int(arguments[0]))
    else:
        plant(int(arguments[0]), float(arguments[1]))
    return command_line.main(['bert_jax', *sys.argv[2:]])


if __name__ == '__main__':
    leave(main())
