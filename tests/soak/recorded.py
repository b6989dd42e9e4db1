"""`bert_jax`, recording the batch of every step: python -m tests.soak.recorded FILE COMMAND …

FILE gets one line per batch as it reaches the training step: the step and the SHA-256 of its arrays.
"""

import hashlib
import os
import sys

import jax

from bert_jax import __main__ as command_line
from bert_jax import pretrain
from bert_jax.runtime.stopping import leave


def main() -> int:
    record = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    class RecordedBatches(pretrain.Batches):
        def __next__(self):
            step, phase, batch = super().__next__()
            digest = hashlib.sha256(b''.join(array.tobytes() for array in jax.device_get(list(batch)))).hexdigest()
            os.write(record, f'{step} {digest}\n'.encode())
            return step, phase, batch

    pretrain.Batches = RecordedBatches
    return command_line.main(['bert_jax', *sys.argv[2:]])


if __name__ == '__main__':
    leave(main())
