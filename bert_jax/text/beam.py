"""The chunks of a job on a cluster, by Apache Beam (`requirements-beam.txt`) and any of its runners.

Source and corpus must be paths that all workers see, and the workers need this package.
"""

import json
import time
from typing import Any

import apache_beam
from apache_beam.options.pipeline_options import PipelineOptions

from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.files import write_whole
from bert_jax.json_files import read_json
from bert_jax.text.job import PrepareJob


class BeamPool:
    """Runs the methods of a job as `Pool` does, each phase as a pipeline."""

    def __init__(self, job: PrepareJob, options: list[str], progress: bool):
        self._job, self._options, self._progress = job, options, progress

    def __enter__(self) -> 'BeamPool':
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, method: str, arguments: list[tuple], phase: str) -> None:
        """Calls `Job.METHOD(*arguments)` for each of the arguments, somewhere.

        Raises:
          BadInput: what a call raised.
        """
        start = time.monotonic()
        for report in self._job.directory.glob('failed-*.json'):
            report.unlink()
        with apache_beam.Pipeline(options=PipelineOptions(self._options)) as pipeline:
            _ = (
                pipeline
                | apache_beam.Create(arguments)
                | apache_beam.Reshuffle()
                | apache_beam.Map(_call, job=self._job, method=method)
            )
        for report in sorted(self._job.directory.glob('failed-*.json')):
            raise BadInput(*read_json(report, list))
        if self._progress:
            say(f'{phase}: {len(arguments)} chunks, {time.monotonic() - start:.0f} s')


def _call(arguments: tuple, job: PrepareJob, method: str) -> Any:
    try:
        return getattr(job, method)(*arguments)
    except BadInput as error:  # a runner would try again, and tell it as its own error
        write_whole(job.directory / f'failed-{arguments[0]:05d}.json', json.dumps(error.args))
        return None
