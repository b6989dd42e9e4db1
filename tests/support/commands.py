"""Commands of `bert_jax` run in this process: no start of Python and jax, and programs that are compiled already."""

import contextlib
from pathlib import Path

from bert_jax.__main__ import main


def run(arguments: list[object], directory: Path) -> int:
    """Runs a command in `directory`; returns its exit status. What it prints is for `capsys`."""
    with contextlib.chdir(directory):
        return main(['bert_jax', *map(str, arguments)])
