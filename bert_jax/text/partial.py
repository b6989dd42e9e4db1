"""The directory of a corpus in preparation: one per identity (settings and text), with a lock while it is in use.

    .CORPUS.partial/IDENTITY/lock     held, shared, by every process of this host that works there

Two `prepare` commands with different settings or text never share a file. On file systems without locks, directories
of interrupted commands count as unused.
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
from bert_jax.text.job import PrepareJob, identity_of_job, read_json_or_none
from bert_jax.text.sources.options import ReadOptions

_JOB = 'job.json'
_LOCK = 'lock'
_WORTH_KEEPING = ('lines', 'texts', 'tokenizer', 'chunks')


def partial_directory(corpus: pathlib.Path) -> pathlib.Path:
    """Returns the parent of the directories in which a corpus is prepared."""
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
    """Yields the job that prepares a corpus, including the finished work of interrupted jobs of the same identity.

    At the end, the directory is removed if the corpus exists and no other process works in it. If the block raises,
    the directory is kept as long as it holds finished work, and its path and size are printed.

    Args:
      alone: no shard on another host works on the corpus, so unfinished jobs of other identities are removed.
      removes_others: False keeps them, for a job that only trains the tokenizer.

    Raises:
      BadInput: if another process prepares the corpus with other settings or from other text.
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
        if progress and directory.is_dir() and not corpus.is_dir():  # otherwise another process completed the corpus
            say(
                f'Finished work is kept in {directory} ({_size(directory)}): the same command resumes from it; '
                'a command with other settings or text removes it.'
            )
        raise
    _leave(lock, directory, corpus.is_dir)


def _clear(parent: pathlib.Path, mine: pathlib.Path, identity: dict[str, Any], alone: bool) -> None:
    """Removes unfinished jobs of other identities that no process works on."""
    if (parent / _JOB).is_file():  # written by a version without a directory per identity
        _reject_if_shard(parent, identity, alone)
        discard(parent)
    for other in sorted(parent.iterdir()) if parent.is_dir() else ():
        if other == mine or not (other / _JOB).is_file():
            continue
        _reject_if_shard(other, identity, alone)
        if not _is_free(other):
            raise BadInput(
                f'config.data.corpus={parent.parent / parent.name[1:].removesuffix(".partial")}',
                f'is being prepared by another process with other {_differences(other, identity)} (in {other})',
                'one `prepare` per corpus directory, or the same settings and text',
                '--config.data.corpus=DIRECTORY, or wait until the other process has finished',
            )
        differences = _differences(other, identity)
        say(f'Removing {other} ({_size(other)}): unfinished work of a `prepare` with other {differences}')
        with contextlib.suppress(FileNotFoundError):  # another process removed it first
            discard(other)


def _reject_if_shard(other: pathlib.Path, identity: dict[str, Any], alone: bool) -> None:
    if not alone:
        raise BadInput(
            str(other),
            f'holds shards with other {_differences(other, identity)}',
            'the same settings and text for all shards',
            f'rm -r {other} to start over',
        )


def _differences(other: pathlib.Path, identity: dict[str, Any]) -> str:
    recorded = read_json_or_none(other / _JOB) or {}
    differing = [key for key in identity if recorded.get(key) != identity[key]]
    if 'files' in differing and 'chunks' in differing:  # chunks follow from the files
        differing.remove('chunks')
    return ' and '.join(differing) or 'settings'


def _enter(directory: pathlib.Path, identity: dict[str, Any]) -> BinaryIO:
    """Creates the directory if necessary and locks it against removal."""
    while True:
        (directory / 'chunks').mkdir(parents=True, exist_ok=True)
        try:
            lock = (directory / _LOCK).open('ab')
        except FileNotFoundError:  # removed since `mkdir`
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
    except OSError:  # this file system has no locks
        return True
    return True


def _leave(lock: BinaryIO, directory: pathlib.Path, is_over: Callable[[], bool]) -> None:
    """Releases the lock; the last process removes the directory if it is no longer needed."""
    with lock:
        if is_over() and _is_mine_alone(lock):
            shutil.rmtree(directory, ignore_errors=True)
            with contextlib.suppress(OSError):  # other jobs are in use
                directory.parent.rmdir()


def _is_worth_keeping(directory: pathlib.Path) -> bool:
    subdirectories = (directory / name for name in _WORTH_KEEPING)
    return any(path.is_dir() and any(path.iterdir()) for path in subdirectories)


def _size(directory: pathlib.Path) -> str:
    total = 0
    for path in directory.rglob('*'):
        with contextlib.suppress(OSError):  # removed meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return size(total)
