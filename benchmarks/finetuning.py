"""Compares fine-tuning with the `transformers` Trainer with dynamic padding: examples per second and task metrics.

    python -m benchmarks.finetuning --encoder=models/mine --output=runs/finetuning --seeds=5 \
        --task=mrpc:glue/MRPC --task=cola:glue/CoLA --task=rte:glue/RTE --task=conll:conll2003 --task=squad:squad

Both `finetune` and the Trainer (finetuning_trainer.py) start from the same encoder (a Hugging Face directory) and use
the same token ids, batch size, learning rate, schedule, optimizer settings, dropout and number of steps. They alternate
seed by seed, each run in its own process. This project's scorers score both. Examples per second are the median over
intervals of 10 training steps, without compilation, evaluation and saving; minutes cover the whole process.

Each directory holds the files that configs/finetune/glue.py, ner.py or squad.py names. `conll-1500` is CoNLL with 1,500
of its sentences. Results are stored in OUTPUT/results, and finished runs are not repeated; OUTPUT/table.md is the
summary.
"""

import argparse
import dataclasses
import json
import os
import runpy
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

_ROOT = Path(__file__).resolve().parent.parent
_LOG_EVERY = 10  # steps per interval
_SIDES = ('bert_jax', 'Trainer')
TASKS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> (config file and variant, fields)
    'mrpc': ('glue.py:mrpc', {'train.epochs': 3.0}),
    'rte': ('glue.py:rte', {'train.epochs': 3.0}),
    'cola': ('glue.py:cola', {'train.epochs': 3.0}),
    'sst2': ('glue.py:sst2', {'train.epochs': 1.0}),
    'stsb': ('glue.py:stsb', {'train.epochs': 3.0}),
    'conll': ('ner.py', {'train.epochs': 3.0}),
    'conll-1500': ('ner.py', {'train.epochs': 3.0, 'train.max_examples': 1500}),
    'squad': ('squad.py', {'train.epochs': 2.0, 'task.max_question_tokens': 32, 'task.stride': 32}),
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A task with its settings and results."""

    name: str
    directory: Path
    flags: argparse.Namespace

    @property
    def _fields(self) -> dict[str, Any]:
        """Config fields by name, used by both sides."""
        _, fields = TASKS[self.name]
        flags = self.flags
        fields = fields | {
            'init': str(flags.encoder),
            'task.directory': str(self.directory),
            'task.sequence_length': flags.length,
            'optimizer.peak_learning_rate': flags.learning_rate,
            'train.global_batch_size': flags.batch,
            'train.log_every': _LOG_EVERY,
            'train.checkpoint_every': 1_000_000,  # the Trainer saves nothing
            'model.dtype': flags.dtype,
            'platform': 'cpu',
        }
        return fields | ({'train.epochs': flags.epochs} if flags.epochs else {})

    def _result(self, side: str, seed: int) -> Path:
        return self.flags.output / 'results' / f'{self.name}-{side}-{seed}.json'

    def results(self, side: str) -> list[dict[str, Any]]:
        """Returns the results of the finished seeds."""
        paths = [self._result(side, seed) for seed in range(self.flags.seeds)]
        return [json.loads(path.read_text()) for path in paths if path.exists()]

    def run(self, side: str, seed: int) -> None:
        """Runs one seed unless it is finished; writes the result atomically."""
        path = self._result(side, seed)
        if path.exists():
            return
        print(f'--- {self.name}, {side}, seed {seed}', flush=True)
        started = time.time()
        result = (self._bert_jax if side == 'bert_jax' else self._trainer)(seed)
        path.with_suffix('.partial').write_text(
            json.dumps(result | {'minutes': (time.time() - started) / 60}, indent=1)
        )
        path.with_suffix('.partial').rename(path)

    def _bert_jax(self, seed: int) -> dict[str, Any]:
        config, _ = TASKS[self.name]
        workdir = self.flags.output / 'runs' / f'{self.name}-{seed}'
        fields = self._fields | {'train.seed': seed}
        overrides = [f'--config.{name}={value}' for name, value in fields.items()]
        config = f'--config={_ROOT}/configs/finetune/{config}'
        output = _run('bert_jax', 'finetune', config, *overrides, f'--workdir={workdir}', '--json')
        lines = [json.loads(line) for line in (workdir / f'seed-{seed}' / 'metrics.jsonl').read_text().splitlines()]
        full_intervals = (line for line in lines if line['step'] % _LOG_EVERY == 0)
        speeds = [line['tokens_per_second'] for line in full_intervals if 'tokens_per_second' in line]
        _, data = self._open()
        tokens = len(data.train.ids) / len(data.train)
        return {
            'metric': json.loads(output)['metrics'][data.metrics[0]],
            'examples_per_second': statistics.median(speeds) / tokens,
        }

    def _trainer(self, seed: int) -> dict[str, Any]:
        config, data = self._open()
        directory = self.flags.output / 'runs' / f'{self.name}-trainer'
        directory.mkdir(parents=True, exist_ok=True)
        [(_, split), *_] = data.validation.items()
        arrays = {
            f'{part}_{name}': getattr(rows, name)
            for part, rows in (('train', data.train), ('dev', split.rows))
            for name in ('ids', 'starts', 'second_starts', 'labels')
        }
        np.savez(directory / 'examples.npz', **arrays)
        from bert_jax.config.finetuning import num_steps

        optimizer = config.optimizer
        settings = {
            'encoder': str(self.flags.encoder),
            'kind': config.task.kind,
            'num_outputs': data.num_outputs,
            'steps': num_steps(config.train, len(data.train)),
            'batch': config.train.global_batch_size,
            'learning_rate': optimizer.peak_learning_rate,
            'warmup_fraction': optimizer.warmup_fraction,
            'weight_decay': optimizer.weight_decay,
            'betas': (optimizer.b1, optimizer.b2),
            'eps': optimizer.eps,
            'clip_norm': optimizer.clip_norm,
            'model': {
                'hidden_dropout_prob': config.model.dropout_rate,
                'attention_probs_dropout_prob': config.model.attention_dropout_rate,
                'initializer_range': config.model.initializer_range,
            },
            'bfloat16': self.flags.dtype == 'bfloat16',
            'log_every': _LOG_EVERY,
            'seed': seed,
        }
        (directory / 'settings.json').write_text(json.dumps(settings))
        _run('benchmarks.finetuning_trainer', str(directory))
        metrics = split.metrics(data.metrics[:1], split.predictions(np.load(directory / 'outputs.npy')))
        speed = json.loads((directory / 'run.json').read_text())
        return {'metric': metrics[data.metrics[0]], 'examples_per_second': speed['examples_per_second']}

    def _open(self) -> tuple[Any, Any]:
        """Returns (resolved config, TaskData) of the task."""
        from bert_jax.finetune.start import prepare_start
        from bert_jax.finetune.tasks import read_task

        start = prepare_start(self.config(), [])
        return start.config, read_task(start.config.task, start.config.train, start.tokenizer)

    def config(self) -> Any:
        """Returns the resolved config, without the sizes of the encoder."""
        from bert_jax.config.finetuning import resolve

        file, _, variant = TASKS[self.name][0].partition(':')
        get_config = runpy.run_path(str(_ROOT / 'configs' / 'finetune' / file))['get_config']
        given = get_config(*filter(None, [variant]))
        given.update_from_flattened_dict(self._fields)
        return resolve(given)


def _run(module: str, *arguments: str) -> str:
    """Runs a module on the CPU and returns its standard output; exits if it fails."""
    print('$ python -m', module, *arguments, flush=True)
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'TOKENIZERS_PARALLELISM': 'true'}
    done = subprocess.run(
        [sys.executable, '-m', module, *arguments], cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f'{module} failed (exit code {done.returncode}); rerun the same command to continue with this run')
    return done.stdout


def table(comparisons: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Formats {task: {side: results of its seeds}} as a Markdown table, one row per task that both sides have run."""
    lines = [
        '| task | examples/s | Trainer | ratio | metric, median ± deviation | Trainer | seeds | minutes | Trainer |',
        '|---|--:|--:|--:|--:|--:|--:|--:|--:|',
    ]
    for name, sides in comparisons.items():
        ours, theirs = (sides[side] for side in _SIDES)
        if not ours or not theirs:
            continue
        speeds, minutes = (
            [statistics.median(result[key] for result in results) for results in (ours, theirs)]
            for key in ('examples_per_second', 'minutes')
        )
        metrics = [_median_and_deviation([result['metric'] for result in results]) for results in (ours, theirs)]
        seeds = f'{len(ours)}' if len(ours) == len(theirs) else f'{len(ours)}, {len(theirs)}'
        cells = [name, *(f'{speed:.1f}' for speed in speeds), f'{speeds[0] / speeds[1]:.2f}', *metrics, seeds]
        lines.append('| ' + ' | '.join([*cells, *(f'{each:.1f}' for each in minutes)]) + ' |')
    return '\n'.join(lines)


