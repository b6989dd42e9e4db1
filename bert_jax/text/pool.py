"""Worker processes that run the methods of a job on one chunk after another."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from bert_jax.activity import counted
from bert_jax.console import duration, quantity, say
from bert_jax.errors import BadInput
from bert_jax.text.job import PrepareJob
from bert_jax.text.near_duplicates.comparison import buckets
from bert_jax.text.progress import LABEL_WIDTH, show_progress

_job: PrepareJob | None = None  # set in worker processes


class Pool:
    """Runs methods of a job in worker processes; in this process if there is one worker or one chunk."""

    def __init__(self, job: PrepareJob, workers: int, progress: bool):
        self._job, self._workers, self._progress = job, workers, progress
        self._executor: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> 'Pool':
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def run(self, method: str, arguments: list[tuple], phase: str) -> None:
        """Calls `PrepareJob.METHOD(*arguments)` for each tuple of arguments, in any order.

        Raises:
          BadInput: raised by the first call that fails, or when a worker is killed.
        """
        results = self._results(method, arguments)
        for _ in show_progress(results, len(arguments), phase, self._progress):
            pass

    def compare(self) -> None:
        """Finds the near copies among the texts of all chunks, which must be finished: `PrepareJob.compare`."""
        settings, start = self._job.near_duplicates, time.monotonic()
        if settings is None:
            return
        sizes = {table: len(self._job.sketches(table)) for table in settings.tables}
        arguments = [(table, *bucket) for table, size in sizes.items() for bucket in buckets(size, settings)]
        results = self._results('compare', arguments)
        for _ in counted(results, len(arguments), 'comparing', 'bucket') if self._progress else results:
            pass
        if self._progress:
            elapsed = duration(time.monotonic() - start)
            say(f'{"comparing:":{LABEL_WIDTH}} {quantity(sum(sizes.values()), "text")}, {elapsed}')

    def _results(self, method: str, arguments: list[tuple]) -> Iterator[Any]:
        if min(self._workers, len(arguments)) <= 1:
            for call_arguments in arguments:
                yield getattr(self._job, method)(*call_arguments)
            return
        if self._executor is None:
            # Spawned: threads of the tokenizer library would not survive a fork.
            self._executor = concurrent.futures.ProcessPoolExecutor(
                self._workers, multiprocessing.get_context('spawn'), _start, (self._job,)
            )
        try:
            futures = [self._executor.submit(_call, method, call_arguments) for call_arguments in arguments]
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise BadInput(
                f'--workers={self._workers}',
                'a worker process was killed, probably because memory ran out',
                'up to 1 GB of memory per worker',
                'run the same command with fewer --workers; it resumes with the finished chunks',
            ) from None


def _start(job: PrepareJob) -> None:
    """Sets up a worker: one thread per library; ignores Ctrl-C (the parent stops the work); exits with its parent."""
    global _job
    _job = job
    os.environ |= {'TOKENIZERS_PARALLELISM': 'false', 'RAYON_NUM_THREADS': '1'}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # it runs in a worker
    wait([parent.sentinel])
    os._exit(1)


def _call(method: str, arguments: tuple) -> Any:
    return getattr(_job, method)(*arguments)
