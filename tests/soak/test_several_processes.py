"""Several processes go back together: the same decisions at the same steps as in one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.harness import environment, prepare
from tests.test_run import ROOT


@pytest.mark.soak
def test_all_processes_go_back_together(tmp_path: Path) -> None:
    flags = prepare(
        tmp_path,
        optimizer__peak_learning_rate=1e38,
        train__steps=30,
        train__max_bad_steps=2,
        train__max_rollbacks=2,
        train__checkpoint_every=2,
    )
    told = {}
    for processes in (1, 2):
        command = [sys.executable, str(ROOT / 'launch' / 'local.py'), f'--processes={processes}', '--devices=1', '--']
        command += ['train', *flags, f'--workdir={tmp_path}/{processes}']
        env = environment(tmp_path / 'cache')
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
        told[processes] = re.findall(r'Step \d+: .* Back to step \d+|step \d+: the loss .* roll-backs', done.stderr)
    assert len({*told[1]}) == 3 and {*told[1]} == {*told[2]}, told
    print('| a learning rate that blows up, 1 and 2 processes | 2 | the same roll-backs, then a message | – | – |')
