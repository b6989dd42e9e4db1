"""Measures the speed of `prepare` in one process, compared with the tokenizer libraries alone, and its memory.

    python -m benchmarks.prepare [--text=FILE] [--rounds=5]
    python -m benchmarks.prepare --gigabytes=1 [--workers=2] [--longest_line=100000000] [--format=csv]

The first command measures speed, alternating on one core and on the same text: (A) the batch encoders of the libraries
on sentences in memory (for SentencePiece, those of `tokenizers` and of sentencepiece itself); (B) the whole of
`prepare` with that tokenizer: reading, sentence splitting, encoding, checksums, merging, syncing to disk. Before that,
it compares the ids of all sentences, and parses a SentencePiece model. It prints medians and their ratios, in
wall-clock time and in CPU time, which other programs on the machine affect less.

The second command measures memory. It writes a file of that size by repeating and varying the text, with one line of
`longest_line` characters, prepares it in a separate process, and prints the peak memory of the largest process.

Without --text, the text is the docstrings of the installed packages (15 MB).
"""

import contextlib
import csv
import functools
import json
import multiprocessing
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import sentencepiece
from absl import app, flags

from bert_jax import config
from bert_jax.text.documents import read_chunk
from bert_jax.text.encode import Encoder
from bert_jax.text.prepare import prepare
from bert_jax.text.sources.lines import batched
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.plan import plan_source
from bert_jax.text.stats import Stats
from bert_jax.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from bert_jax.text.vocabulary import flatten

_TEXT = flags.DEFINE_string('text', None, 'text file; blank lines separate documents')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'number of timings of A and B', lower_bound=1)
_GIGABYTES = flags.DEFINE_float('gigabytes', 0, 'measure memory with this many GB of text')
_WORKERS = flags.DEFINE_integer('workers', 2, 'worker processes of the memory measurement')
_LONGEST_LINE = flags.DEFINE_integer(
    'longest_line', 100_000_000, 'characters of the longest line of the memory measurement'
)
_FORMAT = flags.DEFINE_enum(
    'format',
    'text',
    ['text', 'csv'],
    'of the file of the memory measurement; csv: cells of 20 lines',
)
_KIND = flags.DEFINE_enum(
    'kind', None, ['wordpiece', 'sentencepiece', 'bpe'], 'kind of tokenizer (default: all, or wordpiece for memory)'
)

_SENTENCES_AT_ONCE = 10_000
_ORIGINAL_BYTES_PER_SECOND = 67_000  # reported for create_pretraining_data.py, per process


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        text = pathlib.Path(_TEXT.value) if _TEXT.value else _write_docstrings(directory / 'docstrings.txt')
        if _GIGABYTES.value:
            _measure_memory(directory, text)
        else:
            for kind in (_KIND.value,) if _KIND.value else ('wordpiece', 'sentencepiece', 'bpe'):
                _measure_speed(directory, text, kind)


def _write_docstrings(path: pathlib.Path) -> pathlib.Path:
    with path.open('w') as file:
        for chunk in plan_source('python-docs', 0).chunks:
            for document in read_chunk(chunk, ReadOptions(split_sentences=False), Stats()):
                file.write('\n'.join(document.sentences) + '\n\n')
    return path


def _measure_speed(directory: pathlib.Path, text: pathlib.Path, kind: str) -> None:
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    source = f'text:{text}'
    chunks = plan_source(source, 0).chunks
    sentences = [
        s for chunk in chunks for document in read_chunk(chunk, ReadOptions(), Stats()) for s in document.sentences
    ]
    settings = config.Tokenizer(kind=kind, vocab_size=30_000, sample_bytes=20_000_000)
    train_tokenizer(settings, iter(sentences)).save(directory / kind)
    provided = config.Tokenizer(path=str(directory / kind))
    tokenizer = load_tokenizer(provided.path)
    _check_ids(tokenizer, sentences)
    alone = {'tokenizers, encode_batch_fast': tokenizer._backend.encode_batch_fast}
    lowered = {}
    if kind == 'sentencepiece':
        processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / kind / 'sentencepiece.model'))
        alone['sentencepiece, encode'] = functools.partial(processor.encode, num_threads=1)
        lowered['sentencepiece, encode'] = [
            sentence.lower() for sentence in sentences
        ]  # the pipeline lowercases itself
    times = {name: [] for name in (*alone, 'prepare')}  # (wall-clock seconds, CPU seconds)
    for round_index in range(_ROUNDS.value):
        for name, encode in alone.items():
            text_of = lowered.get(name, sentences)
            with _timed(times[name]):
                for start in range(0, len(text_of), _SENTENCES_AT_ONCE):
                    encode(text_of[start : start + _SENTENCES_AT_ONCE])
        with _timed(times['prepare']):
            prepare(
                config.Data(source=source, corpus=str(directory / f'{kind}-{round_index}')), provided, progress=False
            )
    num_bytes = text.stat().st_size
    size = f'{num_bytes / 1e6:.1f} MB of text, {len(sentences):,} sentences'
    print(f'{size}, ids equal, one core, medians of {_ROUNDS.value} rounds')
    for column, clock in enumerate(('wall-clock time', 'CPU time')):
        speeds = {
            name: num_bytes / statistics.median(timing[column] for timing in timings) for name, timings in times.items()
        }
        ours = speeds.pop('prepare')
        multiple = ours / _ORIGINAL_BYTES_PER_SECOND
        print(f'  {clock}: prepare: {ours / 1e6:.2f} MB/s, {multiple:.0f} times the original (67 kB/s)')
        for name, speed in speeds.items():
            print(f'    {name}: {speed / 1e6:.2f} MB/s; prepare runs at {ours / speed:.2f} times that speed')
    print(json.dumps({'kind': kind} | times), flush=True)


