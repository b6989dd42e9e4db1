"""Commands that read a run while it saves at every step; and checkpoints below directories of any name."""

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
def test_a_reader_of_a_run_that_saves_all_the_time_gets_a_checkpoint(tmp_path: Path) -> None:
    row, workdir = Row('`evaluate` and `export` while every step is saved and the one before deleted'), tmp_path / 'run'
    changes = {'train__checkpoint_every': 1, 'train__keep_checkpoints': 1, 'train__evaluate_every': 0}
    flags = prepare(tmp_path, train__steps=10_000_000, **changes)
    with Running(train_command(flags, workdir), environment()) as run:
        run.wait_until_logged(workdir, 3)
        for number in range(tries(20)):
            if number % 2:
                done = bert_jax('evaluate', f'--workdir={workdir}', '--sample=0', '--json')
            else:
                done = bert_jax('export', f'--workdir={workdir}', f'--output={tmp_path}/export', '--json')
            assert json.loads(done.stdout)['step'] > 0
            row.outcomes.append('read a whole checkpoint')
        assert run.process.poll() is None, run.text
    print(row)


def test_a_checkpoint_below_any_name_restores_or_is_refused_before_it_is_written(tmp_path: Path) -> None:
    row, rng = Row('a workdir below a directory of odd characters'), random_numbers('paths')
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
            row.outcomes.append('refused')
            continue
        checkpoints = Checkpoints(str(directory / 'run'))
        assert checkpoints.set_aside_damaged() == 7, repr(name)
        found = checkpoints.restore(shapes, jax.tree.map(lambda _: here, shapes), 7)
        assert jax.tree.all(jax.tree.map(np.array_equal, found, state)), repr(name)
        row.outcomes.append('restored')
        shutil.rmtree(directory)
    print(row)
