"""Compares the training of embedding models with the trainer of sentence-transformers: metrics and examples per second.

    python -m benchmarks.embedding_training --encoder=models/mine --output=runs/embedding-training --seeds=3 \
        --task=stsb:glue/STS-B --task=xquad:xquad.en.json --speed=mini

Both `finetune` and their trainer (embedding_trainer.py) start from the same encoder (a Hugging Face directory) and use
the same pairs, pooling, loss, batch size, learning rate, schedule, optimizer settings, dropout, length and number of
steps. They alternate, each run in a process. `evaluate` measures the models of both.

    stsb    scored pairs of GLUE, CoSENT; Spearman's rank correlation on dev.tsv
    xquad   questions and the paragraphs that answer them, InfoNCE on four of five paragraphs; the questions of the
            others are searched for in all paragraphs: nDCG@10. Batches of sentence-transformers hold no text twice
            (NO_DUPLICATES, as it recommends); bert_jax leaves such negatives out of the loss

Quality is measured with `--encoder`, over `--seeds` runs. Speed is that of the same runs and of `--turns` short runs
with each size in `--speed`, whose encoder has random weights: examples per second, the median over intervals of 10
training steps, without compilation, evaluation and saving, and the median ratio of runs that follow each other.

Results are stored in OUTPUT/results, and finished runs are not repeated; OUTPUT/embedding-training.md has the tables.
"""

import argparse
import dataclasses
import json
import os
import runpy
import statistics
from pathlib import Path
from typing import Any

from benchmarks.finetuning import LOG_EVERY, random_encoder, trainer_settings
from benchmarks.finetuning_tables import describe, median_and_deviation
from benchmarks.parts import Parts, run_bert_jax, run_module
from benchmarks.pretraining_data import split_paragraphs

