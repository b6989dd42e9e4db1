"""The directory of a corpus that is being prepared: each identity has its own, and a lock says whether it is in use.

    .CORPUS.partial/IDENTITY/lock     held, shared, by every process of this host that works there

Two `prepare` with other settings or text never share a file, whatever the disk. On disks without locks what was left
behind counts as not in use.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from bert_jax.console import say, size
from bert_jax.errors import BadInput
from bert_jax.files import discard, json_digest, remove_leftovers, write_whole
from bert_jax.text.chunks import Source
from bert_jax.text.documents import ReadOptions
from bert_jax.text.job import PrepareJob, identity_of_job, read_json_or_none

_JOB, _LOCK = 'job.json', 'lock'
_WORTH_KEEPING = ('texts', 'tokenizer', 'chunks')


def partial_directory(corpus: pathlib.Path) -> pathlib.Path:
    """The parent of the directories in which a corpus is prepared."""
    return corpus.parent / f'.{corpus.name}.partial'


@contextlib.contextmanager
def open_job(
    corpus: pathlib.Path,
    options: ReadOptions,
    sources: list[Source],
    settings: dict[str, Any],
    *,
    alone: bool,
    progress: bool,
    removes_others: bool = True,
) -> Iterator[PrepareJob]:
    """Yields the job that prepares a corpus, with what an interrupted one of the same identity left in its directory.

    The directory is removed in the end when the corpus is there and no other process works in it. When the block
    raises, it stays if it holds anything that is finished, and its path and size are printed.

    Args:
      alone: that no shard on another host works on the corpus: what was left with another identity is removed.
      removes_others: False leaves it, for a job that ends with its tokenizer.

    Raises:
      BadInput: when the corpus is being prepared with other settings or from other text.
    """
    parent, identity = partial_directory(corpus), identity_of_job(sources, settings)
    directory = parent / json_digest(identity)
    remove_leftovers(parent)
    if removes_others:
        _clear(parent, directory, identity, alone)
    lock = _enter(directory, identity)
    try:
        yield PrepareJob(directory, options, tuple(sources))
    except BaseException:
        _leave(lock, directory, lambda: corpus.is_dir() or not _is_worth_keeping(directory))
        if progress and directory.is_dir() and not corpus.is_dir():  # nobody resumes what another process completed
            found = f'{directory} ({_size(directory)}) holds what is finished'
            say(f'{found}. The same command resumes there; one with other settings or text removes it.')
        raise
    _leave(lock, directory, corpus.is_dir)


def _clear(parent: pathlib.Path, mine: pathlib.Path, identity: dict[str, Any], alone: bool) -> None:
    """Removes what was left with other identities, where nobody works on it."""
    if (parent / _JOB).is_file():  # written before identities had separate directories
        _refuse_if_shard(parent, identity, alone)
        discard(parent)
    for other in sorted(parent.iterdir()) if parent.is_dir() else ():
        if other == mine or not (other / _JOB).is_file():
            continue
        _refuse_if_shard(other, identity, alone)
        if not _is_free(other):
            raise BadInput(
                f'config.data.corpus={parent.parent / parent.name[1:].removesuffix(".partial")}',
                f'is being prepared by another process, with other {_differences(other, identity)} (in {other})',
                'one corpus at a time',
                'wait for it, or set another data.corpus',
            )
        say(f'Removing {other} ({_size(other)}), left by a prepare with other {_differences(other, identity)}')
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            discard(other)


def _refuse_if_shard(other: pathlib.Path, identity: dict[str, Any], alone: bool) -> None:
    if not alone:
        raise BadInput(
            str(other),
            f'holds shards with other {_differences(other, identity)}',
            'the same settings and text for all shards',
            f'rm -r {other} to start again',
        )


def _differences(other: pathlib.Path, identity: dict[str, Any]) -> str:
    theirs = read_json_or_none(other / _JOB) or {}
    return ', '.join(key for key in identity if theirs.get(key) != identity[key]) or 'settings'


def _enter(directory: pathlib.Path, identity: dict[str, Any]) -> BinaryIO:
    """Creates the directory unless it is there, and locks it against removal."""
    while True:
        (directory / 'chunks').mkdir(parents=True, exist_ok=True)
        try:
            lock = (directory / _LOCK).open('ab')
        except FileNotFoundError:  # removed in between
            continue
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            if os.path.samestat(os.fstat(lock.fileno()), (directory / _LOCK).stat()):
                if read_json_or_none(directory / _JOB) is None:
                    write_whole(directory / _JOB, json.dumps(identity))
                return lock
        except FileNotFoundError:
            pass
        lock.close()


def _is_free(directory: pathlib.Path) -> bool:
    with (directory / _LOCK).open('ab') as lock:
        return _is_mine_alone(lock)


def _is_mine_alone(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this disk
        return True
    return True


def _leave(lock: BinaryIO, directory: pathlib.Path, is_over: Callable[[], bool]) -> None:
    """Gives the lock back; the last process removes the directory when it is no longer needed."""
    with lock:
        if is_over() and _is_mine_alone(lock):
            shutil.rmtree(directory, ignore_errors=True)
            with contextlib.suppress(OSError):  # others are in use
                directory.parent.rmdir()


def _is_worth_keeping(directory: pathlib.Path) -> bool:
    parts = (directory / name for name in _WORTH_KEEPING)
    return any(part.is_dir() and any(part.iterdir()) for part in parts)


def _size(directory: pathlib.Path) -> str:
    total = 0
    for path in directory.rglob('*'):
        with contextlib.suppress(OSError):  # just removed
            total += path.stat().st_size if path.is_file() else 0
    return size(total)
