"""`bert_jax` with an injected fault: python -m tests.support.planted WHERE:STEP COMMAND …

WHERE is where the process hangs: `batch` (waiting for input), `step` (about to dispatch a step) or `save`. With `slow`
it only sleeps for 0.2 s before every batch from that step on.
"""

import sys
import time

from bert_jax import __main__ as command_line
from bert_jax import pretrain
from bert_jax.runtime import watchdog
from bert_jax.runtime.stopping import leave
from bert_jax.workdir import checkpoint


def sleep_forever() -> None:
    print('planted', file=sys.stderr, flush=True)
    time.sleep(10_000)


def main() -> int:
    where, _, step_text = sys.argv[1].partition(':')
    at = int(step_text)
    if where in ('batch', 'slow'):

        class Planted(pretrain.Batches):
            def __next__(self):
                step, phase, batch = super().__next__()
                if where == 'slow' and step >= at:
                    time.sleep(0.2)
                elif step >= at:
                    sleep_forever()
                return step, phase, batch

        pretrain.Batches = Planted
    elif where == 'step':
        begin = watchdog.Watchdog.begin_step

        def begin_step(self, step):
            begin(self, step)
            if step >= at:
                sleep_forever()

        watchdog.Watchdog.begin_step = begin_step
    else:
        save = checkpoint.Checkpoints.save

        def stuck_save(self, state, *arguments, **named):
            if int(state.step) >= at:
                sleep_forever()
            save(self, state, *arguments, **named)

        checkpoint.Checkpoints.save = stuck_save
    return command_line.main(['bert_jax', *sys.argv[2:]])


if __name__ == '__main__':
    leave(main())
