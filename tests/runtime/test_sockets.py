"""Preparing, training and exporting alone open no connection to anywhere."""

import json
import subprocess
import sys
from pathlib import Path

from tests.test_pretrain import _environment, write_text

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
    values = {
        'data.source': f'text:{tmp_path}/text.txt',
        'data.corpus': tmp_path / 'corpus',
        'data.validation_fraction': 0.0,
        'data.sequence_length': 32,
        'tokenizer.vocab_size': 300,
        'model.num_layers': 1,
        'model.hidden_size': 16,
        'model.num_heads': 2,
        'model.intermediate_size': 32,
        'train.steps': 2,
        'train.global_batch_size': 8,
        'optimizer.name': 'adamw',
        'optimizer.warmup_steps': 1,
    }
    root = Path(__file__).parents[2]
    flags = [f'--config={root}/configs/demo.py', *(f'--config.{name}={value}' for name, value in values.items())]
    workdir = f'--workdir={tmp_path}/run'
    commands = [
        ['prepare', *flags, '--workers=1'],
        ['train', *flags, workdir],
        ['export', workdir, f'--output={tmp_path}/export'],
    ]
    done = subprocess.run(
        [sys.executable, '-c', _PROGRAM, json.dumps(commands)],
        env=_environment(),
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
