"""A process started by `end_with_parent` ends with its parent, however the parent ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.processes import ROOT

_CHILD = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1] + '.ended', 'w').close(), sys.exit(75)))
with open(sys.argv[1] + '.new', 'w') as file:
    file.write(str(os.getpid()))
os.rename(file.name, sys.argv[1])
time.sleep(60)
"""
_PARENT = """
import subprocess, sys
from bert_jax.runtime import end_with_parent
subprocess.Popen(end_with_parent.command(['-c', sys.argv[1], sys.argv[2]]), start_new_session=True).wait()
"""


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path.name
        time.sleep(0.01)


@pytest.mark.processes
def test_killed_parent_leaves_no_child(tmp_path: Path) -> None:
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    parent = subprocess.Popen([sys.executable, '-c', _PARENT, _CHILD, str(tmp_path / 'child')], env=env)
    try:
        _wait_for(tmp_path / 'child')
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _wait_for(tmp_path / 'child.ended')


@pytest.mark.processes
def test_child_of_a_dead_parent_does_not_start(tmp_path: Path) -> None:
    arguments = ['-m', 'bert_jax.runtime.end_with_parent', '1', '-c', 'raise SystemExit(3)']
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    assert subprocess.run([sys.executable, *arguments], env=env, timeout=60).returncode == 75
    arguments[2] = str(os.getpid())
    assert subprocess.run([sys.executable, *arguments], env=env, timeout=60).returncode == 3
