"""Measures the speed of each kind of cleaning on one core, and what it drops.

    python -m benchmarks.cleaning [--source=jsonl:reviews.jsonl.gz] [--megabytes=20]

Documents are read into memory first. Each line of the table is one `Cleaner` with one setting, timed in CPU time; the
last lines are all settings together, the first pass of boilerplate, and `prepare` with an existing vocabulary, without
and with all of them.
Without --source, the text is the docstrings of the installed packages.
"""

import itertools
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags

from bert_jax import config
from bert_jax.config.cleaning import QUALITY_RULES, REDACTED
from bert_jax.text.cleaning.boilerplate import write_pairs
from bert_jax.text.cleaning.cleaner import Cleaner
from bert_jax.text.cleaning.languages import language_of
from bert_jax.text.documents import Document, read_chunk
from bert_jax.text.prepare import prepare
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.plan import plan_source
from bert_jax.text.stats import Stats

_SOURCE = flags.DEFINE_string('source', 'python-docs', 'as data.source')
_MEGABYTES = flags.DEFINE_float('megabytes', 20, 'of text, at most')
_SETTINGS: dict[str, dict[str, Any]] = {
    **{rule: {'quality_rules': (rule,)} for rule in QUALITY_RULES},
    'c4': {'quality_rules': ('c4',)},
    'gopher': {'quality_rules': ('gopher',)},
    **{f'redact {name}': {'redact': (name,)} for name in REDACTED},
    'languages': {'languages': ('en',)},
    'all of these': {'quality_rules': ('gopher', 'c4'), 'redact': REDACTED, 'languages': ('en',)},
}


def main(_: list[str]) -> None:
    documents = _read(_SOURCE.value, _MEGABYTES.value * 1e6)
    num_bytes = sum(len(document.text.encode()) for document in documents)
    print(f'{len(documents):,} documents, {num_bytes / 1e6:.1f} MB, one core, CPU time')
    language_of('a')  # loads the model
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        for label, settings in _SETTINGS.items():
            stats = Stats()
            cleaner = Cleaner(ReadOptions(**settings), directory)
            seconds = _seconds(lambda cleaner=cleaner, stats=stats: list(cleaner.clean(documents, stats)))
            dropped = ', '.join(f'{count:,} {reason}' for reason, count in sorted(stats.counts.items()))
            print(f'  {label:26} {num_bytes / seconds / 1e6:8.1f} MB/s   {dropped}', flush=True)
        seconds = _seconds(lambda: write_pairs(documents, directory / 'lines' / '00000', 100))
        print(f'  {"boilerplate, first pass":26} {num_bytes / seconds / 1e6:8.1f} MB/s', flush=True)
        _measure_prepare(documents, directory, num_bytes)


def _read(source: str, max_bytes: float) -> list[Document]:
    chunks = plan_source(source, 0).chunks
    size, documents = 0, []
    for document in itertools.chain.from_iterable(read_chunk(chunk, ReadOptions(), Stats()) for chunk in chunks):
        documents.append(document)
        size += len(document.text)
        if size >= max_bytes:
            break
    return documents


def _measure_prepare(documents: list[Document], directory: pathlib.Path, num_bytes: int) -> None:
    text = directory / 'text.txt'
    text.write_text('\n\n'.join(document.text for document in documents))
    everything = _SETTINGS['all of these'] | {'boilerplate_documents': 100}
    data = config.Data(source=f'text:{text}', corpus=str(directory / 'first'))
    prepare(data, config.Tokenizer(vocab_size=8000, sample_bytes=2_000_000), progress=False)
    tokenizer = config.Tokenizer(path=str(directory / 'first' / 'tokenizer'))
    for label, settings in (('prepare', {}), ('prepare, all of these', everything)):
        data = config.Data(source=f'text:{text}', corpus=str(directory / label), **settings)
        seconds = _seconds(lambda data=data: prepare(data, tokenizer, progress=False))
        print(f'  {label:26} {num_bytes / seconds / 1e6:8.1f} MB/s', flush=True)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == '__main__':
    app.run(main)
