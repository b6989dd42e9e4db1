"""Preparing, training and exporting alone open no connection to anywhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.configs import as_flags, tiny_run
from tests.support.processes import environment
from tests.support.texts import write_text

pytestmark = pytest.mark.processes

_PROGRAM = """
import json, os, pathlib, sys

seen = []


def hook(event, arguments):
    if event.startswith('socket.') and event not in ('socket.__new__', 'socket.gethostname'):
        seen.append([event, repr(arguments[1:])])


def sockets():  # of this process, in the system's tables: what a library opens without Python is there too
    inodes = set()
    for name in os.listdir('/proc/self/fd'):
        try:
            inodes.add(os.readlink(f'/proc/self/fd/{name}'))
        except OSError:
            pass
    tables = [pathlib.Path(f'/proc/self/net/{table}') for table in ('tcp', 'tcp6', 'udp', 'udp6')]
    rows = [row.split() for table in tables if table.exists() for row in table.read_text().splitlines()[1:]]
    return [row[1] for row in rows if f'socket:[{row[9]}]' in inodes]


sys.addaudithook(hook)
from bert_jax.__main__ import main

for command in json.loads(sys.argv[1]):
    status = main(['bert_jax', *command])
    assert status == 0, command
    seen += [['socket', address] for address in sockets()]
print(json.dumps(seen))
"""


def test_one_process_talks_to_no_one(tmp_path: Path) -> None:
    write_text(tmp_path / 'text.txt', num_documents=12)
    changes = {'data__validation_fraction': 0.0, 'train__steps': 2, 'train__examples': (), 'optimizer__warmup_steps': 1}
    flags = as_flags(tiny_run(tmp_path, **changes))
    workdir = f'--workdir={tmp_path}/run'
    commands = [
        ['prepare', *flags, '--workers=1'],
        ['train', *flags, workdir],
        ['export', workdir, f'--output={tmp_path}/export'],
    ]
    done = subprocess.run(
        [sys.executable, '-c', _PROGRAM, json.dumps(commands)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_the_check_would_notice_one(tmp_path: Path) -> None:
    opens = 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()'
    program = _PROGRAM.replace('from bert_jax.__main__ import main', opens)
    done = subprocess.run([sys.executable, '-c', program, '[]'], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)[0][0] == 'socket.bind'