_ROOT = Path(__file__).resolve().parent.parent
SIDES = ('bert_jax', 'sentence-transformers')


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained on the pairs of a data set.

    Attributes:
      variant: of configs/finetune/embedding.py.
      columns: of the training file, in the order that sentence-transformers expects.
      metric: its key in the result of `evaluate`, and its name.
    """

    variant: str
    columns: tuple[str, ...]
    metric: tuple[str, str]
    epochs: float
    batch: int


TASKS = {
    'stsb': Task('scores', ('sentence1', 'sentence2', 'score'), ('spearman', 'Spearman'), 4.0, 32),
    'xquad': Task('pairs', ('anchor', 'positive'), ('ndcg_at_10', 'nDCG@10'), 10.0, 32),
}


# --- Data ---


def write_data(name: str, source: Path, directory: Path) -> None:
    """Writes train.jsonl and dev.jsonl of a task, and for xquad a retrieval set."""
    directory.mkdir(parents=True, exist_ok=True)
    if name == 'stsb':
        for part in ('train', 'dev'):
            header, *lines = (source / f'{part}.tsv').read_text(encoding='utf-8').splitlines()
            records = (dict(zip(header.split('\t'), line.split('\t'), strict=False)) for line in lines)
            kept = ({key: row[key] for key in TASKS[name].columns} | {'score': float(row['score'])} for row in records)
            _write_lines(directory / f'{part}.jsonl', kept)
        return
    splits = split_paragraphs(json.loads(source.read_text(encoding='utf-8')))
    pairs = [
        [
            {'anchor': question['question'], 'positive': paragraph['context']}
            for paragraph in split['data'][0]['paragraphs']
            for question in paragraph['qas']
        ]
        for split in splits
    ]
    for part, records in zip(('train', 'dev'), pairs, strict=True):
        _write_lines(directory / f'{part}.jsonl', records)
    passages = list(dict.fromkeys(record['positive'] for records in pairs for record in records))
    index_of = {text: index for index, text in enumerate(passages)}
    _write_lines(directory / 'corpus.jsonl', ({'_id': f'p{i}', 'text': text} for i, text in enumerate(passages)))
    _write_lines(
        directory / 'queries.jsonl', ({'_id': f'q{i}', 'text': row['anchor']} for i, row in enumerate(pairs[1]))
    )
    (directory / 'qrels').mkdir(exist_ok=True)
    judgements = (f'q{i}\tp{index_of[row["positive"]]}\t1\n' for i, row in enumerate(pairs[1]))
    (directory / 'qrels' / 'test.tsv').write_text('query-id\tcorpus-id\tscore\n' + ''.join(judgements))


def _write_lines(path: Path, records: Any) -> None:
    path.write_text(''.join(json.dumps(record) + '\n' for record in records), encoding='utf-8')


# --- Runs ---


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A task with an encoder, its runs and their results.

    Attributes:
      data: directory that `write_data` has filled.
      encoder: a Hugging Face directory; its name is part of the names of results.
      steps: length of a run, of which only the speed counts; None for the task's epochs.
      runs: number of runs of each side.
    """

    name: str
    data: Path
    encoder: Path
    steps: int | None
    runs: int
    flags: argparse.Namespace

    @property
    def task(self) -> Task:
        return TASKS[self.name]

    @property
    def _parts(self) -> Parts:
        return Parts(self.flags.output)

    def _part(self, side: str, run: int) -> str:
        return f'{self.encoder.name}-{self.name}-{side}-{run if run >= 0 else "before"}'

    def fields(self, run: int) -> dict[str, Any]:
        """Returns config fields by name; the trainer of sentence-transformers gets the same values."""
        return {
            'init': str(self.encoder),
            'task.train': f'jsonl:{self.data}/train.jsonl',
            'task.validation': f'jsonl:{self.data}/dev.jsonl',
            'task.sequence_length': self.flags.length,
            'optimizer.peak_learning_rate': self.flags.learning_rate,
            'train.seed': run,
            'train.epochs': self.flags.epochs or self.task.epochs,
            'train.global_batch_size': self.task.batch,
            'train.log_every': LOG_EVERY,
            'train.checkpoint_every': 1_000_000,  # their trainer saves nothing
            'model.dtype': self.flags.dtype,
            'platform': 'cpu',
        }

    def results(self, side: str) -> list[dict[str, Any]]:
        """Returns the results of the finished runs."""
        found = (self._parts.result(self._part(side, run)) for run in range(self.runs))
        return [result for result in found if result is not None]

    def metrics(self, side: str) -> list[float]:
        """Returns the metric of each run that was measured."""
        found = (self._parts.result(self._part('metrics', run)) for run in range(self.runs))
        return [result[side] for result in found if result is not None]

    def untrained(self) -> float | None:
        """Returns the metric of the encoder before training, if it was measured."""
        result = self._parts.result(self._part('metrics', -1))
        return result and result['untrained']

    def train(self, side: str, run: int) -> None:
        """Trains unless it is done; writes the result atomically."""
        part = self._part(side, run)
        if self._parts.result(part) is not None:
            return
        print(f'--- {part}', flush=True)
        config, data = self._open(run)
        train = self._bert_jax if side == SIDES[0] else self._theirs
        self._parts.write(part, train(config, data, self._directory(side, run)))

    def measure(self, run: int) -> None:
        """Measures the models of a run of both sides, with run -1 the encoder before training, unless it is done."""
        part = self._part('metrics', run)
        if self._parts.result(part) is not None:
            return
        print(f'--- {part}', flush=True)
        if run < 0:
            [value] = self._evaluate(self.encoder)
            self._parts.write(part, {'untrained': value})
        else:
            values = self._evaluate(self._directory(SIDES[0], run), self._directory(SIDES[1], run) / 'model')
            self._parts.write(part, dict(zip(SIDES, values, strict=True)))

    def _directory(self, side: str, run: int) -> Path:
        return self.flags.output / 'runs' / self._part(side, run)

    def _evaluate(self, model: Path, baseline: Path | None = None) -> list[float]:
        """Returns the metric of each model."""
        if self.name == 'stsb':
            kind, flags = 'sts', [f'--sts={self.data}/dev.jsonl']
        else:
            kind, flags = 'retrieval', [f'--retrieval={self.data}', '--bm25=false']
        flags += [f'--baseline={baseline}'] if baseline else []
        found = run_bert_jax('evaluate', f'--model={model}', *flags)
        return [system[self.task.metric[0]] for system in found[kind]['systems']]

    def _bert_jax(self, config: Any, data: Any, workdir: Path) -> dict[str, Any]:
        fields = self.fields(config.train.seed) | {'train.epochs': config.train.epochs}
        overrides = [f'--config.{name}={value}' for name, value in fields.items()]
        file = f'--config={_ROOT}/configs/finetune/embedding.py:{self.task.variant}'
        run_bert_jax('finetune', file, *overrides, f'--workdir={workdir}')
        log = workdir / f'seed-{config.train.seed}' / 'metrics.jsonl'
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        speeds = [line['tokens_per_second'] for line in lines if 'tokens_per_second' in line]
        [source] = data.train.sources.values()
        tokens = len(source.rows.ids) / len(source)  # of an example
        return {'examples_per_second': statistics.median(speeds) / tokens if speeds else None}

    def _theirs(self, config: Any, data: Any, directory: Path) -> dict[str, Any]:
        directory.mkdir(parents=True, exist_ok=True)
        settings = trainer_settings(config, len(data.train), config.train.seed, self.flags.dtype) | {
            'encoder': str(self.encoder),
            'pairs': f'{self.data}/train.jsonl',
            'columns': self.task.columns,
            'loss': config.embedding.loss,
            'scale': 1 / config.embedding.temperature,
            'length': config.task.sequence_length,
        }
        (directory / 'settings.json').write_text(json.dumps(settings))
        run_module('benchmarks.embedding_trainer', str(directory))
        return json.loads((directory / 'run.json').read_text())

    def _open(self, run: int) -> tuple[Any, Any]:
        """Returns (resolved config, TaskData)."""
        from bert_jax.finetune.start import prepare_start
        from bert_jax.finetune.tasks import read_data

        start = prepare_start(self.config(run), [])
        data = read_data(start.config, start.tokenizer)
        train = start.config.train
        if self.steps:  # and a half, so that rounding does not matter
            train = dataclasses.replace(train, epochs=(self.steps + 0.5) * self.task.batch / len(data.train))
        return dataclasses.replace(start.config, train=train), data

    def config(self, run: int) -> Any:
        """Returns the resolved config, without the sizes of the encoder."""
        from bert_jax.config.finetuning import resolve

        get_config = runpy.run_path(f'{_ROOT}/configs/finetune/embedding.py')['get_config']
        given = get_config(self.task.variant)
        given.update_from_flattened_dict(self.fields(run))
        return resolve(given)


