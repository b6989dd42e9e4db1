"""Compares fine-tuning with the `transformers` Trainer with dynamic padding: task metrics and examples per second.

    python -m benchmarks.finetuning --encoder=models/mine --output=runs/finetuning --seeds=5 --speed=mini \
        --task=mrpc:glue/MRPC --task=cola:glue/CoLA --task=rte:glue/RTE --task=conll:conll2003 --task=squad:squad

Both `finetune` and the Trainer (finetuning_trainer.py) start from the same encoder (a Hugging Face directory) and use
the same token ids, batch size, learning rate, schedule, optimizer settings, dropout and number of steps. They alternate
seed by seed, each run in its own process. This project's scorers score both.

Quality is measured with `--encoder`, over `--seeds` runs of the task's epochs. Speed is that of the same runs and of
`--speed_runs` short runs with each size in `--speed`, whose encoder has random weights and the dropout of
configs/bert.py. Examples per second are the median over intervals of 10 training steps, without compilation, evaluation
and saving; minutes cover the whole process.

Each directory holds the files that configs/finetune/glue.py, ner.py or squad.py names. `conll-1500` is CoNLL with 1,500
of its sentences. Results are stored in OUTPUT/results, and finished runs are not repeated; OUTPUT/fine-tuning.md has
the tables and the settings.
"""

import argparse
import dataclasses
import json
import runpy
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import finetuning_tables as tables
from benchmarks.parts import Parts, run_bert_jax, run_module

