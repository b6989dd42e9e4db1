"""Does pretraining pay? On text of a domain, in a fixed time, next to no pretraining and to the Hugging Face Trainer.

    python -m benchmarks.pretraining_pays --text=reviews.jsonl.gz --sst2=glue/SST-2 --output=runs/pays --minutes=20 \
        [--wikiann=DIR] [--xquad=FILE.json] [--only=PART] …

A small BERT is pretrained on the field `text` of the records (film reviews) for `--minutes`, once by this project
(`train`, the recipe of configs/demo.py) and once by the Trainer of `transformers` (benchmarks/hugging_face_trainer.py):
the same text, sizes, vocabulary, length and batch, each with its own recipe. Inside the minutes: starting the process,
compiling, training, saving. Outside: preparing the text, and measuring first how many steps fit, so that each learning
rate is 0 at the end. Then `finetune` learns SST-2 from 1,000 of its sentences and from all, from each model and from
random weights, several seeds. With --wikiann and --xquad also tagging and answers, one seed.

Every part keeps its result in OUTPUT/results and is not run again; OUTPUT/table.md and sst2.svg show what there is.
"""

import argparse
import dataclasses
import datetime
import gzip
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import pretraining_pays_shown as shown

_ROOT = Path(__file__).resolve().parent.parent
_CALIBRATION_STEPS = 60
_SPARE = 0.05  # of the steps that fit by the calibration: the machine may be slower later
_UNMEASURED = 60e9  # FLOP/s, for an estimate before anything was measured
_HELD_OUT_EVERY = 50  # of the reviews, one is held out
_EVERY_DEV = 5  # of the paragraphs of XQuAD, one is for validation
_STOPPED = 75  # by the time limit; saved


# --- Texts and tasks as files. ---


def write_reviews(source: Path, directory: Path, limit: int) -> dict[str, int]:
    """Writes train.jsonl and held_out.jsonl: the reviews without their `<br />`, every fiftieth held out."""
    directory.mkdir(parents=True, exist_ok=True)
    counts = {'train': 0, 'held_out': 0}
    opened = gzip.open if source.suffix == '.gz' else open
    with (
        opened(source, 'rt', encoding='utf-8') as lines,
        open(directory / 'train.jsonl', 'w', encoding='utf-8') as train,
        open(directory / 'held_out.jsonl', 'w', encoding='utf-8') as held_out,
    ):
        for number, line in enumerate(lines):
            if limit and number >= limit:
                break
            text = json.loads(line)['text'].replace('<br />', '\n')
            is_held_out = number % _HELD_OUT_EVERY == 0
            print(json.dumps({'text': text}), file=held_out if is_held_out else train)
            counts['held_out' if is_held_out else 'train'] += 1
    return counts


def subset(lines: list[str], count: int, seed: int = 0) -> list[str]:
    """A GLUE file's header, and `count` of its examples: the same for the same seed, in the order of the file."""
    header, *examples = lines
    return [header, *(examples[number] for number in sorted(random.Random(seed).sample(range(len(examples)), count)))]


