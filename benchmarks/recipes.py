"""Compares pretraining recipes that have equal time: one change at a time, and the best changes together.

    python -m benchmarks.recipes --text=reviews.jsonl.gz --sst2=glue/SST-2 --wikiann=wikiann/en \
        --output=runs/recipes --minutes=20 --seeds=3

Every recipe pretrains on the field `text` of the records (film reviews) for `--minutes`, once per seed. Short trials
that alternate between the recipes measure how many steps fit into the minutes, including starting the process,
compiling and saving; run the trials on a machine with nothing else to do. The runs then train these steps, however busy
the machine is. Measured are the masked words of held-out reviews in nats per character (15% of the words masked,
whatever the recipe trains with), the accuracy on SST-2 after `finetune` on 1,000 examples, and the entity F1 on English
WikiANN.

Finished parts are stored in OUTPUT/results and skipped when the command is rerun. OUTPUT/table.md and
OUTPUT/recipes.svg show what is finished.
"""

import argparse
import dataclasses
import functools
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import recipes_report as report
from benchmarks.parts import Parts, fitting_steps, run_bert_jax
from benchmarks.pretraining_data import subset, write_reviews
from bert_jax.config.sizes import gated_sizes

_ROOT = Path(__file__).resolve().parent.parent
_TRIAL_STEPS = 60
_AVERAGED = 5  # checkpoints, over the last tenth of the steps
_CHECKPOINTS = 50  # per run
_NO_CACHE = {'JAX_ENABLE_COMPILATION_CACHE': 'false'}  # the time of a trial includes compiling


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a recipe changes.

    Attributes:
      change: its name in the table.
      fields: of the config.
      file: the config.
      first_phase, last_phase: fields of the two phases of the recipe, if it has any; the learning rate is that of a
        single phase.
      last_share: of the steps, that the last phase takes.
      average_of: the recipe whose last checkpoints are averaged, instead of training.
    """

    change: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    file: str = 'small_budget.py'
    first_phase: dict[str, Any] = dataclasses.field(default_factory=dict)
    last_phase: dict[str, Any] = dataclasses.field(default_factory=dict)
    last_share: float = 0.2
    average_of: str = ''


_VOCAB_SIZE = 8192
_DECAY = 0.1  # optimizer.decay_fraction of configs/small_budget.py
# What configs/small_budget.py has, for recipes that start from demo.py, a BERT.
_BERT = {
    'data.sequence_length': 128,
    'data.pairing': 'none',
    'data.masking.rate': 0.3,
    'model.num_layers': 4,
    'model.max_positions': 128,
    'model.dtype': 'auto',
    'model.scan_layers': False,
    'optimizer.schedule': 'wsd',
    'optimizer.weight_decay': 0.1,
    'optimizer.clip_norm': 1.0,
}
_EVALUATION = {'train.evaluate_every': 0, 'train.evaluate_rows': 64}
_WIDE = {f'model.{name}': value for name, value in gated_sizes(num_layers=4, hidden_size=256).items()}
BASE = 'small-budget'
RECIPES = {
    'demo': Recipe(
        'the recipe of `configs/demo.py`, with 4 layers',
        _BERT
        | {
            'data.sequence_length': 64,
            'data.pairing': 'nsp',
            'data.masking.rate': 0.15,
            'optimizer.schedule': 'linear',
        },
        'demo.py',
    ),
    BASE: Recipe('`configs/small_budget.py` (base of the changes below)'),
    'bert': Recipe('BERT instead of ModernBERT', _BERT, 'demo.py'),
    'bert-pairs': Recipe('BERT with next-sentence prediction', _BERT | {'data.pairing': 'nsp'}, 'demo.py'),
    'wide': Recipe('256 dimensions instead of 128', _WIDE),
    'masking-15': Recipe('15% of the words masked instead of 30%', {'data.masking.rate': 0.15}),
    'masking-30-15': Recipe('15% masked in the last fifth', last_phase={'masking': {'rate': 0.15}}),
    'adamw': Recipe('AdamW at 1e-3 instead of Muon', {'optimizer.name': 'adamw', 'optimizer.peak_learning_rate': 1e-3}),
    'stable-adamw': Recipe(
        'StableAdamW at 1e-3 instead of Muon',
        {'optimizer.name': 'stableadamw', 'optimizer.peak_learning_rate': 1e-3},
    ),
    'linear': Recipe('the learning rate falls over the whole run', {'optimizer.schedule': 'linear'}),
    '1-sqrt': Recipe(
        '1-sqrt decay over the last fifth instead of linear over the last tenth',
        {'optimizer.decay': '1-sqrt', 'optimizer.decay_fraction': 0.2},
    ),
    'average': Recipe(f'average of the last {_AVERAGED} checkpoints', average_of=BASE),
    'vocab-16k': Recipe('vocabulary of 16,384', {'tokenizer.vocab_size': 16384}),
    'vocab-32k': Recipe('vocabulary of 32,768', {'tokenizer.vocab_size': 32768}),
    'unpacked': Recipe('one example per row', {'data.packing': False}),
    'clm-mlm': Recipe(
        'next tokens for a quarter of the steps, then masked ones',
        first_phase={'objective': 'clm'},
        last_phase={'objective': 'mlm'},
        last_share=0.75,
    ),
    'mntp': Recipe(
        'masked tokens from the previous position, masked ones in the last fifth',
        first_phase={'objective': 'mntp'},
        last_phase={'objective': 'mlm'},
    ),
    'mixture': Recipe(
        'the same with 1 row in 16 causal before the last fifth',
        first_phase={'objective': 'mntp', 'causal_share': 1 / 16},
        last_phase={'objective': 'mlm'},
    ),
    'rtd': Recipe('replaced-token detection', {'objective.name': 'rtd'}),
}


@dataclasses.dataclass(frozen=True)
class Comparison(Parts):
    """The runs of all recipes and seeds."""

    flags: argparse.Namespace

    def fields(self, recipe: str) -> dict[str, Any]:
        """Returns the fields that a recipe sets in its config."""
        fields = {'tokenizer.vocab_size': _VOCAB_SIZE} | _EVALUATION | RECIPES[recipe].fields
        return fields | {
            'data.source': f'jsonl:{self.output}/text/train.jsonl',
            'data.validation_source': f'jsonl:{self.output}/text/held_out.jsonl',
            'data.corpus': f'{self.output}/corpus-{fields["tokenizer.vocab_size"]}',
        }

    def _flags_of(self, recipe: str, steps: int = 0) -> list[str]:
        """Returns the flags of a command; steps: of a run."""
        fields = self.fields(recipe) | (self.schedule(recipe, steps) if steps else {})
        return [f'--config={_ROOT}/configs/{RECIPES[recipe].file}', *_flags(fields)]

    def text(self) -> dict[str, Any]:
        """Writes the reviews and the examples of SST-2."""
        lines = (self.flags.sst2 / 'train.tsv').read_text(encoding='utf-8').splitlines(keepends=True)
        counts = write_reviews(self.flags.text, self.output / 'text', self.flags.documents)
        (self.output / 'sst2-1000.tsv').write_text(''.join(subset(lines, min(1000, len(lines) - 1))), encoding='utf-8')
        return counts

    def corpus(self, recipe: str) -> dict[str, Any]:
        """Prepares a corpus; recipes with the same vocabulary share it."""
        summary = run_bert_jax('prepare', *self._flags_of(recipe))
        return {name: summary[name] for name in ('tokens', 'seconds')}

    def trial(self, recipe: str) -> dict[str, Any]:
        """Measures the time of a step: the mean over those of both phases, if they have different objectives."""
        given = RECIPES[recipe]
        shares = {1 - given.last_share: given.first_phase, given.last_share: given.last_phase}
        if not given.first_phase:
            shares = {1.0: {}}
        seconds = 0.0
        for share, phase in shares.items():
            names = {'objective': 'objective.name', 'causal_share': 'objective.causal_share'}
            flags = _flags({names[field]: value for field, value in phase.items()})
            seconds += share * run_bert_jax('bench', *self._flags_of(recipe), *flags, '--seconds=10')['step_seconds']
        return {'step_seconds': seconds}

    def overhead(self, recipe: str) -> dict[str, Any]:
        """Measures the time of a short run that is not training."""
        workdir = self.output / f'{recipe}-trial'
        shutil.rmtree(workdir, ignore_errors=True)
        started = time.time()
        run_bert_jax('train', *self._flags_of(recipe, _TRIAL_STEPS), f'--workdir={workdir}', **_NO_CACHE)
        return {'seconds': max(0.0, time.time() - started - _TRIAL_STEPS * self._step_seconds(recipe))}

    def _step_seconds(self, recipe: str) -> float:
        trials = [self.result(f'trial-{recipe}-{index}') for index in range(self.flags.trials)]
        return statistics.median(trial['step_seconds'] for trial in trials if trial)

    def schedule(self, recipe: str, steps: int) -> dict[str, Any]:
        """Returns the fields of a run of `steps` steps; the learning rate is the same with and without a last phase."""
        saves_every = max(10, steps // _CHECKPOINTS)
        warmup = min(100, steps // 10)
        fields: dict[str, Any] = {
            'train.checkpoint_every': saves_every,
            'train.keep_checkpoints': _AVERAGED,
            'train.log_every': max(1, steps // 50),
        }
        given = RECIPES[recipe]
        if given.first_phase or given.last_phase:
            rest = round(given.last_share * steps)
            first = steps - rest
            fields['phases'] = (
                {'steps': first, 'warmup_steps': warmup, 'schedule': 'constant'} | given.first_phase,
                {'steps': rest, 'warmup_steps': 0, 'decay_steps': round(_DECAY * steps)} | given.last_phase,
            )
        else:
            fields |= {'train.steps': steps, 'optimizer.warmup_steps': warmup}
        return fields

    def pretrain(self, recipe: str, seed: int) -> dict[str, Any]:
        """Pretrains for the steps that fit into the time, or takes an average, and evaluates masked words."""
        workdir, started, evaluated_flags = self._workdir(recipe, seed), time.time(), []
        if source := RECIPES[recipe].average_of:
            steps = (self.result(f'pretrain-{source}-{seed}') or {})['steps']
            workdir = self._workdir(source, seed)
            evaluated_flags = [f'--average={",".join(map(str, _saved_steps(workdir)))}']
            exported = self._workdir(recipe, seed)
            shutil.rmtree(exported, ignore_errors=True)
            run_bert_jax('export', f'--workdir={workdir}', *evaluated_flags, f'--output={exported}')
        else:
            shutil.rmtree(workdir, ignore_errors=True)
            step_seconds = self._step_seconds(recipe)
            overhead = (self.result(f'overhead-{recipe}') or {})['seconds']
            steps = fitting_steps(self.flags.minutes * 60, overhead, step_seconds)
            run_bert_jax('train', *self._flags_of(recipe, steps), f'--config.train.seed={seed}', f'--workdir={workdir}')
        used = time.time() - started
        evaluated = run_bert_jax('evaluate', f'--workdir={workdir}', *evaluated_flags)
        names = ('masked_word_nats_per_character', 'mlm_loss', 'mlm_accuracy')
        return {'steps': steps, 'minutes': used / 60} | {name: evaluated.get(name) for name in names}

    def sst2(self, recipe: str, seed: int) -> dict[str, Any]:
        """Fine-tunes on 1,000 examples of SST-2."""
        fields = {
            'task.directory': self.flags.sst2.resolve(),
            'task.train': f'tsv:{self.output}/sst2-1000.tsv',
            'task.sequence_length': 40,
            'train.epochs': 10.0,
        }
        return self._finetune('glue.py:sst2', fields, recipe, seed, 'sst2')

    def wikiann(self, recipe: str, seed: int) -> dict[str, Any]:
        """Fine-tunes on the named entities of WikiANN; long sentences are split, so every word is tagged."""
        fields = {
            'task.directory': self.flags.wikiann.resolve(),
            'task.train': 'conll:train.gz',
            'task.validation': 'conll:dev.gz',
            'task.token_prefix': 'en:',
            'task.sequence_length': 32,
            'train.epochs': 2.0,
        }
        return self._finetune('ner.py', fields, recipe, seed, 'wikiann')

    def _finetune(self, config: str, fields: dict[str, Any], recipe: str, seed: int, task: str) -> dict[str, Any]:
        fields = fields | {
            'init': self._workdir(recipe, seed),
            'reinitialized_layers': 1,
            'train.global_batch_size': 64,
            'train.seed': seed,
            'optimizer.peak_learning_rate': self.flags.finetune_learning_rate,
        }
        workdir = self.output / f'{recipe}-{seed}-{task}'
        shutil.rmtree(workdir, ignore_errors=True)
        flags = [f'--config.{name}={value}' for name, value in fields.items()]
        found = run_bert_jax('finetune', f'--config={_ROOT}/configs/finetune/{config}', *flags, f'--workdir={workdir}')
        return found['metrics']

    def _workdir(self, recipe: str, seed: int) -> Path:
        return self.output / f'{recipe}-{seed}'

    def parts(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Returns all parts by name, in their order; the recipes alternate."""
        trained = [name for name in self.flags.recipes if not RECIPES[name].average_of]
        found: dict[str, Callable[[], dict[str, Any]]] = {'text': self.text}
        for recipe in trained:
            corpus = Path(self.fields(recipe)['data.corpus']).name
            found.setdefault(corpus, functools.partial(self.corpus, recipe))
        for index in range(self.flags.trials):
            found |= {f'trial-{recipe}-{index}': functools.partial(self.trial, recipe) for recipe in trained}
        found |= {f'overhead-{recipe}': functools.partial(self.overhead, recipe) for recipe in trained}
        for seed in range(self.flags.seeds):
            for recipe in self.flags.recipes:
                for name, run in (('pretrain', self.pretrain), ('sst2', self.sst2), ('wikiann', self.wikiann)):
                    found[f'{name}-{recipe}-{seed}'] = functools.partial(run, recipe, seed)
        return found

    def run(self) -> None:
        """Runs all parts that are not finished; after each, the table and the figure show what is."""
        self.keep_settings(self.flags, 'recipes', 'seeds', 'trials')
        parts = self.parts()
        left = sum(name.startswith('pretrain') and self.result(name) is None for name in parts)
        print(f'{left} pretraining runs are left: about {left * self.flags.minutes / 60:.1f} hours, and the tasks')
        for index, (name, run) in enumerate(parts.items(), 1):
            if self.result(name) is None:
                print(f'--- Part {index} of {len(parts)}: {name}', flush=True)
                self.write(name, run())
                if name.startswith('wikiann'):
                    self.write_report()

    def write_report(self) -> str:
        """Writes the table and the figure; returns the table."""
        found = {
            recipe: {
                kind: [self.result(f'{kind}-{recipe}-{seed}') for seed in range(self.flags.seeds)]
                for kind in report.KINDS
            }
            for recipe in self.flags.recipes
        }
        table = report.table(found, {name: RECIPES[name].change for name in found})
        (self.output / 'table.md').write_text(table + '\n', encoding='utf-8')
        report.draw(found, BASE, self.output / 'recipes.svg')
        return table