def _check_ids(tokenizer: Tokenizer, sentences: list[str]) -> None:
    """Checks that the word cache gives the ids that the `tokenizers` library gives for whole sentences."""
    encoder = Encoder(tokenizer)
    for start in range(0, len(sentences), _SENTENCES_AT_ONCE):
        texts = sentences[start : start + _SENTENCES_AT_ONCE]
        ids, sizes = encoder.encode('\n'.join([*texts, '']).encode())
        expected, expected_sizes = flatten(tokenizer.encode_batch(texts))
        assert np.array_equal(ids, expected) and np.array_equal(sizes, expected_sizes), 'the ids differ'


@contextlib.contextmanager
def _timed(times: list[tuple[float, float]]) -> Iterator[None]:
    start, start_processor = time.perf_counter(), time.process_time()
    yield
    times.append((time.perf_counter() - start, time.process_time() - start_processor))


def _measure_memory(directory: pathlib.Path, text: pathlib.Path) -> None:
    big = directory / f'big.{_FORMAT.value}'
    write = {'text': _write_varied, 'csv': _write_table}[_FORMAT.value]
    arguments = text, big, int(_GIGABYTES.value * 1e9), _LONGEST_LINE.value
    # In a separate process: a child of this process would inherit its peak memory, which exec keeps.
    writer = multiprocessing.get_context('spawn').Process(target=write, args=arguments)
    writer.start()
    writer.join()
    command = [sys.executable, '-m', 'bert_jax', 'prepare', '--config=configs/bert.py', '--json']
    command += [f'--config.data.source={_FORMAT.value}:{big}', f'--config.data.corpus={directory}/corpus']
    command += [f'--workers={_WORKERS.value}', f'--config.tokenizer.kind={_KIND.value or "wordpiece"}']
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    summary = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    peak = usage.ru_maxrss * 1024  # of the largest of the process and its workers, not their sum
    print(f'{big.stat().st_size / 1e9:.2f} GB of {_FORMAT.value}, longest line {_LONGEST_LINE.value:,} characters:')
    print(f'  {seconds:.0f} s with {_WORKERS.value} workers; peak memory of the largest process {peak / 1e6:.0f} MB')
    print(f'  {summary["documents"]:,} documents, {summary["tokens"]:,} tokens; dropped: {summary["dropped"]}')


def _write_varied(text: pathlib.Path, path: pathlib.Path, num_bytes: int, longest_line: int) -> None:
    """Repeats a text until it has `num_bytes`; each repetition replaces one in fifty words by a random one."""
    lines = [line.split() for line in text.read_text('utf-8').split('\n')]
    words = [word for line in lines for word in line]
    rng = random.Random(0)
    with path.open('w') as file:
        length = 0
        while length < longest_line:
            length += file.write(' '.join(rng.choices(words, k=100_000)) + ' ')
        file.write('\n\n')
        while file.tell() < num_bytes:
            for line in lines:
                for index in range(rng.randrange(50), len(line), 50):
                    line[index] = rng.choice(words)
                file.write(' '.join(line) + '\n')
            file.write('\n')


def _write_table(text: pathlib.Path, path: pathlib.Path, num_bytes: int, longest_line: int) -> None:
    """Writes what `_write_varied` writes as a table with a row for every 20 lines."""
    _write_varied(text, path.with_suffix('.txt'), num_bytes, longest_line)
    with path.with_suffix('.txt').open() as lines, path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['id', 'text'])
        for index, cell in enumerate(batched(lines, 20)):
            writer.writerow([index, ''.join(cell)])
    path.with_suffix('.txt').unlink()


if __name__ == '__main__':
    app.run(main)