# --- Tables ---


def page(comparisons: list[Comparison]) -> str:
    """Returns the settings, the table of metrics and the table of speeds, of what has finished on both sides."""
    flags = comparisons[0].flags
    settings = (
        f'At most {flags.length} positions, peak learning rate {flags.learning_rate:g}, {flags.dtype}, '
        f'{os.cpu_count()} CPU cores.'
    )
    quality = _quality([each for each in comparisons if each.metrics(SIDES[0])])
    speed = _speed([each for each in comparisons if all(map(each.results, SIDES))])
    return '\n'.join([settings, '', *quality, '', *speed, ''])


def _quality(comparisons: list[Comparison]) -> list[str]:
    lines = [
        f'| encoder | task | metric | before | {" | ".join(SIDES)} | difference | seeds |',
        '|---|---|---|--:|--:|--:|--:|--:|',
    ]
    for each in comparisons:
        values = [each.metrics(side) for side in SIDES]
        before, difference = each.untrained(), 100 * (statistics.median(values[0]) - statistics.median(values[1]))
        cells = [
            describe(each.encoder),
            each.name,
            each.task.metric[1],
            '' if before is None else f'{100 * before:.1f}',
            *map(median_and_deviation, values),
            f'{difference:+.1f}',
            ', '.join(dict.fromkeys(str(len(found)) for found in values)),
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def _speed(comparisons: list[Comparison]) -> list[str]:
    lines = [f'| encoder | task | {", examples/s | ".join(SIDES)}, examples/s | ratio | turns |']
    lines.append('|---|---|--:|--:|--:|--:|')
    for each in comparisons:
        ours, theirs = ([result['examples_per_second'] for result in each.results(side)] for side in SIDES)
        ratios = [a / b for a, b in zip(ours, theirs, strict=False)]
        spread = f' ({min(ratios):.2f} to {max(ratios):.2f})' if len(ratios) > 1 else ''
        cells = [
            describe(each.encoder),
            each.name,
            *(f'{statistics.median(speeds):,.0f}' for speeds in (ours, theirs)),
            f'{statistics.median(ratios):.2f}{spread}',
            str(len(ratios)),
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--encoder', type=Path, required=True, help='a Hugging Face BERT directory')
    add('--task', action='append', required=True, metavar='NAME:PATH', help=', '.join(TASKS))
    add('--output', type=Path, required=True, help='directory for runs, results and embedding-training.md')
    add('--seeds', type=int, default=3)
    add('--length', type=int, default=128, help='maximum positions; longer texts are cut')
    add('--learning_rate', type=float, default=3e-4)
    add('--epochs', type=float, default=0.0, help='epochs of every task; 0: the defaults in this file')
    add('--dtype', choices=('float32', 'bfloat16'), default='float32', help='their trainer uses autocast for bfloat16')
    add('--speed', action='append', default=[], metavar='SIZE', help='a size of configs/bert.py to measure speed with')
    add('--turns', type=int, default=3, help='short runs of each side that measure speed')
    add('--speed_steps', type=int, default=40)
    flags = parser.parse_args()
    flags.output, flags.encoder = flags.output.resolve(), flags.encoder.resolve()
    for given in flags.task:
        name, _, path = given.partition(':')
        if name not in TASKS or not Path(path).exists():
            parser.error(f'--task={given}: not NAME:PATH with NAME one of {", ".join(TASKS)}')
    return flags


def main() -> None:
    """Runs what is not finished; after each pair of runs, the page shows what is."""
    flags, data = _flags(), {}
    Parts(flags.output).keep_settings(flags, 'encoder', 'task', 'seeds', 'speed', 'turns')
    for name, _, path in (given.partition(':') for given in flags.task):
        data[name] = flags.output / 'data' / name
        write_data(name, Path(path), data[name])
    encoders: list[tuple[Path, int | None, int]] = [(flags.encoder, None, flags.seeds)] if flags.seeds else []
    for size in flags.speed:
        encoder = random_encoder(size, flags.encoder, flags.output / 'encoders' / size)
        encoders.append((encoder, flags.speed_steps, flags.turns))
    comparisons = [Comparison(name, data[name], *encoder, flags) for encoder in encoders for name in data]
    for comparison in comparisons:
        for run in range(comparison.runs):
            for side in SIDES:
                comparison.train(side, run)
            if not comparison.steps:
                comparison.measure(run)
            (flags.output / 'embedding-training.md').write_text(page(comparisons))
        if not comparison.steps:
            comparison.measure(-1)
    print(page(comparisons))


if __name__ == '__main__':
    main()
