"""Computes a vector for each text of a file."""

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_jax import activity
from bert_jax.console import quantity, say
from bert_jax.errors import BadInput
from bert_jax.pretrained.embed_input import InputSummary, read_inputs, summarize
from bert_jax.pretrained.embed_output import PartialVectors, check_output, open_partial
from bert_jax.pretrained.load import Pretrained
from bert_jax.pretrained.sentences import SentenceSettings
from bert_jax.pretrained.vectors import TextEncoder
from bert_jax.text.sources.lines import batched
from bert_jax.version import __version__

_TEXTS_AT_ONCE = 1 << 12  # sorted by length, computed and saved together
_TRUNCATED, _INVALID = 'truncated', 'invalid_utf8_replaced'


@dataclasses.dataclass(frozen=True)
class Source:
    """The input of `embed`.

    Attributes:
      path: a file, or FORMAT:FILE.
      text_field, id_field: columns of the texts and of their ids, in formats with columns.
    """

    path: str
    text_field: str = 'text'
    id_field: str = 'id'

    def read(self, counts: Counter) -> Iterator[Any]:
        """Yields an `InputText` for each text; see `read_inputs`."""
        return read_inputs(self.path, self.text_field, self.id_field, counts)


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Describes the output: `lines` vectors of `hidden_size` float32.

    Attributes:
      hidden_size: the size of a vector: the model's hidden size times the number of ways of `pooling`, or fewer dims.
      truncated: number of texts that were truncated to `max_length` tokens.
      resumed_from: number of vectors that an interrupted command had computed.
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
    prompt: str
    dtype: str
    resumed_from: int
    invalid_utf8_replaced: int


def check(source: Source, output: str) -> InputSummary:
    """Reads the whole input once, so that a bad file fails before a model is loaded.

    Raises:
      BadInput: if the input cannot be read, a record has no text, or the output has no known suffix.
    """
    check_output(output)
    with activity.activity(f'reading {source.path}'):
        return summarize(source.path, source.text_field, source.id_field, Counter())


def embed(
    pretrained: Pretrained,
    settings: SentenceSettings,
    source: Source,
    summary: InputSummary,
    output: str,
    *,
    dims: int | None = None,
    dtype: str = 'float32',
    progress: bool = True,
) -> Embedded:
    """Writes the vector of each text, [texts, dims] float32, in the order of the input.

    A blank line gets the vector of `[CLS] [SEP]`, so that rows and lines correspond. A text that is longer than the
    settings allow, or than the texts that the model was trained on, is truncated. An interrupted command resumes.

    Args:
      summary: of the source, from `check`.
      output: .npy, .parquet (columns `id`, if every record has one, and `vector`) or .safetensors (`embeddings`). Ids
        are int64 if all of them are such integers, else texts.
      dims: number of leading dims to write, as of `SentenceSettings.finish`.
      dtype: of the computation, 'float32' or 'bfloat16'.

    Raises:
      BadInput: see `num_dims`; also if another process is writing the output.
    """
    start, target = time.monotonic(), Path(output)
    size = num_dims(settings, pretrained.config.hidden_size, dims)
    encoder = TextEncoder(pretrained, settings, dims, dtype)
    identity = {
        'version': __version__,
        'input': summary.digest,
        'weights': encoder.weights_digest(),
        'tokenizer': pretrained.tokenizer.hash,
        'settings': repr(dataclasses.replace(settings, directory='')),
        'longest': encoder.longest,
        'dims': size,
        'renormalized': dims is not None,
        'dtype': dtype,
        'suffix': target.suffix,
    }
    with open_partial(target, identity, (summary.num_texts, size)) as partial:
        resumed_from = partial.num_done
        if resumed_from:
            say(f'Resuming after {quantity(resumed_from, "vector")} of {summary.num_texts:,}')
        counts = _compute(encoder, source, partial, summary.num_texts, progress)
        partial.publish(target, _ids(source, summary) if summary.has_ids else None)
    return Embedded(
        output=str(target),
        lines=summary.num_texts,
        hidden_size=size,
        truncated=counts[_TRUNCATED],
        seconds=round(time.monotonic() - start, 3),
        max_length=encoder.longest,
        pooling=settings.modes,
        normalized=settings.normalize,
        prompt=settings.prompt,
        dtype=dtype,
        resumed_from=resumed_from,
        invalid_utf8_replaced=counts[_INVALID],
    )


def _ids(source: Source, summary: InputSummary) -> Iterator[int | str]:
    """Yields the id of each text, all of one type: the columns of a parquet file have one."""
    for each in source.read(Counter()):
        yield each.id if summary.has_integer_ids else str(each.id)


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


def _compute(
    encoder: TextEncoder, source: Source, partial: PartialVectors, num_texts: int, progress: bool
) -> Counter[str]:
    """Computes the vectors that are missing; returns counts of all texts."""
    counts, read_counts = Counter(partial.counts), Counter()
    texts = (each.text for each in itertools.islice(source.read(read_counts), partial.num_done, None))

    def describe() -> str:
        return f'{partial.num_done:,} of {num_texts:,} texts'

    with activity.progress(describe, total=num_texts, initial=partial.num_done, unit=' texts', shown=progress) as bar:
        for vectors, num_truncated in encoder.encode_chunks(batched(texts, _TEXTS_AT_ONCE)):
            counts[_TRUNCATED] += num_truncated
            partial.append(vectors, counts)
            bar.update(len(vectors))
    counts[_INVALID] = read_counts[_INVALID]
    return counts
