"""How fast one process prepares text, next to what the tokenizer libraries reach alone; and how much memory it takes.

    python -m benchmarks.prepare [--text=FILE] [--rounds=5]
    python -m benchmarks.prepare --gigabytes=1 [--workers=2] [--longest_line=100000000]

The first runs in turns, on the same text, on one core: (A) batch encoders of the libraries on sentences that lie in
memory (for SentencePiece the `tokenizers` library's and the sentencepiece library's own), and (B) all of `prepare` with
that tokenizer: reading, splitting into sentences, encoding, checksums, merging, syncing to disk (a SentencePiece model
is parsed before both). It prints medians and their ratio, by the clock and by processor time (which other programs on
the machine disturb less). The second writes a file of that size by repeating and varying the text, one of its lines of
`longest_line` characters, prepares it in a process of its own, and prints the peak memory of the largest process.

Without --text, the text is the docstrings of the installed packages (15 MB).
"""

import contextlib
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

import sentencepiece
from absl import app, flags

from bert_jax import config
from bert_jax.text.chunks import plan_source
from bert_jax.text.documents import ReadOptions, read_chunk
from bert_jax.text.prepare import prepare
from bert_jax.text.stats import Stats
from bert_jax.text.tokenizer import load_tokenizer, train_tokenizer

_TEXT = flags.DEFINE_string('text', None, 'a text file; a blank line between documents')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'how often A and B are timed', lower_bound=1)
_GIGABYTES = flags.DEFINE_float('gigabytes', 0, 'measure the memory at this much text')
_WORKERS = flags.DEFINE_integer('workers', 2, 'processes, when memory is measured')
_LONGEST_LINE = flags.DEFINE_integer(
    'longest_line', 100_000_000, 'characters of the longest line, when memory is measured'
)
_KIND = flags.DEFINE_enum('kind', None, ['wordpiece', 'sentencepiece'], 'of the tokenizer; of speeds both without it')

_SENTENCES_AT_ONCE = 10_000
_ORIGINAL_BYTES_PER_SECOND = 67_000  # reported for create_pretraining_data.py, a process


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        text = pathlib.Path(_TEXT.value) if _TEXT.value else _write_docstrings(directory / 'docstrings.txt')
        if _GIGABYTES.value:
            _measure_memory(directory, text)
        else:
            for kind in (_KIND.value,) if _KIND.value else ('wordpiece', 'sentencepiece'):
                _measure_speed(directory, text, kind)


def _write_docstrings(path: pathlib.Path) -> pathlib.Path:
    with path.open('w') as file:
        for chunk in plan_source('python-docs', 0, '').chunks:
            for document in read_chunk(chunk, ReadOptions(split_sentences=False), Stats()):
                file.write('\n'.join(document.sentences) + '\n\n')
    return path


def _measure_speed(directory: pathlib.Path, text: pathlib.Path, kind: str) -> None:
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    source = f'text:{text}'
    chunks = plan_source(source, 0, '').chunks
    sentences = [
        s for chunk in chunks for document in read_chunk(chunk, ReadOptions(), Stats()) for s in document.sentences
    ]
    settings = config.Tokenizer(kind=kind, vocab_size=30_000, sample_bytes=20_000_000)
    train_tokenizer(settings, iter(sentences)).save(directory / kind)
    given = config.Tokenizer(path=str(directory / kind))
    tokenizer = load_tokenizer(given.path, lowercase=True, strip_accents=False)
    alone = {'tokenizers, encode_batch_fast': tokenizer._backend.encode_batch_fast}
    lowered = {}
    if kind == 'sentencepiece':
        processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / kind / 'sentencepiece.model'))
        alone['sentencepiece, encode'] = functools.partial(processor.encode, num_threads=1)
        lowered['sentencepiece, encode'] = [sentence.lower() for sentence in sentences]  # the pipeline does it itself
    times = {name: [] for name in (*alone, 'prepare, all of it')}  # (seconds by the clock, by the processor)
    for number in range(_ROUNDS.value):
        for name, encode in alone.items():
            text_of = lowered.get(name, sentences)
            with _timed(times[name]):
                for start in range(0, len(text_of), _SENTENCES_AT_ONCE):
                    encode(text_of[start : start + _SENTENCES_AT_ONCE])
        with _timed(times['prepare, all of it']):
            prepare(config.Data(source=source, corpus=str(directory / f'{kind}-{number}')), given, progress=False)
    num_bytes = text.stat().st_size
    print(f'{num_bytes / 1e6:.1f} MB of text, {len(sentences):,} sentences, one core, medians of {_ROUNDS.value}')
    for column, clock in enumerate(('by the clock', 'by processor time')):
        speeds = {
            name: num_bytes / statistics.median(one[column] for one in seconds) for name, seconds in times.items()
        }
        ours = speeds.pop('prepare, all of it')
        multiple = ours / _ORIGINAL_BYTES_PER_SECOND
        print(f'  {clock}: prepare, all of it: {ours / 1e6:.2f} MB/s, {multiple:.0f} times 67 kB/s')
        for name, speed in speeds.items():
            print(f'    {name}, alone: {speed / 1e6:.2f} MB/s; prepare is {ours / speed:.2f} times as fast')
    print(json.dumps({'kind': kind} | times), flush=True)


@contextlib.contextmanager
def _timed(times: list[tuple[float, float]]) -> Iterator[None]:
    start, start_processor = time.perf_counter(), time.process_time()
    yield
    times.append((time.perf_counter() - start, time.process_time() - start_processor))


def _measure_memory(directory: pathlib.Path, text: pathlib.Path) -> None:
    big = directory / 'big.txt'
    arguments = text, big, int(_GIGABYTES.value * 1e9), _LONGEST_LINE.value
    # In a process of its own: what is started from here counts the memory of this process as its own (exec keeps it).
    writer = multiprocessing.get_context('spawn').Process(target=_write_varied, args=arguments)
    writer.start()
    writer.join()
    command = [sys.executable, '-m', 'bert_jax', 'prepare', '--config=configs/bert.py', '--json']
    command += [f'--config.data.source=text:{big}', f'--config.data.corpus={directory}/corpus']
    command += [f'--workers={_WORKERS.value}', f'--config.tokenizer.kind={_KIND.value or "wordpiece"}']
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    summary = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    peak = usage.ru_maxrss * 1024  # of the largest of it and its workers, not their sum
    print(f'{big.stat().st_size / 1e9:.2f} GB of text, its longest line {_LONGEST_LINE.value:,} characters:')
    print(f'  {seconds:.0f} s with {_WORKERS.value} workers; peak memory of the largest process {peak / 1e6:.0f} MB')
    print(f'  {summary["documents"]:,} documents, {summary["tokens"]:,} tokens; dropped: {summary["dropped"]}')


def _write_varied(text: pathlib.Path, path: pathlib.Path, num_bytes: int, longest_line: int) -> None:
    """Repeats a text until it is large; every time, one in fifty words is another word of the text."""
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
                for place in range(rng.randrange(50), len(line), 50):
                    line[place] = rng.choice(words)
                file.write(' '.join(line) + '\n')
            file.write('\n')


if __name__ == '__main__':
    app.run(main)
