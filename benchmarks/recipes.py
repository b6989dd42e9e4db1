"""Compares pretraining recipes with equal time: BERT as it is, ModernBERT, and whatever else RECIPES names.

    python -m benchmarks.recipes --text=reviews.jsonl.gz --sst2=glue/SST-2 --output=runs/recipes --minutes=20 --seeds=3

Every recipe pretrains a model of 5.4 M parameters on the field `text` of the records (film reviews) for `--minutes`,
with the same vocabulary, tokens per step and optimizer, once per seed. Short trials that alternate between the recipes
measure how many steps fit into the minutes, including starting the process, compiling and saving; run the trials on a
machine with nothing else to do. The runs then train these steps, however busy the machine is. Measured are the masked
words of held-out reviews in nats per character, 15% of the words masked whatever the recipe trains with, and the
accuracy on SST-2 after `finetune` on 1,000 examples.

Finished parts are stored in OUTPUT/results and skipped when the command is rerun; OUTPUT/table.md is the summary.
"""

import argparse
import dataclasses
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.parts import Parts, fitting_steps, run_bert_jax
from benchmarks.pretraining_data import subset, write_reviews

_ROOT = Path(__file__).resolve().parent.parent
_TRIAL_STEPS = 60
_TRIALS = 3
_TOKENS_PER_STEP = 4096
_COMMON = {
    'tokenizer.vocab_size': 8192,
    'model.num_layers': 4,
    'model.hidden_size': 256,
    'model.num_heads': 4,
    'model.max_positions': 256,
    'model.dtype': 'bfloat16',
    'model.scan_layers': False,
    'data.packing': True,
    'optimizer.name': 'muon',
    'optimizer.weight_decay': 0.1,
    'optimizer.schedule': 'linear',
    'train.evaluate_every': 0,
    'train.evaluate_rows': 64,
}
# name -> (config file, fields). The intermediate sizes give all models the same number of parameters.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    'bert': ('bert.py:mini', {'model.intermediate_size': 1024, 'data.pairing': 'nsp', 'data.masking.rate': 0.15}),
    'bert-single-texts': (
        'bert.py:mini',
        {'model.intermediate_size': 1024, 'data.pairing': 'none', 'data.masking.rate': 0.15},
    ),
    'modernbert': (
        'modernbert.py:nano',
        {'model.intermediate_size': 720, 'data.pairing': 'none', 'data.masking.rate': 0.3},
    ),
    'modernbert-15': (
        'modernbert.py:nano',
        {'model.intermediate_size': 720, 'data.pairing': 'none', 'data.masking.rate': 0.15},
    ),
}


