"""Examples of what cleaning drops from a source. The only module of this package that returns text, and on request."""

import itertools
import pathlib
from collections.abc import Mapping

from bert_jax import config
from bert_jax.text.chunks import Source
from bert_jax.text.cleaning.cleaner import read_cleaned
from bert_jax.text.cleaning.rules import RULES
from bert_jax.text.reasons import REASONS
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.stats import Stats

_MAX_CHARACTERS = 200  # of an example


def dropped_examples(
    data: config.Data, sources: list[Source], dropped: Mapping[str, int], num_examples: int
) -> dict[str, list[str]]:
    """Reads the text again, until there are examples of everything that cleaning dropped from a corpus.

    Args:
      sources: of the corpus, divided into chunks.
      dropped: {reason: count} of what cleaning dropped.

    Returns:
      {reason: beginnings of the first texts that were dropped, or of what was replaced}, by reason.

    Raises:
      BadInput: see `read_chunk`.
    """
    options, examples = ReadOptions.from_config(data), {}
    num_missing = {reason: min(count, num_examples) for reason, count in dropped.items()}

    def add(reason: str, text: str) -> None:
        if num_missing.get(reason):
            num_missing[reason] -= 1
            beginning = text[:_MAX_CHARACTERS] + '…' * (len(text) > _MAX_CHARACTERS)
            examples.setdefault(reason, []).append(beginning)

    chunks = itertools.chain.from_iterable(source.chunks for source in sources)
    directory, stats = pathlib.Path(data.corpus), Stats()
    for _ in itertools.chain.from_iterable(read_cleaned(chunk, options, stats, directory, add) for chunk in chunks):
        if not any(num_missing.values()):
            break
    return dict(sorted(examples.items()))


def describe_examples(examples: Mapping[str, list[str]]) -> str:
    """Formats examples for a terminal; a slash stands for the end of a line."""
    lines = []
    for reason, texts in examples.items():
        rule = RULES.get(reason)
        lines.append(f'{reason}: {rule.unit}s {rule.meaning}' if rule else REASONS[reason][1])
        lines += [f'  {index:3}  {" / ".join(text.splitlines())}' for index, text in enumerate(texts, 1)]
    return '\n'.join(lines)
