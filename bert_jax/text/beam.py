"""Encodes the chunks of a job on a cluster, with Apache Beam (`requirements-beam.txt`) and any of its runners.

All workers must see the source and the corpus under the same paths, and need this package installed.
"""

import json
import time
from typing import Any

import apache_beam
from apache_beam.options.pipeline_options import PipelineOptions

from bert_jax.console import duration, quantity, say
from bert_jax.errors import BadInput
from bert_jax.files import write_whole
from bert_jax.json_files import read_json
from bert_jax.text.job import PrepareJob
from bert_jax.text.near_duplicates.shuffle import write_links
from bert_jax.text.progress import LABEL_WIDTH


class BeamPool:
    """Runs methods of a job as `Pool` does, each phase as one pipeline."""

    def __init__(self, job: PrepareJob, options: list[str], progress: bool):
        self._job, self._options, self._progress = job, options, progress

    def __enter__(self) -> 'BeamPool':
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, method: str, arguments: list[tuple], phase: str) -> None:
        """Calls `PrepareJob.METHOD(*arguments)` for each tuple of arguments, on the workers of the runner.

        Raises:
          BadInput: raised by a call.
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
            elapsed = duration(time.monotonic() - start)
            say(f'{phase + ":":{LABEL_WIDTH}} {quantity(len(arguments), "chunk")}, {elapsed}')

    def compare(self) -> None:
        """Finds the near copies among the texts of all chunks, which must be finished; see `Pool.compare`."""
        settings, directory, start = self._job.near_duplicates, self._job.links_directory, time.monotonic()
        if settings is None:
            return
        directory.mkdir(exist_ok=True)
        for table in settings.tables:
            finished = directory / f'{table}.finished'
            if not finished.exists():
                with apache_beam.Pipeline(options=PipelineOptions(self._options)) as pipeline:
                    write_links(pipeline, self._job.sketches(table), settings, directory, table)
                write_whole(finished, '')
        if self._progress:
            say(f'{"comparing:":{LABEL_WIDTH}} {duration(time.monotonic() - start)}')


def _call(arguments: tuple, job: PrepareJob, method: str) -> Any:
    try:
        return getattr(job, method)(*arguments)
    except BadInput as error:  # a runner would retry it and report another error
        write_whole(job.directory / f'failed-{arguments[0]:05d}.json', json.dumps(error.args))
        return None
