"""Measures what pretraining gains in a fixed time, compared with the Hugging Face Trainer and no pretraining.

    python -m benchmarks.pretraining_pays --text=reviews.jsonl.gz --sst2=glue/SST-2 --output=runs/pays --minutes=20 \
        [--wikiann=DIR] [--xquad=FILE.json] [--only=PART] …

A small BERT is pretrained for `--minutes` on the field `text` of the records (film reviews), once by bert_jax (`train`
with the recipe of configs/demo.py) and once by the Trainer of `transformers` (benchmarks/hugging_face_trainer.py). Both
use the same text, model sizes, vocabulary and tokens per step, each with its own recipe. The minutes include starting
the process, compiling, training and saving. They exclude preparing the text and measuring how many steps fit, which
makes the learning rate reach 0 at the end. Then `finetune` learns SST-2 from 1,000 sentences and from all, starting
from each model and from random weights, with several seeds. --wikiann and --xquad add tagging and question answering,
with one seed.

Each part writes its result to OUTPUT/results and is skipped when the command is rerun. OUTPUT/table.md and
OUTPUT/sst2.svg show the results so far.
"""

import argparse
import dataclasses
import datetime
import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import pretraining_report as report
from benchmarks.parts import Parts, fitting_steps, run_bert_jax, run_module
from benchmarks.pretraining_data import split_paragraphs, subset, write_reviews

_ROOT = Path(__file__).resolve().parent.parent
_CALIBRATION_STEPS = 60
_ASSUMED_FLOPS = 60e9  # FLOP/s, for estimates before the speed was measured


