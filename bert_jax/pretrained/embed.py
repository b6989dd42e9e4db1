"""Mean-pooled vectors of the lines of a file."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bert_jax.activity import printed_a_line
from bert_jax.console import progress_bar, say
from bert_jax.errors import BadInput
from bert_jax.files import new_file
from bert_jax.pretrained.load import Pretrained

_LINES_AT_ONCE = 4096
_SECONDS_BETWEEN_REPORTS = 10


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What was written: `lines` rows of `hidden_size` float32; `truncated` lines had lost their end."""

    output: str
    lines: int
    hidden_size: int
    truncated: int
    seconds: float


def check(input_file: str, output: str) -> None:
    """Looks at the names before a model is loaded.

    Raises:
      BadInput: when there is no such input, or the output cannot be an .npy file.
    """
    if not Path(input_file).is_file():
        raise BadInput(f'--input={input_file}', 'is not a file', 'UTF-8 text, a line for each vector')
    if Path(output).suffix != '.npy' or Path(output).is_dir():
        raise BadInput(f'--output={output}', 'is not the name of an .npy file', '--output=NAME.npy')


def embed(pretrained: Pretrained, input_file: str, output: str, progress: bool = True) -> Embedded:
    """Writes OUTPUT, float32 [lines, D]: row n is the mean-pooled vector of line n.

    A blank line gets the vector of an empty text ([CLS] [SEP] alone), so that rows and lines correspond; a line with
    more tokens than the model has positions is cut. OUTPUT appears whole, by a rename, or not at all.

    Raises:
      BadInput: see `check`; also for a line that is not UTF-8, by its number.
    """
    check(input_file, output)
    start = last = time.monotonic()
    num_lines, hidden_size = sum(1 for _ in _lines(Path(input_file))), pretrained.config.hidden_size
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    done = truncated = 0
    with new_file(target) as temporary:
        # A memory map cannot be empty: no lines are an array of no rows.
        shape = (num_lines, hidden_size)
        if num_lines:
            vectors = np.lib.format.open_memmap(temporary, 'w+', np.float32, shape)
        else:
            with temporary.open('wb') as file:
                np.save(file, np.zeros(shape, np.float32))
        with progress_bar(total=num_lines, unit=' lines', shown=progress) as bar:
            for some in _chunks(_lines(Path(input_file))):
                vectors[done : done + len(some)], cut = pretrained.mean_pooled(some)
                done, truncated = done + len(some), truncated + cut
                bar.update(len(some))
                if progress and bar.disable and time.monotonic() - last >= _SECONDS_BETWEEN_REPORTS:
                    last = time.monotonic()
                    say(f'{done:,} of {num_lines:,} lines')
                    printed_a_line()
        if num_lines:
            vectors.flush()
    return Embedded(str(target), done, hidden_size, truncated, round(time.monotonic() - start, 3))


def _lines(path: Path) -> Iterator[str]:
    with path.open('rb') as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode('utf-8').rstrip('\r\n')
            except UnicodeDecodeError:
                raise BadInput(f'{path}:{number}', 'is not UTF-8', 'text in UTF-8') from None


def _chunks(lines: Iterator[str]) -> Iterator[list[str]]:
    some: list[str] = []
    for line in lines:
        some.append(line)
        if len(some) == _LINES_AT_ONCE:
            yield some
            some = []
    if some:
        yield some
