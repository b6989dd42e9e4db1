"""Runs `bert_jax` commands in this process, which saves starting Python and jax and compiling programs again."""

import contextlib
from pathlib import Path

from bert_jax.__main__ import main


def run(arguments: list[object], directory: Path) -> int:
    """Runs a command in `directory`; returns its exit status. Use `capsys` for its output."""
    with contextlib.chdir(directory):
        return main(['bert_jax', *map(str, arguments)])
