"""Writes the output of `embed` so that an interrupted command resumes.

    .NAME.partial/lock        held by the process that works there
    .NAME.partial/job.json    what is computed from what, and how many vectors are complete
    .NAME.partial/vectors     the output itself (.npy, .safetensors), or its vectors as .npy (.parquet)

`N` vectors of `D` dims.
"""

import contextlib
import fcntl
import io
import json
import math
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.console import quantity, say
from bert_jax.errors import BadInput
from bert_jax.files import new_file, sync, write_whole
from bert_jax.json_files import DamagedJson, parse_json

SUFFIXES = ('.npy', '.parquet', '.safetensors')
TENSOR = 'embeddings'  # its name in .safetensors
_VECTORS_AT_ONCE = 1 << 14  # in a row group of .parquet
_JOB, _LOCK, _VECTORS = 'job.json', 'lock', 'vectors'


class PartialVectors:
    """The vectors that have been computed so far.

    Attributes:
      num_done: vectors that are complete, from the first.
      counts: {event: count} of the texts that are done.
    """

    def __init__(self, directory: Path, identity: dict[str, Any], shape: tuple[int, int], suffix: str):
        self._directory, self._identity, self._shape = directory, identity, shape
        self._path = directory / _VECTORS
        header = _safetensors_header(shape) if suffix == '.safetensors' else _npy_header(shape)
        recorded = _read_job(directory)
        is_same = recorded.get('identity') == identity and self._path.is_file()
        if recorded and not is_same:
            say(f'{directory}: unfinished vectors of another input, model or setting are replaced')
        self.num_done: int = recorded['num_done'] if is_same else 0
        self.counts: dict[str, int] = recorded['counts'] if is_same else {}
        if not is_same:
            (directory / _JOB).unlink(missing_ok=True)
            with self._path.open('wb') as file:
                file.write(header)
                file.truncate(len(header) + 4 * math.prod(shape))
        self._array = None if 0 in shape else np.memmap(self._path, np.float32, 'r+', len(header), shape)

    def append(self, vectors: np.ndarray, counts: dict[str, int]) -> None:
        """Adds vectors [n, D], and makes them last; counts: {event: count} of all texts until now."""
        assert self._array is not None
        self._array[self.num_done : self.num_done + len(vectors)] = vectors
        self._array.flush()
        self.num_done, self.counts = self.num_done + len(vectors), dict(counts)
        job = {'identity': self._identity, 'num_done': self.num_done, 'counts': self.counts}
        write_whole(self._directory / _JOB, json.dumps(job))

    def publish(self, output: Path, ids: Iterable[int | str] | None) -> None:
        """Makes the finished vectors the output; ids: of each vector, for .parquet; all int64, or all texts."""
        if output.suffix == '.parquet':
            vectors = np.zeros(self._shape, np.float32) if self._array is None else self._array
            with new_file(output) as temporary:
                _write_parquet(temporary, vectors, ids)
        else:
            sync(self._path)
            self._path.replace(output)


def check_output(output: str) -> None:
    """Raises BadInput if the output is not the name of a file in a known format."""
    if Path(output).suffix not in SUFFIXES or Path(output).is_dir():
        found = f'is not the name of a file that ends in {", ".join(SUFFIXES)}'
        raise BadInput(f'--output={output}', found, '--output=NAME.npy')


@contextlib.contextmanager
def open_partial(output: Path, identity: dict[str, Any], shape: tuple[int, int]) -> Iterator[PartialVectors]:
    """Yields the vectors of an output that is not complete; resumes those of an interrupted command.

    If the block raises, finished vectors are kept and their directory is printed; otherwise it is removed.

    Args:
      identity: everything that the vectors depend on. Vectors with another identity are replaced.

    Raises:
      BadInput: if another process is writing the same output.
    """
    directory = output.parent / f'.{output.name}.partial'
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _LOCK).open('ab') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            expected = 'one command per output'
            raise BadInput(f'--output={output}', 'is being written by another process', expected) from None
        except OSError:  # this file system has no locks
            pass
        partial = PartialVectors(directory, identity, shape, output.suffix)
        try:
            yield partial
        except BaseException:
            if partial.num_done:
                done = quantity(partial.num_done, 'vector')
                say(f'{done} of {shape[0]:,} are kept in {directory}: the same command resumes from them')
            else:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        shutil.rmtree(directory, ignore_errors=True)


def _read_job(directory: Path) -> dict[str, Any]:
    """Returns what `append` recorded; {} if there is nothing."""
    try:
        job = parse_json((directory / _JOB).read_text('utf-8'))
    except (OSError, DamagedJson, UnicodeDecodeError):
        return {}
    return job if {'identity', 'num_done', 'counts'} <= job.keys() else {}


def _npy_header(shape: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    description = {'descr': '<f4', 'fortran_order': False, 'shape': shape}
    np.lib.format.write_array_header_1_0(file, description)
    return file.getvalue()


def _safetensors_header(shape: tuple[int, int]) -> bytes:
    tensor = {'dtype': 'F32', 'shape': list(shape), 'data_offsets': [0, 4 * math.prod(shape)]}
    header = json.dumps({TENSOR: tensor}).encode()
    header += b' ' * (-len(header) % 8)
    return struct.pack('<Q', len(header)) + header


def _write_parquet(path: Path, vectors: np.ndarray, ids: Iterable[int | str] | None) -> None:
    """Writes the columns id, if there are ids, and vector (a list of D float32), in row groups of bounded size."""
    import itertools

    import pyarrow
    from pyarrow import parquet

    remaining, writer = None if ids is None else iter(ids), None
    for start in range(0, max(len(vectors), 1), _VECTORS_AT_ONCE):
        part = np.asarray(vectors[start : start + _VECTORS_AT_ONCE])
        columns: dict[str, Any] = {}
        if remaining is not None:
            columns['id'] = pyarrow.array([*itertools.islice(remaining, len(part))])
        columns['vector'] = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(part.ravel()), vectors.shape[1])
        table = pyarrow.table(columns)
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
