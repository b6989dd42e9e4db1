"""Commands of `bert_jax` run in this process: no start of Python and jax, and programs that are compiled already."""

import contextlib
import sys
import warnings
from pathlib import Path
from unittest import mock

from bert_jax.__main__ import main


def run(arguments: list[object], directory: Path) -> int:
    """Runs a command in `directory`; returns its exit status. What it prints is for `capsys`."""
    argv = ['bert_jax', *map(str, arguments)]
    # ml_collections reads `sys.argv`, and uses a deprecated function to read a config file.
    with mock.patch.object(sys, 'argv', argv), contextlib.chdir(directory), warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'the load_module')
        return main(argv)