_ROOT = Path(__file__).resolve().parent.parent
LOG_EVERY = 10  # steps per interval
SIDES = ('bert_jax', 'Trainer')
TASKS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> (config file and variant, fields)
    'mrpc': ('glue.py:mrpc', {'train.epochs': 3.0, 'task.metrics': ('accuracy', 'f1')}),
    'rte': ('glue.py:rte', {'train.epochs': 3.0}),
    'cola': ('glue.py:cola', {'train.epochs': 3.0, 'task.metrics': ('matthews', 'accuracy')}),
    'sst2': ('glue.py:sst2', {'train.epochs': 1.0}),
    'stsb': ('glue.py:stsb', {'train.epochs': 3.0, 'task.metrics': ('pearson',)}),
    'conll': ('ner.py', {'train.epochs': 3.0, 'task.metrics': ('entity_f1',)}),
    'conll-1500': ('ner.py', {'train.epochs': 3.0, 'train.max_examples': 1500, 'task.metrics': ('entity_f1',)}),
    'squad': ('squad.py', {'train.epochs': 2.0, 'task.max_question_tokens': 32, 'task.stride': 32}),
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A task with its settings and results.

    Attributes:
      directory: of the task's files.
      encoder: a Hugging Face directory; its name is part of the names of results.
      steps: length of a run; None for the task's epochs.
      seeds: number of runs of each side.
    """

    name: str
    directory: Path
    encoder: Path
    steps: int | None
    seeds: int
    flags: argparse.Namespace

    @property
    def _fields(self) -> dict[str, Any]:
        """Config fields by name, used by both sides."""
        _, fields = TASKS[self.name]
        flags = self.flags
        fields = fields | {
            'init': str(self.encoder),
            'task.directory': str(self.directory),
            'task.sequence_length': flags.length,
            'optimizer.peak_learning_rate': flags.learning_rate,
            'train.global_batch_size': flags.batch,
            'train.log_every': LOG_EVERY,
            'train.checkpoint_every': 1_000_000,  # the Trainer saves nothing
            'model.dtype': flags.dtype,
            'platform': 'cpu',
        }
        return fields | ({'train.epochs': flags.epochs} if flags.epochs else {})

    @property
    def _parts(self) -> Parts:
        return Parts(self.flags.output)

    def _part(self, side: str, seed: int) -> str:
        return f'{self.encoder.name}-{self.name}-{side}-{seed}'

    def results(self, side: str) -> list[dict[str, Any]]:
        """Returns the results of the finished seeds."""
        found = (self._parts.result(self._part(side, seed)) for seed in range(self.seeds))
        return [result for result in found if result is not None]

    def run(self, side: str, seed: int) -> None:
        """Runs one seed unless it is finished; writes the result atomically."""
        part = self._part(side, seed)
        if self._parts.result(part) is not None:
            return
        print(f'--- {self.encoder.name}, {self.name}, {side}, seed {seed}', flush=True)
        config, data = self._open()
        if self.steps:
            epochs = self.steps * self.flags.batch / len(data.train)
            config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs))
        run = self._bert_jax if side == 'bert_jax' else self._trainer
        started = time.time()
        result = run(config, data, seed, self.flags.output / 'runs' / part)
        result['minutes'] = (time.time() - started) / 60
        self._parts.write(part, result | {'constant': _constant_metrics(data)})

    def _bert_jax(self, config: Any, data: Any, seed: int, workdir: Path) -> dict[str, Any]:
        file, _ = TASKS[self.name]
        fields = self._fields | {'train.seed': seed, 'train.epochs': config.train.epochs}
        overrides = [f'--config.{name}={value}' for name, value in fields.items()]
        file = f'--config={_ROOT}/configs/finetune/{file}'
        output = run_bert_jax('finetune', file, *overrides, f'--workdir={workdir}')
        lines = [json.loads(line) for line in (workdir / f'seed-{seed}' / 'metrics.jsonl').read_text().splitlines()]
        full_intervals = (line for line in lines if line['step'] % LOG_EVERY == 0)
        speeds = [line['tokens_per_second'] for line in full_intervals if 'tokens_per_second' in line]
        tokens = len(data.train.ids) / len(data.train)
        return {
            'metrics': output['metrics'],
            'examples_per_second': statistics.median(speeds) / tokens,
        }

    def _trainer(self, config: Any, data: Any, seed: int, directory: Path) -> dict[str, Any]:
        directory.mkdir(parents=True, exist_ok=True)
        [(_, split), *_] = data.validation.items()
        arrays = {
            f'{part}_{name}': getattr(rows, name)
            for part, rows in (('train', data.train), ('dev', split.rows))
            for name in ('ids', 'starts', 'second_starts', 'labels')
        }
        np.savez(directory / 'examples.npz', **arrays)
        (directory / 'settings.json').write_text(json.dumps(self._trainer_settings(config, data, seed)))
        run_module('benchmarks.finetuning_trainer', str(directory))
        metrics = split.metrics(data.metrics, split.predictions(np.load(directory / 'outputs.npy')))
        speed = json.loads((directory / 'run.json').read_text())
        return {'metrics': metrics, 'examples_per_second': speed['examples_per_second']}

    def _trainer_settings(self, config: Any, data: Any, seed: int) -> dict[str, Any]:
        return trainer_settings(config, len(data.train), seed, self.flags.dtype) | {
            'encoder': str(self.encoder),
            'kind': config.task.kind,
            'num_outputs': data.num_outputs,
            'model': {
                'hidden_dropout_prob': config.model.dropout_rate,
                'attention_probs_dropout_prob': config.model.attention_dropout_rate,
                'initializer_range': config.model.initializer_range,
            },
        }

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


def trainer_settings(config: Any, num_examples: int, seed: int, dtype: str) -> dict[str, Any]:
    """Returns what a trainer needs to train like a fine-tune with a resolved config (`finetuning_trainer`)."""
    from bert_jax.config.finetuning import num_steps

    optimizer = config.optimizer
    return {
        'steps': num_steps(config.train, num_examples),
        'batch': config.train.global_batch_size,
        'learning_rate': optimizer.peak_learning_rate,
        'warmup_fraction': optimizer.warmup_fraction,
        'weight_decay': optimizer.weight_decay,
        'betas': (optimizer.b1, optimizer.b2),
        'eps': optimizer.eps,
        'clip_norm': optimizer.clip_norm,
        'bfloat16': dtype == 'bfloat16',
        'log_every': LOG_EVERY,
        'seed': seed,
    }


def _constant_metrics(data: Any) -> dict[str, float]:
    """Returns the metrics of predicting the most frequent class; {} for other kinds of task."""
    if data.train.has_tags or data.num_outputs < 2 or data.train.labels.ndim > 1:
        return {}
    [(_, split), *_] = data.validation.items()
    most_frequent = np.bincount(data.train.labels).argmax()
    outputs = np.tile(np.eye(data.num_outputs, dtype=np.float32)[most_frequent], (len(split.rows), 1))
    return split.metrics(data.metrics, split.predictions(outputs))


def random_encoder(size: str, tokenizer_from: Path, directory: Path) -> Path:
    """Writes an encoder of a size of configs/bert.py with random weights; returns its Hugging Face directory.

    Args:
      tokenizer_from: a Hugging Face directory whose tokenizer it shares.
    """
    if directory.exists():
        return directory
    from flax import nnx

    from bert_jax.config import bert, resolve
    from bert_jax.model.bert import BertForPreTraining
    from bert_jax.pretrained import hugging_face
    from bert_jax.text.tokenizer import load_tokenizer

    tokenizer, model = load_tokenizer(tokenizer_from), resolve(bert(size)).model
    params = nnx.state(BertForPreTraining(model, tokenizer.vocab_size, nnx.Rngs(0)), nnx.Param)
    partial = directory.with_suffix('.partial')
    partial.mkdir(parents=True, exist_ok=True)
    hugging_face.write_model(partial, params, model, tokenizer)
    for name in ('vocab.txt', 'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json'):
        if (tokenizer_from / name).exists():
            (partial / name).write_bytes((tokenizer_from / name).read_bytes())
    return partial.rename(directory)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--encoder', type=Path, required=True, help='a Hugging Face BERT directory')
    add('--task', action='append', required=True, metavar='NAME:DIRECTORY', help=', '.join(TASKS))
    add('--output', type=Path, required=True, help='directory for runs, results and fine-tuning.md')
    add('--seeds', type=int, default=5)
    add('--length', type=int, default=128, help='maximum positions; longer texts are cut or split')
    add('--batch', type=int, default=32)
    add('--learning_rate', type=float, default=1e-4)
    add('--epochs', type=float, default=0.0, help='epochs of every task; 0: the defaults in this file')
    add('--dtype', choices=('float32', 'bfloat16'), default='float32', help='the Trainer uses autocast for bfloat16')
    add('--speed', action='append', default=[], metavar='SIZE', help='a size of configs/bert.py to measure speed with')
    add('--speed_steps', type=int, default=60)
    add('--speed_runs', type=int, default=3)
    flags = parser.parse_args()
    flags.output, flags.encoder = flags.output.resolve(), flags.encoder.resolve()
    for given in flags.task:
        name, _, directory = given.partition(':')
        if name not in TASKS or not Path(directory).is_dir():
            parser.error(f'--task={given}: not NAME:DIRECTORY with NAME one of {", ".join(TASKS)}')
    return flags


def main() -> None:
    flags = _flags()
    Parts(flags.output).keep_settings(flags, 'encoder', 'task', 'seeds', 'speed', 'speed_runs')
    tasks = [(name, Path(directory).resolve()) for name, _, directory in (each.partition(':') for each in flags.task)]
    lengths: list[tuple[Path, int | None, int]] = [(flags.encoder, None, flags.seeds)] if flags.seeds else []
    for size in flags.speed:
        encoder = random_encoder(size, flags.encoder, flags.output / 'encoders' / size)
        lengths.append((encoder, flags.speed_steps, flags.speed_runs))
    comparisons = [
        Comparison(name, directory, encoder, steps, seeds, flags)
        for encoder, steps, seeds in lengths
        for name, directory in tasks
    ]
    page = ''
    for comparison in comparisons:
        for seed in range(comparison.seeds):
            for side in SIDES:
                comparison.run(side, seed)
            page = tables.page(comparisons)
            (flags.output / 'fine-tuning.md').write_text(page)
    print(page)


if __name__ == '__main__':
    main()