@dataclasses.dataclass(frozen=True)
class Comparison(Parts):
    """The runs of all recipes and seeds."""

    flags: argparse.Namespace

    def _flags_of(self, recipe: str) -> list[str]:
        file, fields = RECIPES[recipe]
        length = self.flags.length
        fields = _COMMON | fields | {
            'data.source': f'jsonl:{self.output}/text/train.jsonl',
            'data.validation_source': f'jsonl:{self.output}/text/held_out.jsonl',
            'data.corpus': f'{self.output}/corpus',
            'data.sequence_length': length,
            'train.global_batch_size': _TOKENS_PER_STEP // length,
            'optimizer.peak_learning_rate': self.flags.learning_rate,
        }  # fmt: skip
        return [f'--config={_ROOT}/configs/{file}', *(f'--config.{name}={value}' for name, value in fields.items())]

    def corpus(self) -> dict[str, Any]:
        """Writes the text files and prepares the corpus that all recipes share."""
        counts = write_reviews(self.flags.text, self.output / 'text', self.flags.documents)
        summary = run_bert_jax('prepare', *self._flags_of(self.flags.recipes[0]))
        lines = (self.flags.sst2 / 'train.tsv').read_text(encoding='utf-8').splitlines(keepends=True)
        (self.output / 'sst2-1000.tsv').write_text(''.join(subset(lines, min(1000, len(lines) - 1))), encoding='utf-8')
        return counts | {name: summary[name] for name in ('tokens', 'seconds')}

    def trial(self, recipe: str) -> dict[str, Any]:
        """Measures the time per step of a short run, and the time that is not training."""
        workdir = self.output / f'{recipe}-trial'
        shutil.rmtree(workdir, ignore_errors=True)
        started = time.time()
        run_bert_jax('train', *self._flags_of(recipe), *_schedule(_TRIAL_STEPS), f'--workdir={workdir}', **_NO_CACHE)
        seconds = time.time() - started
        logged = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
        speeds = [line['tokens_per_second'] for line in logged if 'tokens_per_second' in line]
        tokens_per_second = statistics.median(speeds[1:-1])  # the first includes compiling, the last saving
        step_seconds = _TOKENS_PER_STEP / tokens_per_second
        return {'step_seconds': step_seconds, 'overhead_seconds': seconds - _TRIAL_STEPS * step_seconds}

    def _fitting_steps(self, recipe: str) -> int:
        """Returns how many steps of a recipe fit into the time, by the medians of its trials."""
        trials = [self.result(f'trial-{recipe}-{index}') for index in range(_TRIALS)]
        step, overhead = (
            statistics.median(trial[name] for trial in trials if trial) for name in ('step_seconds', 'overhead_seconds')
        )
        return fitting_steps(self.flags.minutes * 60, overhead, step)

    def pretrain(self, recipe: str, seed: int) -> dict[str, Any]:
        """Pretrains for the steps that fit into the time and evaluates masked words."""
        workdir = self._workdir(recipe, seed)
        shutil.rmtree(workdir, ignore_errors=True)
        steps = self._fitting_steps(recipe)
        started = time.time()
        run_bert_jax(
            'train',
            *self._flags_of(recipe),
            *_schedule(steps),
            f'--config.train.seed={seed}',
            f'--workdir={workdir}',
        )
        used = time.time() - started
        evaluated = run_bert_jax('evaluate', f'--workdir={workdir}')
        names = ('masked_word_nats_per_character', 'mlm_loss', 'mlm_accuracy')
        return {'steps': steps, 'minutes': used / 60} | {name: evaluated[name] for name in names}

    def finetune(self, recipe: str, seed: int) -> dict[str, Any]:
        """Fine-tunes on 1,000 examples of SST-2."""
        fields = {
            'init': self._workdir(recipe, seed),
            'task.directory': self.flags.sst2.resolve(),
            'task.train': f'tsv:{self.output}/sst2-1000.tsv',
            'task.sequence_length': 40,
            'train.epochs': self.flags.epochs,
            'train.global_batch_size': 32,
            'train.seed': seed,
            'optimizer.peak_learning_rate': self.flags.finetune_learning_rate,
        }
        flags = [f'--config.{name}={value}' for name, value in fields.items()]
        workdir = self.output / f'{recipe}-{seed}-sst2'
        shutil.rmtree(workdir, ignore_errors=True)
        found = run_bert_jax(
            'finetune', f'--config={_ROOT}/configs/finetune/glue.py:sst2', *flags, f'--workdir={workdir}'
        )
        return found['metrics']

    def _workdir(self, recipe: str, seed: int) -> Path:
        return self.output / f'{recipe}-{seed}'

    def run(self) -> None:
        """Runs all parts that are not finished; the recipes alternate."""
        parts = [('corpus', self.corpus, ())]
        for index in range(_TRIALS):
            parts += [(f'trial-{recipe}-{index}', self.trial, (recipe,)) for recipe in self.flags.recipes]
        for seed in range(self.flags.seeds):
            for recipe in self.flags.recipes:
                parts.append((f'pretrain-{recipe}-{seed}', self.pretrain, (recipe, seed)))
                parts.append((f'sst2-{recipe}-{seed}', self.finetune, (recipe, seed)))
        for index, (name, run, arguments) in enumerate(parts, 1):
            if self.result(name) is None:
                print(f'--- Part {index} of {len(parts)}: {name}', flush=True)
                self.write(name, run(*arguments))

    def table(self) -> str:
        """Formats the results as a Markdown table: one row per recipe, medians with the smallest and largest value."""
        lines = [
            '| recipe | steps | masked words, nats per character | SST-2 accuracy | seeds |',
            '|---|--:|--:|--:|--:|',
        ]
        for recipe in self.flags.recipes:
            runs = [self.result(f'pretrain-{recipe}-{seed}') for seed in range(self.flags.seeds)]
            tuned = [self.result(f'sst2-{recipe}-{seed}') for seed in range(self.flags.seeds)]
            pairs = [(run, scores) for run, scores in zip(runs, tuned, strict=True) if run and scores]
            if not pairs:
                continue
            steps = statistics.median(run['steps'] for run, _ in pairs)
            words = _range([run['masked_word_nats_per_character'] for run, _ in pairs], '{:.3f}')
            accuracy = _range([100 * scores['accuracy'] for _, scores in pairs], '{:.1f}')
            lines.append(f'| {recipe} | {steps:,.0f} | {words} | {accuracy} | {len(pairs)} |')
        return '\n'.join(lines)


_NO_CACHE = {'JAX_ENABLE_COMPILATION_CACHE': 'false'}  # the time of a trial includes compiling


def _range(values: list[float], form: str) -> str:
    middle, low, high = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return f'{middle} ({low} to {high})'


def _schedule(steps: int) -> list[str]:
    fields = {
        'train.steps': steps,
        'train.checkpoint_every': steps,
        'train.log_every': 10 if steps == _TRIAL_STEPS else 100,
        'optimizer.warmup_steps': min(100, steps // 10),
    }
    return [f'--config.{name}={value}' for name, value in fields.items()]


def main() -> None:
    """Runs the comparison and writes its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--text', type=Path, required=True, help='reviews: JSON lines with a field `text`, or the same as .gz')
    add('--sst2', type=Path, required=True, help='directory with train.tsv and dev.tsv of GLUE')
    add('--output', type=Path, required=True)
    add('--recipes', nargs='+', choices=RECIPES, default=['bert', 'modernbert'])
    add('--minutes', type=float, default=20.0, help='time for each pretraining')
    add('--seeds', type=int, default=3)
    add('--length', type=int, default=128, help='tokens per row')
    add('--learning_rate', type=float, default=4e-3, help='of pretraining (Muon)')
    add('--finetune_learning_rate', type=float, default=5e-4)
    add('--epochs', type=float, default=10.0, help='over the 1,000 examples')
    add('--documents', type=int, default=0, help='number of reviews to use; 0 uses all')
    flags = parser.parse_args()
    flags.output, flags.text = flags.output.resolve(), flags.text.resolve()
    for path in (flags.text, flags.sst2 / 'train.tsv'):
        if not path.exists():
            parser.error(f'{path} does not exist')
    comparison = Comparison(flags.output, flags)
    comparison.run()
    (flags.output / 'table.md').write_text(comparison.table() + '\n')
    print(comparison.table(), f'\nWrote {flags.output}/table.md')


if __name__ == '__main__':
    main()
