"""Commands that read a run while it saves at every step, and checkpoints in directories with any name."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.errors import BadInput
from bert_jax.train.state import TrainState
from bert_jax.workdir.checkpoint import Checkpoints
from tests.soak.harness import Row, prepare, random_numbers, train_command, tries
from tests.support.processes import Running, bert_jax, environment

pytestmark = pytest.mark.soak

_ALPHABET = ['[', ']', '*', '?', '{', '}', '!', '%', '#', '@', '~', '$', "'", '"', ' ', '\n', '\t', ':', '|', '&', ';']
_ALPHABET += ['é', 'e\u0301', '日', '😀', '.', '-', 'a', 'b', '0', '\\', '\udcff']


@pytest.mark.processes
def test_reader_of_a_constantly_saving_run_gets_a_checkpoint(tmp_path: Path) -> None:
    row = Row('`evaluate` and `export` of a run that saves every step and deletes the step before')
    workdir = tmp_path / 'run'
    changes = {'train__checkpoint_every': 1, 'train__keep_checkpoints': 1, 'train__evaluate_every': 0}
    flags = prepare(tmp_path, train__steps=10_000_000, **changes)
    with Running(train_command(flags, workdir), environment()) as run:
        run.wait_until_logged(workdir, 3)
        for attempt in range(tries(20)):
            if attempt % 2:
                done = bert_jax('evaluate', f'--workdir={workdir}', '--sample=0', '--json')
            else:
                done = bert_jax('export', f'--workdir={workdir}', f'--output={tmp_path}/export', '--json')
            assert json.loads(done.stdout)['step'] > 0
            row.outcomes.append('read an intact checkpoint')
        assert run.process.poll() is None, run.text
    print(row)


def test_checkpoint_under_any_path_restores_or_is_rejected_early(tmp_path: Path) -> None:
    row, rng = Row('workdir in a directory with unusual characters'), random_numbers('paths')
    params = {'kernel': jnp.asarray(rng.standard_normal((16, 8)), jnp.float32)}
    state = TrainState(jnp.int32(7), params, {'mean': params})
    shapes, here = jax.eval_shape(lambda: state), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for _ in range(tries(300)):
        name = ''.join(rng.choice(_ALPHABET, rng.integers(1, 12)))
        if name in ('.', '..'):
            continue
        directory = tmp_path / 'all' / name
        try:
            with Checkpoints(str(directory / 'run')) as checkpoints:
                checkpoints.save(state)
        except BadInput:
            assert not directory.exists() and ('\\' in name or '\udcff' in name), repr(name)
            row.outcomes.append('rejected before anything was written')
            continue
        checkpoints = Checkpoints(str(directory / 'run'))
        assert checkpoints.set_aside_damaged() == 7, repr(name)
        restored = checkpoints.restore(shapes, jax.tree.map(lambda _: here, shapes), 7)
        assert jax.tree.all(jax.tree.map(np.array_equal, restored, state)), repr(name)
        row.outcomes.append('restored')
        shutil.rmtree(directory)
    print(row)
