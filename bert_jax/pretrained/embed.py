"""Computes a vector for each line of a file."""

import dataclasses
import time
from collections import Counter
from pathlib import Path

import numpy as np

from bert_jax import activity
from bert_jax.errors import BadInput
from bert_jax.files import new_file
from bert_jax.pretrained.load import Pretrained
from bert_jax.pretrained.sentences import SentenceSettings
from bert_jax.text.lines import batched, read_whole_lines

_LINES_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Describes the array that was written: `lines` rows of `hidden_size` float32.

    Attributes:
      hidden_size: the size of a vector: the model's hidden size times the number of ways of `pooling`, or fewer dims.
      truncated: number of lines that were truncated to `max_length` tokens.
      invalid_utf8_replaced: number of lines with bytes that are not UTF-8, which became U+FFFD.
    """

    output: str
    lines: int
    hidden_size: int
    truncated: int
    seconds: float
    max_length: int
    pooling: tuple[str, ...]
    normalized: bool
    invalid_utf8_replaced: int


def check(input_file: str, output: str) -> None:
    """Checks the names of the files, so that wrong ones fail before a model is loaded.

    Raises:
      BadInput: if the input does not exist, or the output is not the name of an .npy file.
    """
    if not Path(input_file).is_file():
        raise BadInput(f'--input={input_file}', 'is not a file', 'a UTF-8 text file with one text per line')
    if Path(output).suffix != '.npy' or Path(output).is_dir():
        raise BadInput(f'--output={output}', 'is not the name of an .npy file', '--output=NAME.npy')


def num_dims(settings: SentenceSettings, hidden_size: int, dims: int | None) -> int:
    """Returns the size of a vector.

    Args:
      hidden_size: of the model.  dims: requested size; None for that of the settings.

    Raises:
      BadInput: if vectors do not have as many dims as requested.
    """
    pooled = len(settings.modes) * hidden_size
    if dims is None:
        return min(pooled, settings.truncate_dim or pooled)
    if not 1 <= dims <= pooled:
        raise BadInput(f'--dims={dims}', f'the vectors of this model have {pooled:,} dims', f'1 to {pooled:,}')
    return dims


def embed(
    pretrained: Pretrained,
    settings: SentenceSettings,
    input_file: str,
    output: str,
    dims: int | None = None,
    progress: bool = True,
) -> Embedded:
    """Writes the vector of each line to `output`, float32 [lines, hidden_size]; by default, the mean over its tokens.

    A blank line gets the vector of `[CLS] [SEP]`, so that rows and lines correspond. A line that is longer than the
    settings allow, or than the texts that the model was trained on, is truncated. The output is written to a temporary
    file and renamed when it is complete.

    Args:
      dims: number of leading dims to write, as of `SentenceSettings.finish`.

    Raises:
      BadInput: see `check` and `num_dims`; also for a line that does not fit into memory.
    """
    check(input_file, output)
    hidden_size = num_dims(settings, pretrained.config.hidden_size, dims)
    start = time.monotonic()
    counts: Counter[str] = Counter()
    num_lines = sum(1 for _ in read_whole_lines(input_file, Counter()))
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    done = truncated = 0

    def describe() -> str:
        return f'{done:,} of {num_lines:,} lines'

    with new_file(target) as temporary:
        # A memory map cannot be empty, so an array without rows is saved directly.
        shape = (num_lines, hidden_size)
        if num_lines:
            vectors = np.lib.format.open_memmap(temporary, 'w+', np.float32, shape)
        else:
            with temporary.open('wb') as file:
                np.save(file, np.zeros(shape, np.float32))
        with activity.progress(describe, total=num_lines, unit=' lines', shown=progress) as bar:
            for lines in batched(read_whole_lines(input_file, counts), _LINES_AT_ONCE):
                vectors[done : done + len(lines)], num_truncated = pretrained.embed(lines, settings, dims)
                done, truncated = done + len(lines), truncated + num_truncated
                bar.update(len(lines))
        if num_lines:
            vectors.flush()
    return Embedded(
        output=str(target),
        lines=done,
        hidden_size=hidden_size,
        truncated=truncated,
        seconds=round(time.monotonic() - start, 3),
        max_length=settings.limit(pretrained.max_length, pretrained.config.max_positions),
        pooling=settings.modes,
        normalized=settings.normalize,
        invalid_utf8_replaced=counts['invalid_utf8_replaced'],
    )