def _median_and_deviation(values: list[float]) -> str:
    deviation = f' ± {100 * statistics.stdev(values):.1f}' if len(values) > 1 else ''
    return f'{100 * statistics.median(values):.1f}{deviation}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--encoder', type=Path, required=True, help='a Hugging Face BERT directory')
    add('--task', action='append', required=True, metavar='NAME:DIRECTORY', help=', '.join(TASKS))
    add('--output', type=Path, required=True, help='directory for runs, results and table.md')
    add('--seeds', type=int, default=5)
    add('--length', type=int, default=128, help='maximum positions; longer texts are cut or split')
    add('--batch', type=int, default=32)
    add('--learning_rate', type=float, default=1e-4)
    add('--epochs', type=float, default=0.0, help='epochs of every task; 0: the defaults in this file')
    add('--dtype', choices=('float32', 'bfloat16'), default='float32', help='the Trainer uses autocast for bfloat16')
    flags = parser.parse_args()
    flags.output, flags.encoder = flags.output.resolve(), flags.encoder.resolve()
    (flags.output / 'results').mkdir(parents=True, exist_ok=True)
    comparisons = []
    for given in flags.task:
        name, _, directory = given.partition(':')
        if name not in TASKS or not Path(directory).is_dir():
            parser.error(f'--task={given}: not NAME:DIRECTORY with NAME one of {", ".join(TASKS)}')
        comparisons.append(Comparison(name, Path(directory).resolve(), flags))
    for comparison in comparisons:
        for seed in range(flags.seeds):
            for side in _SIDES:
                comparison.run(side, seed)
            markdown = table({each.name: {side: each.results(side) for side in _SIDES} for each in comparisons})
            (flags.output / 'table.md').write_text(markdown + '\n')
    print(markdown)


if __name__ == '__main__':
    main()
