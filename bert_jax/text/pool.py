"""A process for each core, all doing the same with one chunk after another."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

from bert_jax.errors import BadInput
from bert_jax.text.job import PrepareJob
from bert_jax.text.progress import shown

_job: PrepareJob | None = None  # of a worker


class Pool:
    """Runs the methods of a job; with one worker, or one thing to do, in this very process."""

    def __init__(self, job: PrepareJob, workers: int, progress: bool):
        self._job, self._workers, self._progress = job, workers, progress
        self._executor: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> 'Pool':
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def run(self, method: str, arguments: list[tuple], phase: str) -> None:
        """Calls `Job.METHOD(*arguments)` for each of the arguments, in any order.

        Raises:
          BadInput: what the first call raised, or when a worker was killed.
        """
        results = self._results(method, arguments)
        for _ in shown(results, len(arguments), phase, self._progress):
            pass

    def _results(self, method: str, arguments: list[tuple]) -> Iterator[tuple[int, int]]:
        if min(self._workers, len(arguments)) <= 1:
            for each in arguments:
                yield getattr(self._job, method)(*each)
            return
        if self._executor is None:
            # Not forked: the threads of the tokenizer would not be there in the child.
            self._executor = concurrent.futures.ProcessPoolExecutor(
                self._workers, multiprocessing.get_context('spawn'), _start, (self._job,)
            )
        try:
            futures = [self._executor.submit(_call, method, each) for each in arguments]
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise BadInput(
                f'--workers={self._workers}',
                'a worker process was killed: was there memory for all of them?',
                'up to 1 GB a worker',
                'the same command with fewer --workers resumes where it was',
            ) from None


def _start(job: PrepareJob) -> None:
    """In a worker: one thread each, deaf to Ctrl-C (the parent stops handing out work), and gone when the parent is."""
    global _job
    _job = job
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # it runs in a worker
    wait([parent.sentinel])
    os._exit(1)


def _call(method: str, arguments: tuple) -> tuple[int, int]:
    return getattr(_job, method)(*arguments)
