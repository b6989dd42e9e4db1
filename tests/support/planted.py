"""`bert_jax` with a fault planted in it: python -m tests.support.planted WHERE:STEP COMMAND …

WHERE is `batch` (waiting for input), `step` (about to give a step to the devices), `save`, or `slow`, which only
sleeps for 0.2 s before every batch from that step on.
"""

import sys
import time

from bert_jax import __main__ as command_line
from bert_jax import pretrain
from bert_jax.runtime import watchdog
from bert_jax.runtime.stopping import leave
from bert_jax.workdir import checkpoint


def sleep_for_ever() -> None:
    print('planted', file=sys.stderr, flush=True)
    time.sleep(10_000)


def main() -> int:
    where, _, step_text = sys.argv[1].partition(':')
    at = int(step_text)
    if where in ('batch', 'slow'):

        class Planted(pretrain.Batches):
            def __next__(self):
                step, number, batch = super().__next__()
                if where == 'slow' and step >= at:
                    time.sleep(0.2)
                elif step >= at:
                    sleep_for_ever()
                return step, number, batch

        pretrain.Batches = Planted
    elif where == 'step':
        begin = watchdog.Watchdog.begin_step

        def begin_step(self, step):
            begin(self, step)
            if step >= at:
                sleep_for_ever()

        watchdog.Watchdog.begin_step = begin_step
    else:
        save = checkpoint.Checkpoints.save

        def stuck_save(self, state, *arguments, **named):
            if int(state.step) >= at:
                sleep_for_ever()
            save(self, state, *arguments, **named)

        checkpoint.Checkpoints.save = stuck_save
    return command_line.main(['bert_jax', *sys.argv[2:]])


if __name__ == '__main__':
    leave(main())
