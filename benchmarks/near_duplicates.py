"""Measures the search for near copies: its speed on one core, and how many copies it finds.

    python -m benchmarks.near_duplicates [--text=FILE] [--similarity=0.8] [--rounds=3]

FILE is a text file with blank lines between documents, or JSON lines with a field `text`, also compressed. Without it,
the text is the docstrings of the installed packages (15 MB). Prints:

- the speed of sketches and band keys (A), and of `prepare` in one process without (B) and with (C) the search, which
  alternate; medians, in wall-clock time and in CPU time, which other programs on the machine affect less;
- for copies of the documents in which a share of the words is replaced by other words of the text: their similarity,
  and the share of them that the search finds.
"""

import os

os.environ['RAYON_NUM_THREADS'] = os.environ['TOKENIZERS_PARALLELISM'] = '1'  # before the libraries are loaded

import contextlib
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
from absl import app, flags

from bert_jax import config
from bert_jax.text.documents import read_chunk
from bert_jax.text.near_duplicates.comparison import estimate_similarity
from bert_jax.text.near_duplicates.settings import NearDuplicates
from bert_jax.text.near_duplicates.sketches import band_keys, sketch
from bert_jax.text.prepare import prepare
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.plan import plan_source
from bert_jax.text.stats import Stats

_TEXT = flags.DEFINE_string('text', None, 'text file or JSON lines')
_SIMILARITY = flags.DEFINE_float('similarity', 0.8, 'data.near_duplicates')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'number of timings', lower_bound=1)

_DOCUMENTS_AT_ONCE = 3000
_NUM_COPIED = 2000
_MIN_WORDS = 50  # of a document that is copied
_SHARES = (0.02, 0.05, 0.08, 0.11, 0.15, 0.2, 0.3)


def main(_: list[str]) -> None:
    source = 'python-docs'
    if _TEXT.value:
        source = f'{"jsonl" if ".json" in _TEXT.value else "text"}:{_TEXT.value}'
    texts = [
        document.text
        for chunk in plan_source(source, 0).chunks
        for document in read_chunk(chunk, ReadOptions(), Stats())
    ]
    settings = NearDuplicates(_SIMILARITY.value)
    _measure_speed(source, texts, settings)
    _measure_recall(texts, settings)


def _measure_speed(source: str, texts: list[str], settings: NearDuplicates) -> None:
    times: dict[str, list[tuple[float, float]]] = {'A sketches': [], 'B prepare': [], 'C prepare, near copies': []}
    with tempfile.TemporaryDirectory() as directory:
        trained = config.Data(source=source, corpus=f'{directory}/trained')
        prepare(trained, config.Tokenizer(vocab_size=8000, sample_bytes=5_000_000), progress=False)
        tokenizer = config.Tokenizer(path=f'{trained.corpus}/tokenizer')
        for round_index in range(_ROUNDS.value):
            with _timed(times['A sketches']):
                for start in range(0, len(texts), _DOCUMENTS_AT_ONCE):
                    band_keys(sketch(texts[start : start + _DOCUMENTS_AT_ONCE], 0).shingles, settings.bands)
            for name, similarity in (('B prepare', 0.0), ('C prepare, near copies', settings.similarity)):
                data = config.Data(
                    source=source, corpus=f'{directory}/{name[0]}{round_index}', near_duplicates=similarity
                )
                with _timed(times[name]):
                    summary = prepare(data, tokenizer, progress=False)
            print(f'dropped: {summary.dropped}', flush=True)
    num_bytes = sum(len(text.encode()) for text in texts)
    print(f'{num_bytes / 1e6:.1f} MB, {len(texts):,} documents, one core, medians of {_ROUNDS.value} round(s)')
    for name, timings in times.items():
        wall, cpu = (num_bytes / 1e6 / statistics.median(column) for column in zip(*timings, strict=True))
        print(f'  {name:24} {wall:6.2f} MB/s by wall-clock time, {cpu:6.2f} MB/s by CPU time')


@contextlib.contextmanager
def _timed(times: list[tuple[float, float]]) -> Iterator[None]:
    start, start_processor = time.perf_counter(), time.process_time()
    yield
    times.append((time.perf_counter() - start, time.process_time() - start_processor))


def _measure_recall(texts: list[str], settings: NearDuplicates) -> None:
    rng = np.random.default_rng(0)
    documents = [words for text in texts if len(words := np.array(text.lower().split())) >= _MIN_WORDS]
    documents = [documents[i] for i in rng.permutation(len(documents))[:_NUM_COPIED]]
    vocabulary = np.concatenate(documents)
    originals = sketch([' '.join(words) for words in documents], 0)
    keys = band_keys(originals.shingles, settings.bands)
    print(f'{len(documents):,} documents and a copy of each, similarity {settings.similarity}, {settings.bands}:')
    for share in _SHARES:
        copies = [_changed(rng, words, share, vocabulary) for words in documents]
        similarities = [_similarity(*pair) for pair in zip(documents, copies, strict=True)]
        found = sketch([' '.join(words) for words in copies], 0)
        is_candidate = (keys == band_keys(found.shingles, settings.bands)).any(axis=0)
        is_similar = estimate_similarity(originals.words, found.words) >= settings.similarity
        print(
            f'  {share:4.0%} replaced: similarity {np.mean(similarities):.3f}, compared {is_candidate.mean():.4f}, '
            f'found {(is_candidate & is_similar).mean():.4f}'
        )


def _changed(rng: np.random.Generator, words: np.ndarray, share: float, vocabulary: np.ndarray) -> np.ndarray:
    positions = rng.choice(len(words), round(share * len(words)), replace=False)
    words = words.astype(object)
    words[positions] = rng.choice(vocabulary, len(positions))
    return words


def _similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the Jaccard similarity of two multisets of words."""
    counts = Counter(first), Counter(second)
    return (counts[0] & counts[1]).total() / (counts[0] | counts[1]).total()


if __name__ == '__main__':
    app.run(main)
