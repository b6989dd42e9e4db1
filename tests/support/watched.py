"""Runs `bert_jax` commands in one process that monitors itself: python -m tests.support.watched JSON_OF_COMMANDS.

The last line on standard output is {"outputs": output of each command, "sockets": sockets that were opened, as audited
and as listed by the system, "loaded": slow packages that were loaded after each command}.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

_LARGE = ('torch', 'tensorflow', 'tensorflow_datasets', 'transformers', 'matplotlib', 'apache_beam', 'pandas')


def open_sockets() -> list[str]:
    """Returns the local addresses of this process's sockets from the system's tables, whatever library opened them."""
    inodes = set()
    for name in os.listdir('/proc/self/fd'):
        with contextlib.suppress(OSError):  # closed meanwhile
            inodes.add(os.readlink(f'/proc/self/fd/{name}'))
    tables = [Path(f'/proc/self/net/{table}') for table in ('tcp', 'tcp6', 'udp', 'udp6')]
    rows = [row.split() for table in tables if table.exists() for row in table.read_text().splitlines()[1:]]
    return [row[1] for row in rows if f'socket:[{row[9]}]' in inodes]


def main() -> None:
    """Runs the commands, each of which must succeed."""
    sockets: list[str] = []

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith('socket.') and event not in ('socket.__new__', 'socket.gethostname'):
            sockets.append(f'{event} {arguments[1:]!r}')

    sys.addaudithook(hook)
    from bert_jax.__main__ import main as bert_jax

    outputs, loaded = [], []
    for command in json.loads(sys.argv[1]):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            status = bert_jax(['bert_jax', *command])
        assert status == 0, command
        outputs.append(printed.getvalue())
        sockets += open_sockets()
        loaded.append([name for name in _LARGE if name in sys.modules])
    print(json.dumps({'outputs': outputs, 'sockets': sockets, 'loaded': loaded}))


if __name__ == '__main__':
    main()
