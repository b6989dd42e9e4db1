"""Measures memory and time of embeddings at scale: batches of 64 and 4,096 pairs, searches in 10^5 and 10^6 passages.

    python -m benchmarks.embedding_memory --texts=reviews.jsonl --encoder=runs/demo/export --output=runs/embedding-scale

The pairs and passages are consecutive words of the texts. Training runs the batch of 4,096 pairs in 64 microbatches,
whose gradients are those of the whole batch. The search is `evaluate --retrieval`, from reading the passages to the
metrics; a query is the first half of a passage. Peak memory is that of the resident set of the command, which counts
the vectors that are mapped from a file.

Finished parts are stored in OUTPUT/results and skipped when the command is rerun. OUTPUT/embedding-memory.md shows what
is finished.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.parts import Parts

_ROOT = Path(__file__).resolve().parent.parent
_PAIRS = {'64': 64, '4096': 4096}  # of a batch
_PASSAGES = {'1e5': 10**5, '1e6': 10**6}
_MICROBATCH = 64
_STEPS = 3
_QUERIES = 1000


@dataclasses.dataclass(frozen=True)
class Benchmark(Parts):
    """The parts of the benchmark."""

    flags: argparse.Namespace

    def passages(self) -> Iterator[str]:
        """Yields `--words` consecutive words of the texts at a time."""
        from bert_jax.pretrained.embed_input import read_inputs

        for each in read_inputs(str(self.flags.texts), 'text', 'id', Counter()):
            words = each.text.split()
            for start in range(0, len(words) - self.flags.words + 1, self.flags.words):
                yield ' '.join(words[start : start + self.flags.words])

    def training(self, pairs: int) -> dict[str, Any]:
        """Trains on a file with as many pairs as the steps need."""
        count, file = pairs * _STEPS, self.output / f'pairs-{pairs}.jsonl'
        texts = self.passages()
        records = [{'anchor': next(texts), 'positive': next(texts)} for _ in range(count + _MICROBATCH)]
        for path, part in ((file, records[:count]), (self.output / 'held-out.jsonl', records[count:])):
            path.write_text(''.join(json.dumps(record) + '\n' for record in part), encoding='utf-8')
        fields = {
            'init': self.flags.encoder,
            'task.train': f'jsonl:{file}',
            'task.validation': f'jsonl:{self.output}/held-out.jsonl',
            'train.global_batch_size': pairs,
            'train.microbatches': pairs // _MICROBATCH,
            'train.epochs': 1.0,
        }
        flags = [f'--config.{name}={value}' for name, value in fields.items()]
        config = f'--config={_ROOT}/configs/finetune/embedding.py'
        return measured('finetune', config, *flags, f'--workdir={self.output}/trained-{pairs}')[0]

    def search(self, count: int) -> dict[str, Any]:
        """Searches a set of `count` passages."""
        directory = self.output / f'set-{count}'
        (directory / 'qrels').mkdir(parents=True, exist_ok=True)
        queries, judgements = [], ['query-id\tcorpus-id\tscore\n']
        with (directory / 'corpus.jsonl').open('w', encoding='utf-8') as file:
            for index, passage in enumerate(itertools.islice(self.passages(), count)):
                file.write(json.dumps({'_id': f'p{index}', 'text': passage}) + '\n')
                if index % (count // _QUERIES) == 0:
                    words = passage.split()
                    half = ' '.join(words[: len(words) // 2])
                    queries.append(json.dumps({'_id': f'q{index}', 'text': half}) + '\n')
                    judgements.append(f'q{index}\tp{index}\t1\n')
        if index + 1 < count:
            sys.exit(f'--texts: has {index + 1:,} passages of {self.flags.words} words; {count:,} are needed')
        (directory / 'queries.jsonl').write_text(''.join(queries), encoding='utf-8')
        (directory / 'qrels' / 'test.tsv').write_text(''.join(judgements), encoding='utf-8')
        found, output = measured(
            'evaluate', f'--model={self.flags.encoder}', f'--retrieval={directory}', '--bm25=false'
        )
        return found | {'ndcg_at_10': output['retrieval']['systems'][0]['ndcg_at_10']}

    def run(self) -> str:
        """Runs all parts that are not finished; returns the table."""
        self.output.mkdir(parents=True, exist_ok=True)
        self.keep_settings(self.flags)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            f'training-{name}': functools.partial(self.training, count) for name, count in _PAIRS.items()
        }
        parts |= {f'search-{name}': functools.partial(self.search, count) for name, count in _PASSAGES.items()}
        lines = ['| | peak memory, GB | minutes |', '|---|--:|--:|']
        for name, part in parts.items():
            if self.result(name) is None:
                self.write(name, part())
            result = self.result(name) or {}
            lines.append(f'| {name} | {result["peak_bytes"] / 1e9:.2f} | {result["seconds"] / 60:.1f} |')
        table = '\n'.join(lines) + '\n'
        (self.output / 'embedding-memory.md').write_text(table, encoding='utf-8')
        return table


def measured(*arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs a command of bert_jax and returns ({'seconds', 'peak_bytes'}, its JSON); exits if it fails."""
    print('$ bert-jax', *arguments, flush=True)
    started = time.time()
    command = [sys.executable, '-m', 'bert_jax', *arguments, '--json']
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT, env=environment)
    assert process.stdout
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f'bert_jax {arguments[0]} failed with status {process.returncode}; rerun the same command to resume')
    return {'seconds': time.time() - started, 'peak_bytes': usage.ru_maxrss * 1024}, json.loads(output)


def main() -> None:
    """Reads the flags and runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--texts', type=Path, required=True, help='file of texts, as `embed --input` reads it')
    parser.add_argument('--encoder', type=Path, required=True, help='workdir or export')
    parser.add_argument('--output', type=Path, required=True, help='directory of texts, runs and results')
    parser.add_argument('--words', type=int, default=10, help='words of a passage')
    flags = parser.parse_args()
    flags.output = flags.output.resolve()
    print(Benchmark(flags.output, flags).run())


if __name__ == '__main__':
    main()
