"""Vectors of the lines of a file."""

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
    """What was written: `lines` rows of `hidden_size` float32.

    Attributes:
      hidden_size: of a vector: the model's for each of the `pooling`.
      truncated: lines that lost their end, being longer than `max_length` tokens.
      invalid_utf8_replaced: lines with bytes that are not UTF-8, each replaced by U+FFFD.
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
    """Looks at the names before a model is loaded.

    Raises:
      BadInput: when there is no such input, or the output cannot be an .npy file.
    """
    if not Path(input_file).is_file():
        raise BadInput(f'--input={input_file}', 'is not a file', 'UTF-8 text, a line for each vector')
    if Path(output).suffix != '.npy' or Path(output).is_dir():
        raise BadInput(f'--output={output}', 'is not the name of an .npy file', '--output=NAME.npy')


def embed(
    pretrained: Pretrained, settings: SentenceSettings, input_file: str, output: str, progress: bool = True
) -> Embedded:
    """Writes OUTPUT, float32 [lines, D]: row n is the vector of line n, the mean over its tokens by default.

    A blank line gets the vector of an empty text ([CLS] [SEP] alone), so that rows and lines correspond; a longer line
    than the settings allow, or than the model was trained on, is cut. OUTPUT appears whole, by a rename, or not at all.

    Raises:
      BadInput: see `check`; also for a line that does not fit into memory.
    """
    check(input_file, output)
    start = time.monotonic()
    counts: Counter[str] = Counter()
    num_lines = sum(1 for _ in read_whole_lines(input_file, Counter()))
    hidden_size = len(settings.modes) * pretrained.config.hidden_size
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    done = truncated = 0

    def describe() -> str:
        return f'{done:,} of {num_lines:,} lines'

    with new_file(target) as temporary:
        # A memory map cannot be empty: no lines are an array of no rows.
        shape = (num_lines, hidden_size)
        if num_lines:
            vectors = np.lib.format.open_memmap(temporary, 'w+', np.float32, shape)
        else:
            with temporary.open('wb') as file:
                np.save(file, np.zeros(shape, np.float32))
        with activity.progress(describe, total=num_lines, unit=' lines', shown=progress) as bar:
            for some in batched(read_whole_lines(input_file, counts), _LINES_AT_ONCE):
                vectors[done : done + len(some)], cut = pretrained.embed(some, settings)
                done, truncated = done + len(some), truncated + cut
                bar.update(len(some))
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