def _flags(fields: dict[str, Any]) -> list[str]:
    return [f'--config.{name}={value}' for name, value in fields.items()]


def _saved_steps(workdir: Path) -> list[int]:
    """Returns the steps of the checkpoints of a run."""
    return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit())


def main() -> None:
    """Runs the comparison and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--text', type=Path, required=True, help='reviews: JSON lines with a field `text`, or the same as .gz')
    add('--sst2', type=Path, required=True, help='directory with train.tsv and dev.tsv of GLUE')
    add('--wikiann', type=Path, required=True, help='directory with train.gz and dev.gz (lines en:WORD<TAB>TAG)')
    add('--output', type=Path, required=True)
    add('--recipes', nargs='+', choices=RECIPES, default=list(RECIPES))
    add('--minutes', type=float, default=20.0, help='time for each pretraining')
    add('--seeds', type=int, default=3)
    add('--trials', type=int, default=3, help='of the speed of each recipe')
    add('--finetune_learning_rate', type=float, default=1e-3)
    add('--documents', type=int, default=0, help='number of reviews to use; 0 uses all')
    flags = parser.parse_args()
    flags.output, flags.text = flags.output.resolve(), flags.text.resolve()
    for path in (flags.text, flags.sst2 / 'train.tsv', flags.wikiann / 'train.gz'):
        if not path.exists():
            parser.error(f'{path} does not exist')
    comparison = Comparison(flags.output, flags)
    comparison.run()
    print(comparison.write_report(), f'\nWrote {flags.output}/table.md and {flags.output}/recipes.svg')


if __name__ == '__main__':
    main()