@dataclasses.dataclass(frozen=True)
class Benchmark(Parts):
    """The parts of the benchmark, with the sizes and recipes of the command line."""

    flags: argparse.Namespace

    def _sizes(self) -> dict[str, int]:
        layers, hidden = self.flags.layers, self.flags.hidden
        return {
            'num_layers': layers,
            'hidden_size': hidden,
            'num_heads': max(1, hidden // 64),
            'intermediate_size': 4 * hidden,
            'max_positions': self.flags.length,
        }

    def _model_flags(self) -> list[str]:
        return [f'--config.model.{name}={value}' for name, value in self._sizes().items()]

    def _pretraining(self, *more: str) -> list[str]:
        """Returns the flags of bert_jax's run."""
        text = self.output / 'text'
        return [
            f'--config={_ROOT}/configs/demo.py',
            f'--config.data.source=jsonl:{text}/train.jsonl',
            f'--config.data.validation_source=jsonl:{text}/held_out.jsonl',
            f'--config.data.corpus={self.output}/corpus',
            f'--config.data.sequence_length={self.flags.length // 2}',
            f'--config.tokenizer.vocab_size={self.flags.vocab_size}',
            f'--config.train.global_batch_size={2 * self.flags.batch}',
            f'--config.optimizer.peak_learning_rate={self.flags.learning_rate}',
            f'--config.optimizer.weight_decay={self.flags.weight_decay}',
            f'--config.model.dtype={self.flags.dtype}',
            *self._model_flags(),
            *more,
        ]

    # --- Part: the corpus. ---

    def corpus(self) -> dict[str, Any]:
        """Writes the text files and prepares the corpus."""
        counts = write_reviews(self.flags.text, self.output / 'text', self.flags.documents)
        summary = run_bert_jax('prepare', *self._pretraining())
        return counts | {name: summary[name] for name in ('tokens', 'seconds')}

    # --- Parts: pretraining. ---

    def bert_jax(self) -> dict[str, Any]:
        """Measures the speed of bert_jax, pretrains for the given time, and evaluates."""
        workdir, trial = self.output / 'bert_jax', self.output / 'bert_jax-trial'
        for leftover in (workdir, trial):
            shutil.rmtree(leftover, ignore_errors=True)
        cold = {'JAX_ENABLE_COMPILATION_CACHE': 'false'}  # the time includes compiling
        measured = run_bert_jax('bench', *self._pretraining(), f'--seconds={min(20.0, 10 * self.flags.minutes)}')
        tokens_per_step = measured['tokens_per_second'] * measured['step_seconds']

        steps, started = _CALIBRATION_STEPS, time.time()
        run_bert_jax('train', *self._pretraining(*_schedule(steps), '--config.train.log_every=10'),
                       f'--workdir={trial}', **cold)  # fmt: skip
        seconds = time.time() - started
        logged = [json.loads(line) for line in (trial / 'metrics.jsonl').read_text().splitlines()]
        speeds = [line['tokens_per_second'] for line in logged if 'tokens_per_second' in line]
        step_seconds = tokens_per_step / statistics.median(
            speeds[1:-1]
        )  # the first includes compiling, the last saving
        steps = fitting_steps(self.flags.minutes * 60, seconds - steps * step_seconds, step_seconds)

        started = time.time()
        stop_at = datetime.datetime.fromtimestamp(started + self.flags.minutes * 60).isoformat()
        schedule = [*_schedule(steps), f'--config.train.stop_at={stop_at}', f'--workdir={workdir}']
        outcome = run_bert_jax('train', *self._pretraining(*schedule), may_stop=True, **cold)
        used = time.time() - started
        return {
            'steps': outcome['step'],
            'planned_steps': steps,
            'tokens': round(outcome['step'] * tokens_per_step),
            'minutes': used / 60,
            'train_minutes': outcome['step'] * step_seconds / 60,
            'flops': measured['flops_per_step'] / step_seconds,
        } | self._evaluate(workdir)

    def hugging_face(self) -> dict[str, Any]:
        """Does the same with the Trainer."""
        directory, trial, imported = (self.output / f'hugging_face{end}' for end in ('', '-trial', '-imported'))
        for leftover in (directory, trial, imported):
            shutil.rmtree(leftover, ignore_errors=True)
        started = time.time()
        self._trainer(trial, _CALIBRATION_STEPS)
        seconds, measured = time.time() - started, json.loads((trial / 'run.json').read_text())
        step_seconds = measured['seconds_per_step']
        overhead = seconds - measured['tokenize_seconds'] - _CALIBRATION_STEPS * step_seconds
        steps = fitting_steps(self.flags.minutes * 60, overhead, step_seconds)

        started = time.time()
        self._trainer(directory, steps, f'--stop_at={started + self.flags.minutes * 60}')
        used = time.time() - started
        run_bert_jax('import', *self._pretraining(), f'--from={directory}', f'--workdir={imported}')
        found = json.loads((directory / 'run.json').read_text())
        return (
            {name: found[name] for name in ('steps', 'planned_steps', 'tokens')}
            | {
                'minutes': used / 60,
                'train_minutes': found['train_seconds'] / 60,
            }
            | self._evaluate(imported)
        )

    def _evaluate(self, workdir: Path) -> dict[str, float]:
        """Evaluates masked words of the held-out reviews, in the same windows for both models."""
        found = run_bert_jax('evaluate', f'--workdir={workdir}')
        return {name: found[name] for name in ('masked_word_nats_per_character', 'unigram_nats_per_character')}

    def _trainer(self, directory: Path, steps: int, *more: str) -> None:
        sizes = self._sizes()
        vocabulary = (self.output / 'corpus/tokenizer/vocab.txt').read_text(encoding='utf-8').count('\n')
        fields = {
            'vocab_size': vocabulary,
            'hidden_size': sizes['hidden_size'],
            'num_hidden_layers': sizes['num_layers'],
            'num_attention_heads': sizes['num_heads'],
            'intermediate_size': sizes['intermediate_size'],
            'max_position_embeddings': sizes['max_positions'],
        }
        run_module(
            'benchmarks.hugging_face_trainer',
            f'--text={self.output}/text/train.jsonl',
            f'--tokenizer={self.output}/corpus/tokenizer',
            f'--chunks={self.output}/text/chunks-{self.flags.length}.bin',
            f'--model={json.dumps(fields)}',
            f'--output={directory}',
            f'--steps={steps}',
            f'--length={self.flags.length}',
            f'--batch={self.flags.batch}',
            f'--learning_rate={self.flags.trainer_learning_rate}',
            *more,
        )

    # --- Parts: fine-tuning. ---

    def _finetune(
        self, name: str, config: str, start: str, rows: int, fields: dict[str, Any], seeds: int = 1
    ) -> dict[str, Any]:
        initial = 'scratch' if start == 'scratch' else self.output / start
        flags = [f'--config={_ROOT}/configs/finetune/{config}', f'--config.init={initial}']
        rate = self.flags.finetune_learning_rate
        if start == 'scratch':
            flags += [f'--config.tokenizer.path={self.output}/corpus/tokenizer', *self._model_flags()]
            rate = self.flags.scratch_learning_rate
        else:
            flags.append(f'--config.reinitialized_layers={self.flags.reinitialized_layers}')
        flags.append(f'--config.model.scan_layers={self.flags.layers > 4}')
        fields = {'train.global_batch_size': self.flags.finetune_batch, 'optimizer.peak_learning_rate': rate} | fields
        flags += [f'--config.{field}={value}' for field, value in fields.items()]
        seconds = seeds * self._estimate(rows * fields['train.epochs'] * fields['task.sequence_length'])
        print(f'{name}: about {seconds / 60:.0f} minutes', flush=True)
        started = time.time()
        found = run_bert_jax('finetune', *flags, f'--workdir={self.output}/{name}', f'--seeds={seeds}')
        return {'seeds': [seed['metrics'] for seed in found['seeds']], 'minutes': (time.time() - started) / 60}

    def _estimate(self, num_tokens: float) -> float:
        """Returns the seconds to train on this number of tokens at the speed of pretraining."""
        flops = (self.result('bert_jax') or {}).get('flops', _ASSUMED_FLOPS)
        return 6 * 12 * self.flags.layers * self.flags.hidden**2 * num_tokens / flops

    def sst2(self, start: str, size: str) -> dict[str, Any]:
        """Fine-tunes on 1,000 sentences of SST-2, or on all."""
        lines = (self.flags.sst2 / 'train.tsv').read_text(encoding='utf-8').splitlines(keepends=True)
        few = self.output / 'sst2-1000.tsv'
        few.write_text(''.join(subset(lines, min(1000, len(lines) - 1))), encoding='utf-8')
        most = min(self.flags.max_examples or len(lines) - 1, len(lines) - 1)
        fields = {
            'task.directory': self.flags.sst2.resolve(),
            'task.train': f'tsv:{few}' if size == '1000' else 'tsv:train.tsv',
            'task.sequence_length': min(self.flags.sst2_length, self.flags.length),
            'train.epochs': self.flags.few_epochs if size == '1000' else self.flags.epochs,
            'train.max_examples': self.flags.max_examples,
        }
        rows = min(most, 1000) if size == '1000' else most
        found = self._finetune(f'sst2-{size}-{start}', 'glue.py:sst2', start, rows, fields, self.flags.seeds)
        return found | {'examples': rows}

    def tagging(self, start: str) -> dict[str, Any]:
        """Fine-tunes on the named entities of WikiANN; long sentences are split, so every word is tagged."""
        fields = {
            'task.directory': self.flags.wikiann.resolve(),
            'task.train': 'conll:train.gz',
            'task.validation': 'conll:dev.gz',
            'task.token_prefix': 'en:',
            'task.sequence_length': min(32, self.flags.length),
            'train.epochs': self.flags.tagging_epochs,
            'train.max_examples': self.flags.max_examples,
        }
        return self._finetune(f'tagging-{start}', 'ner.py', start, self.flags.max_examples or 20_000, fields)

    def spans(self, start: str) -> dict[str, Any]:
        """Fine-tunes on the answers of XQuAD, in windows of the pretraining length."""
        squad = json.loads(self.flags.xquad.read_text(encoding='utf-8'))
        for name, split in zip(('train', 'dev'), split_paragraphs(squad), strict=True):
            (self.output / f'xquad-{name}.json').write_text(json.dumps(split), encoding='utf-8')
        length = self.flags.length
        fields = {
            'task.directory': self.output,
            'task.train': 'squad:xquad-train.json',
            'task.validation': 'squad:xquad-dev.json',
            'task.sequence_length': length,
            'task.max_question_tokens': length // 4,
            'task.stride': length // 4,
            'train.epochs': self.flags.spans_epochs,
            'train.max_examples': self.flags.max_examples,
        }
        return self._finetune(f'spans-{start}', 'squad.py', start, self.flags.max_examples or 5_000, fields)

    def parts(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Returns all parts by name, in their order."""
        found = {'corpus': self.corpus, 'bert_jax': self.bert_jax, 'hugging_face': self.hugging_face}
        for size in report.SIZES:
            for start in report.STARTS:
                found[f'sst2-{size}-{start}'] = lambda start=start, size=size: self.sst2(start, size)
        for task in [name for name in ('tagging', 'spans') if getattr(self.flags, report.TASK_FLAGS[name])]:
            for start in ('scratch', 'bert_jax'):
                found[f'{task}-{start}'] = lambda start=start, task=task: getattr(self, task)(start)
        return found


def _schedule(steps: int) -> tuple[str, ...]:
    """Returns the flags of a run of `steps` steps with little evaluation."""
    return (
        f'--config.train.steps={steps}',
        f'--config.optimizer.warmup_steps={min(100, steps // 10)}',
        f'--config.train.checkpoint_every={steps}',
        '--config.train.evaluate_every=0',
        '--config.train.evaluate_rows=64',
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--text', type=Path, required=True, help='reviews: JSON lines with a field `text`, or the same as .gz')
    add('--sst2', type=Path, required=True, help='directory with train.tsv and dev.tsv of GLUE')
    add('--wikiann', type=Path, help='directory with train.gz and dev.gz (lines en:WORD<TAB>TAG)')
    add('--xquad', type=Path, help='JSON file in SQuAD format')
    add('--output', type=Path, required=True)
    add('--only', help='run only this part (parts have the names of the files in OUTPUT/results)')
    add('--minutes', type=float, default=20.0, help='time for each pretraining')
    add('--layers', type=int, default=4)
    add('--hidden', type=int, default=128)
    add(
        '--length',
        type=int,
        default=128,
        help='tokens per row of the Trainer (bert_jax: half), and at most per row of tasks',
    )
    add('--vocab_size', type=int, default=8192)
    add('--batch', type=int, default=16, help='rows per step of the Trainer (bert_jax: twice as many)')
    add('--learning_rate', type=float, default=4e-3, help='of bert_jax (Muon)')
    add('--weight_decay', type=float, default=0.1, help='of bert_jax')
    add('--dtype', default='bfloat16', help='of bert_jax; the Trainer is not faster in bfloat16')
    add('--trainer_learning_rate', type=float, default=1e-3, help='of the Trainer (AdamW)')
    add('--finetune_learning_rate', type=float, default=1e-3)
    add('--scratch_learning_rate', type=float, default=1e-3)
    add('--reinitialized_layers', type=int, default=1, help='of pretrained models, before fine-tuning')
    add('--finetune_batch', type=int, default=64)
    add('--sst2_length', type=int, default=40, help='positions per row; longer sentences are cut')
    add('--epochs', type=float, default=1.0, help='over all of SST-2')
    add('--few_epochs', type=float, default=10.0, help='over the 1,000 examples')
    add('--tagging_epochs', type=float, default=2.0)
    add('--spans_epochs', type=float, default=4.0)
    add('--seeds', type=int, default=3)
    add('--documents', type=int, default=0, help='number of reviews to use; 0 uses all')
    add('--max_examples', type=int, default=0, help='largest number of examples to fine-tune on; 0 uses all')
    return parser


def _check(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    """Exits if a file is missing, or if the output directory has results of other settings."""
    for path in (flags.text, flags.sst2 / 'train.tsv', flags.wikiann and flags.wikiann / 'train.gz', flags.xquad):
        if path and not path.exists():
            parser.error(f'{path} does not exist')
    given = {
        name: str(value) for name, value in vars(flags).items() if name not in ('output', 'only', 'wikiann', 'xquad')
    }
    settings = flags.output / 'settings.json'
    if settings.exists():
        recorded = json.loads(settings.read_text())
        differing = [f'--{name}={value}' for name, value in recorded.items() if given.get(name) != value]
        if differing:
            parser.error(f'{flags.output} has results for {" ".join(differing)}; use these flags or another --output')
    (flags.output / 'results').mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(given, indent=1))


def main() -> None:
    """Runs the unfinished parts, then writes the table and the plot."""
    parser = _parser()
    flags = parser.parse_args()
    flags.output, flags.text = flags.output.resolve(), flags.text.resolve()
    _check(parser, flags)
    benchmark = Benchmark(flags.output, flags)
    benchmark.keep_settings(flags, 'only', 'seeds')
    parts = benchmark.parts()
    if flags.only and flags.only not in parts:
        parser.error(f'--only={flags.only} is not a part; expected one of: {", ".join(parts)}')
    for index, (name, run) in enumerate(parts.items(), 1):
        if benchmark.result(name) is not None or (flags.only and name != flags.only):
            continue
        print(f'--- Part {index} of {len(parts)}: {name}', flush=True)
        benchmark.write(name, run())
    results = {name: found for name in parts if (found := benchmark.result(name)) is not None}
    (flags.output / 'table.md').write_text(report.table(results) + '\n', encoding='utf-8')
    report.draw(results, report.most_frequent(flags.sst2 / 'dev.tsv'), flags.output / 'sst2.svg')
    print(report.table(results), f'\nWrote {flags.output}/table.md and {flags.output}/sst2.svg')


if __name__ == '__main__':
    main()