def split_paragraphs(squad: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(train, dev) of a file in the format of SQuAD: every fifth paragraph is in dev with all its questions."""
    paragraphs = [paragraph for article in squad['data'] for paragraph in article['paragraphs']]
    dev = paragraphs[::_EVERY_DEV]
    train = [paragraph for number, paragraph in enumerate(paragraphs) if number % _EVERY_DEV]
    return tuple({'version': '1.1', 'data': [{'title': '', 'paragraphs': part}]} for part in (train, dev))


# --- Commands. ---


@dataclasses.dataclass(frozen=True)
class Bench:
    """The parts, and what they share. Sizes and recipes are the command line's."""

    flags: argparse.Namespace

    @property
    def output(self) -> Path:
        """Where everything lies."""
        return self.flags.output

    def result(self, part: str) -> dict[str, Any] | None:
        """What a finished part came to."""
        path = self.output / 'results' / f'{part}.json'
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, part: str, result: dict[str, Any]) -> None:
        """Keeps a result; it appears whole."""
        path = self.output / 'results' / f'{part}.json'
        path.with_suffix('.partial').write_text(json.dumps(result, indent=1))
        path.with_suffix('.partial').rename(path)

    def _run(self, module: str, *arguments: str, may_stop: bool = False, **environment: str) -> str:
        """Runs a module and gives its standard output; ends the program where it fails."""
        command = [sys.executable, '-m', module, *arguments]
        print('$ python -m', module, *arguments, flush=True)
        there = os.environ | {'JAX_PLATFORMS': 'cpu', 'TOKENIZERS_PARALLELISM': 'true'} | environment
        captured = subprocess.PIPE if '--json' in arguments else None
        done = subprocess.run(command, env=there, cwd=_ROOT, stdout=captured, text=True)
        if done.returncode and not (may_stop and done.returncode == _STOPPED):
            sys.exit(f'{module} {arguments[0]} failed ({done.returncode}): the same command goes on from this part')
        return done.stdout or ''

    def _bert_jax(self, *arguments: str, **how: Any) -> dict[str, Any]:
        return json.loads(self._run('bert_jax', *arguments, '--json', **how))

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
        """The config of our run."""
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

    # --- Part: the text, its vocabulary, its ids. ---

    def corpus(self) -> dict[str, Any]:
        """Cleans the text and prepares it."""
        counts = write_reviews(self.flags.text, self.output / 'text', self.flags.documents)
        summary = self._bert_jax('prepare', *self._pretraining())
        return counts | {name: summary[name] for name in ('tokens', 'seconds')}

    # --- Parts: the two ways to spend the minutes. ---

    def bert_jax(self) -> dict[str, Any]:
        """Measures, pretrains for the minutes, evaluates."""
        workdir, trial = self.output / 'bert_jax', self.output / 'bert_jax-trial'
        for left_over in (workdir, trial):
            shutil.rmtree(left_over, ignore_errors=True)
        cold = {'JAX_ENABLE_COMPILATION_CACHE': 'false'}  # compiling is part of the minutes
        measured = self._bert_jax('bench', *self._pretraining(), f'--seconds={min(20.0, 10 * self.flags.minutes)}')
        tokens_per_step = measured['tokens_per_second'] * measured['step_seconds']

        steps, begun = _CALIBRATION_STEPS, time.time()
        self._bert_jax('train', *self._pretraining(*_schedule(steps), '--config.train.log_every=10'),
                       f'--workdir={trial}', **cold)  # fmt: skip
        seconds = time.time() - begun
        logged = [json.loads(line) for line in (trial / 'metrics.jsonl').read_text().splitlines()]
        speeds = [line['tokens_per_second'] for line in logged if 'tokens_per_second' in line]
        step_seconds = tokens_per_step / statistics.median(speeds[1:-1])  # the first compiles, the last saves
        steps = fitting_steps(self.flags.minutes * 60, seconds - steps * step_seconds, step_seconds)

        begun = time.time()
        stop_at = datetime.datetime.fromtimestamp(begun + self.flags.minutes * 60).isoformat()
        how = [*_schedule(steps), f'--config.train.stop_at={stop_at}', f'--workdir={workdir}']
        outcome = self._bert_jax('train', *self._pretraining(*how), may_stop=True, **cold)
        used = time.time() - begun
        return {
            'steps': outcome['step'],
            'planned_steps': steps,
            'tokens': round(outcome['step'] * tokens_per_step),
            'minutes': used / 60,
            'train_minutes': outcome['step'] * step_seconds / 60,
            'flops': measured['flops_per_step'] / step_seconds,
        } | self._judged(workdir)

    def hugging_face(self) -> dict[str, Any]:
        """The same for the Trainer."""
        directory, trial, imported = (self.output / f'hugging_face{end}' for end in ('', '-trial', '-imported'))
        for left_over in (directory, trial, imported):
            shutil.rmtree(left_over, ignore_errors=True)
        begun = time.time()
        self._trainer(trial, _CALIBRATION_STEPS)
        seconds, measured = time.time() - begun, json.loads((trial / 'run.json').read_text())
        step_seconds = measured['seconds_per_step']
        overhead = seconds - measured['tokenise_seconds'] - _CALIBRATION_STEPS * step_seconds
        steps = fitting_steps(self.flags.minutes * 60, overhead, step_seconds)

        begun = time.time()
        self._trainer(directory, steps, f'--stop_at={begun + self.flags.minutes * 60}')
        used = time.time() - begun
        self._bert_jax('import', *self._pretraining(), f'--from={directory}', f'--workdir={imported}')
        found = json.loads((directory / 'run.json').read_text())
        return (
            {name: found[name] for name in ('steps', 'planned_steps', 'tokens')}
            | {
                'minutes': used / 60,
                'train_minutes': found['train_seconds'] / 60,
            }
            | self._judged(imported)
        )

    def _judged(self, workdir: Path) -> dict[str, float]:
        """On held-out reviews: masked words in windows of one segment, the same for both."""
        found = self._bert_jax('evaluate', f'--workdir={workdir}')
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
        self._run(
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

    # --- Parts: what each start is worth on a task. ---

    def _finetune(
        self, name: str, config: str, start: str, rows: int, fields: dict[str, Any], seeds: int = 1
    ) -> dict[str, Any]:
        where = {
            'scratch': 'scratch',
            'bert_jax': self.output / 'bert_jax',
            'hugging_face': self.output / 'hugging_face',
        }
        chosen = [f'--config={_ROOT}/configs/finetune/{config}', f'--config.init={where[start]}']
        rate = self.flags.finetune_learning_rate
        if start == 'scratch':
            chosen += [f'--config.tokenizer.path={self.output}/corpus/tokenizer', *self._model_flags()]
            rate = self.flags.scratch_learning_rate
        else:
            chosen.append(f'--config.reinitialized_layers={self.flags.reinitialized_layers}')
        chosen.append(f'--config.model.scan_layers={self.flags.layers > 4}')
        fields = {'train.global_batch_size': self.flags.finetune_batch, 'optimizer.peak_learning_rate': rate} | fields
        chosen += [f'--config.{field}={value}' for field, value in fields.items()]
        seconds = seeds * self._estimate(rows * fields['train.epochs'] * fields['task.sequence_length'])
        print(f'{name}: about {seconds / 60:.0f} minutes', flush=True)
        begun = time.time()
        found = self._bert_jax('finetune', *chosen, f'--workdir={self.output}/{name}', f'--seeds={seeds}')
        return {'seeds': [seed['metrics'] for seed in found['seeds']], 'minutes': (time.time() - begun) / 60}

    def _estimate(self, num_tokens: float) -> float:
        """Seconds that a fine-tune trains, by the speed that pretraining had."""
        flops = (self.result('bert_jax') or {}).get('flops', _UNMEASURED)
        return 6 * 12 * self.flags.layers * self.flags.hidden**2 * num_tokens / flops

    def sst2(self, start: str, size: str) -> dict[str, Any]:
        """SST-2 from 1,000 of its sentences, or from all."""
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
        """Named entities of WikiANN; longer sentences are split, so every word is tagged."""
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
        """Answers of XQuAD, a paragraph in windows of the length that the model was pretrained at."""
        squad = json.loads(self.flags.xquad.read_text(encoding='utf-8'))
        for name, part in zip(('train', 'dev'), split_paragraphs(squad), strict=True):
            (self.output / f'xquad-{name}.json').write_text(json.dumps(part), encoding='utf-8')
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
        """All parts by name, in the order of running."""
        found = {'corpus': self.corpus, 'bert_jax': self.bert_jax, 'hugging_face': self.hugging_face}
        for size in shown.SIZES:
            for start in shown.STARTS:
                found[f'sst2-{size}-{start}'] = lambda start=start, size=size: self.sst2(start, size)
        for task in [name for name in ('tagging', 'spans') if getattr(self.flags, shown.TASK_FLAGS[name])]:
            for start in ('scratch', 'bert_jax'):
                found[f'{task}-{start}'] = lambda start=start, task=task: getattr(self, task)(start)
        return found


def _schedule(steps: int) -> tuple[str, ...]:
    """A run of so many steps that looks at little else."""
    return (
        f'--config.train.steps={steps}',
        f'--config.optimizer.warmup_steps={min(100, steps // 10)}',
        f'--config.train.checkpoint_every={steps}',
        '--config.train.evaluate_every=0',
        '--config.train.evaluate_rows=64',
    )


def fitting_steps(seconds: float, overhead: float, step_seconds: float) -> int:
    """How many steps fit into a time of which starting, compiling and saving take `overhead`; a little is left over."""
    return max(10, int((seconds - overhead) * (1 - _SPARE) / step_seconds))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--text', type=Path, required=True, help='reviews: JSON lines with a field `text`; .gz too')
    add('--sst2', type=Path, required=True, help='a directory with train.tsv and dev.tsv, as GLUE hands them out')
    add('--wikiann', type=Path, help='a directory with train.gz and dev.gz (en:WORD<TAB>TAG)')
    add('--xquad', type=Path, help='a JSON file in the format of SQuAD')
    add('--output', type=Path, required=True)
    add('--only', help='run this part alone; parts are named as the files in OUTPUT/results')
    add('--minutes', type=float, default=20.0, help='of each pretraining')
    add('--layers', type=int, default=4)
    add('--hidden', type=int, default=128)
    add('--length', type=int, default=128, help="of the Trainer's rows, and of the tasks at most; ours have half")
    add('--vocab_size', type=int, default=8192)
    add('--batch', type=int, default=16, help="rows of a step of the Trainer's; ours have twice as many")
    add('--learning_rate', type=float, default=4e-3, help='of our pretraining (muon)')
    add('--weight_decay', type=float, default=0.1, help='of our pretraining')
    add('--dtype', default='bfloat16', help='of our pretraining; the Trainer is no faster in bfloat16')
    add('--trainer_learning_rate', type=float, default=1e-3, help="of the Trainer's (AdamW)")
    add('--finetune_learning_rate', type=float, default=1e-3)
    add('--scratch_learning_rate', type=float, default=1e-3)
    add('--reinitialized_layers', type=int, default=1, help='of a pretrained model, before it is fine-tuned')
    add('--finetune_batch', type=int, default=64)
    add('--sst2_length', type=int, default=40, help='positions; longer sentences are cut')
    add('--epochs', type=float, default=1.0, help='over all of SST-2')
    add('--few_epochs', type=float, default=10.0, help='over the 1,000 examples')
    add('--tagging_epochs', type=float, default=2.0)
    add('--spans_epochs', type=float, default=4.0)
    add('--seeds', type=int, default=3)
    add('--documents', type=int, default=0, help='take only so many reviews; 0: all')
    add('--max_examples', type=int, default=0, help='fine-tune on at most so many examples; 0: all')
    return parser


def _check(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    """Ends the program where a file is not there, or the output holds results of other settings."""
    for path in (flags.text, flags.sst2 / 'train.tsv', flags.wikiann and flags.wikiann / 'train.gz', flags.xquad):
        if path and not path.exists():
            parser.error(f'{path} is not there')
    asked = {
        name: str(value) for name, value in vars(flags).items() if name not in ('output', 'only', 'wikiann', 'xquad')
    }
    settings = flags.output / 'settings.json'
    if settings.exists():
        began = json.loads(settings.read_text())
        differing = [f'--{name}={value}' for name, value in began.items() if asked.get(name) != value]
        if differing:
            parser.error(f'{flags.output} was begun with {" ".join(differing)}: another --output, or the same flags')
    (flags.output / 'results').mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(asked, indent=1))


def main() -> None:
    """Runs the parts that are not done, then shows what there is."""
    parser = _parser()
    flags = parser.parse_args()
    flags.output, flags.text = flags.output.resolve(), flags.text.resolve()
    _check(parser, flags)
    bench = Bench(flags)
    parts = bench.parts()
    if flags.only and flags.only not in parts:
        parser.error(f'--only={flags.only} is not a part: {", ".join(parts)}')
    for number, (name, run) in enumerate(parts.items(), 1):
        if bench.result(name) is not None or (flags.only and name != flags.only):
            continue
        print(f'--- Part {number} of {len(parts)}: {name}', flush=True)
        bench.write(name, run())
    results = {name: found for name in parts if (found := bench.result(name)) is not None}
    (flags.output / 'table.md').write_text(shown.table(results) + '\n', encoding='utf-8')
    shown.draw(results, shown.most_frequent(flags.sst2 / 'dev.tsv'), flags.output / 'sst2.svg')
    print(shown.table(results), f'\nWrote {flags.output}/table.md and {flags.output}/sst2.svg')


if __name__ == '__main__':
    main()
