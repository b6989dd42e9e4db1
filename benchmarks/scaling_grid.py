"""Measures how the loss depends on text, model size and tokens: the runs that `bert-jax advise` rests on.

    python -m benchmarks.scaling_grid --text=reviews.jsonl.gz --output=runs/scaling --workers=2

Small BERTs are pretrained on the field `text` of the records (film reviews), and on the docstrings of the installed
packages: 5 corpus sizes x 4 model sizes of reviews, and some of docstrings, each with one vocabulary for all. Every run
ends three times: its learning rate falls to 0, the masked words of held-out text are measured in nats per character,
and the next part of the run starts at the peak again (WSD-S of Wen et al. 2024, arXiv 2410.05192), so that three
budgets cost no more than the largest. All of it takes an estimated five hours of two idle cores.

Finished parts are stored in OUTPUT/results and skipped when the command is rerun. The runs are ordered so that a part
of the grid is useful. benchmarks/scaling_fit.py reads them.
"""

import argparse
import dataclasses
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.parts import Parts, run_bert_jax
from benchmarks.pretraining_data import write_reviews
from bert_jax.config.sizes import gated_sizes

_ROOT = Path(__file__).resolve().parent.parent
_HELD_OUT_EVERY = 20  # the interval of modules whose docstrings are held out
_WINDOWS = 512  # of held-out text
_ONE_THREAD = '--xla_cpu_multi_thread_eigen=false'  # per run
SIZES = {'L2_H64': (2, 64), 'L2_H128': (2, 128), 'L4_H128': (4, 128), 'L4_H256': (4, 256)}  # layers, hidden size
_ALL_SIZES = SIZES | {'L2_H96': (2, 96)}
MEGABYTES = {'reviews': (0.125, 0.5, 2.0, 8.0, 32.0), 'docstrings': (0.5, 2.0, 8.0)}
LARGEST = {text: max(sizes) for text, sizes in MEGABYTES.items()}
BUDGETS = (500, 1500, 4000)  # steps at which the learning rate is 0


class Run(NamedTuple):
    """A run: its text, megabytes of it, model size, and the steps at which its learning rate is 0."""

    text: str
    megabytes: float
    size: str
    budgets: tuple[int, ...] = BUDGETS

    @property
    def name(self) -> str:
        """The name of its result and log."""
        kind = 'run' if self.budgets == BUDGETS else 'check'
        return f'{kind}-{self.text}-{self.megabytes:g}-{self.size}'


CHECKS = (  # outside the grid: other sizes and lengths, to be predicted
    Run('reviews', 8.0, 'L2_H64', (1000,)),
    Run('docstrings', 2.0, 'L2_H96', (3000,)),
    Run('reviews', 2.0, 'L4_H128', (2500,)),
)
_BASE = {
    'tokenizer.vocab_size': 2048,
    'data.sequence_length': 64,
    'model.max_positions': 64,
    'model.dtype': 'float32',
    'train.global_batch_size': 32,
    'train.log_every': 100,
    'train.checkpoint_every': 250,
    'train.keep_every': 250,
    'train.evaluate_every': 0,
    'train.evaluate_rows': 64,
    'train.examples': (),
    'optimizer.schedule': 'wsd',
    'optimizer.decay': '1-sqrt',
    'optimizer.decay_fraction': 0.3,
}


def ordered_runs() -> list[Run]:
    """Returns all runs, those first without which the others tell little."""
    large, middle = LARGEST['reviews'], 'L2_H128'
    runs = [('reviews', large, size) for size in SIZES]
    runs += [('reviews', megabytes, middle) for megabytes in MEGABYTES['reviews']]
    runs += [('docstrings', LARGEST['docstrings'], size) for size in (middle, 'L4_H256')]
    runs += [('reviews', megabytes, size) for megabytes in MEGABYTES['reviews'] for size in list(SIZES)[::-1]]
    runs += [('docstrings', megabytes, middle) for megabytes in MEGABYTES['docstrings']]
    return [Run(*run) for run in dict.fromkeys(runs)]


@dataclasses.dataclass(frozen=True)
class Grid(Parts):
    """The texts, corpora and runs of the grid."""

    flags: argparse.Namespace

    def fields(self, text: str, megabytes: float, size: str = 'L2_H128') -> dict[str, Any]:
        """Returns the fields that a run changes in configs/small_budget.py."""
        fields = _BASE | {
            'data.source': f'jsonl:{self.output}/text/{text}-{megabytes:g}.jsonl',
            'data.validation_source': f'jsonl:{self.output}/text/{text}-held_out.jsonl',
            'data.corpus': f'{self.output}/corpora/{text}-{megabytes:g}',
        }
        fields |= {f'model.{name}': value for name, value in gated_sizes(*_ALL_SIZES[size]).items()}
        if megabytes != LARGEST[text]:  # its vocabulary serves all corpora
            fields['tokenizer.path'] = f'{self.output}/corpora/{text}-{LARGEST[text]:g}/tokenizer'
        return fields

    # --- Parts. ---

    def text(self, text: str) -> dict[str, int]:
        """Writes the held-out documents of a text and the others in nested files of all sizes."""
        directory = self.output / 'text'
        directory.mkdir(parents=True, exist_ok=True)
        if text == 'reviews':
            write_reviews(self.flags.text, directory, 0)
            train, held_out = (
                [json.loads(line)['text'] for line in (directory / name).read_text('utf-8').splitlines()]
                for name in ('train.jsonl', 'held_out.jsonl')
            )
        else:
            documents = _docstrings()
            random.Random(0).shuffle(documents)
            held_out = documents[::_HELD_OUT_EVERY]
            train = [document for index, document in enumerate(documents) if index % _HELD_OUT_EVERY]
        random.Random(0).shuffle(train)
        _write(directory / f'{text}-held_out.jsonl', held_out)
        counts = {'held_out': len(held_out)}
        for megabytes in MEGABYTES[text]:
            written = _write(directory / f'{text}-{megabytes:g}.jsonl', train, megabytes * 1e6)
            counts |= {f'documents-{megabytes:g}': written[0], f'characters-{megabytes:g}': written[1]}
        return counts

    def corpus(self, text: str, megabytes: float) -> dict[str, Any]:
        """Prepares a corpus."""
        flags = [f'--config.{name}={value}' for name, value in self.fields(text, megabytes).items()]
        return run_bert_jax('prepare', f'--config={_ROOT}/configs/small_budget.py', *flags)

    def train(self, run: Run) -> dict[str, Any]:
        """Trains a run and measures it at the end of each budget."""
        from bert_jax.data.epochs import epochs_of_phases
        from bert_jax.data.streams import open_streams
        from bert_jax.evaluation.masked_words import measure
        from bert_jax.evaluation.sample import read_held_out_windows
        from bert_jax.pretrain import pretrain
        from bert_jax.pretrained.load import load_pretrained
        from bert_jax.runtime.compilation_cache import enable_compilation_cache

        enable_compilation_cache()
        config, workdir = resolved(self.fields(*run[:3]), run.budgets), self.output / 'work' / run.name
        streams, started = open_streams(config), time.time()
        epochs = epochs_of_phases(config, streams.train)
        if not pretrain(config, str(workdir)).finished:
            sys.exit('stopped; rerun the same command to resume')
        seconds = time.time() - started
        windows = read_held_out_windows(config.data, _WINDOWS)
        train_tokens = json.loads(Path(config.data.corpus, 'manifest.json').read_text())['splits']['train']['tokens']
        points, passes, unseen = [], 0.0, 1.0
        for step, more in zip(run.budgets, epochs, strict=True):
            passes, unseen = passes + more, unseen * (1 - min(more, 1.0))
            points.append(
                {
                    'step': step,
                    'tokens': round(passes * train_tokens),
                    'unique_tokens': round((1 - unseen) * train_tokens),
                }
                | measure(load_pretrained(f'{workdir}@{step}'), windows)
            )
        shutil.rmtree(workdir)
        layers, hidden = _ALL_SIZES[run.size]
        return {
            'text': run.text,
            'size': run.size,
            'layers': layers,
            'hidden': hidden,
            'corpus_characters': (self.result(f'text-{run.text}') or {})[f'characters-{run.megabytes:g}'],
            'corpus_tokens': train_tokens,
            'seconds': round(seconds, 1),
            'points': points,
        }

    # --- Running them. ---

    def preparation(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Returns the parts before the runs by name, in their order."""
        found: dict[str, Callable[[], dict[str, Any]]] = {}
        for text in MEGABYTES:
            found[f'text-{text}'] = functools.partial(self.text, text)
            for megabytes in sorted(MEGABYTES[text], reverse=True):
                found[f'corpus-{text}-{megabytes:g}'] = functools.partial(self.corpus, text, megabytes)
        return found

    def run_all(self) -> None:
        """Runs all parts that are not finished; the runs in processes of one core each."""
        for name, run in self.preparation().items():
            if self.result(name) is None:
                print(f'--- {name}', flush=True)
                self.write(name, run())
        if self.flags.prepare:
            return
        left = [run.name for run in (*ordered_runs(), *CHECKS) if self.result(run.name) is None]
        shares = [share for worker in range(self.flags.workers) if (share := left[worker :: self.flags.workers])]
        command = [sys.executable, '-m', 'benchmarks.scaling_grid', *sys.argv[1:]]
        environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': _ONE_THREAD}
        processes = [subprocess.Popen([*command, '--only', *share], cwd=_ROOT, env=environment) for share in shares]
        statuses = [process.wait() for process in processes]
        if any(statuses):
            sys.exit('a run failed; rerun the same command to resume')


def resolved(fields: dict[str, Any], budgets: tuple[int, ...]) -> Any:
    """Returns the config of a run: configs/small_budget.py with fields, and a phase for each budget."""
    import bert_jax.config
    from bert_jax.configs import small_budget

    given = small_budget.get_config()
    given.update_from_flattened_dict(fields)
    given.train.steps = budgets[-1]
    steps = [stop - start for start, stop in zip((0, *budgets), budgets, strict=False)]
    given.phases = tuple({'steps': each, 'warmup_steps': 20 if index else 100} for index, each in enumerate(steps))
    return bert_jax.config.resolve(given)


def _docstrings() -> list[str]:
    """Returns the docstrings of each module, as `prepare` reads them from `python-docs`."""
    from collections import Counter

    from bert_jax.text.sources import python_docs

    counts: Counter[str] = Counter()
    texts = ['\n'.join(python_docs.read_paragraphs(path, counts)) for _, path in python_docs.find_modules()]
    return [text for text in texts if text]


def _write(path: Path, documents: Iterable[str], most_bytes: float = float('inf')) -> tuple[int, int]:
    """Writes documents as JSON lines until they have a number of bytes; returns (documents, characters)."""
    count = num_characters = num_bytes = 0
    with open(path, 'w', encoding='utf-8') as file:
        for document in documents:
            if num_bytes >= most_bytes:
                break
            print(json.dumps({'text': document}), file=file)
            num_bytes += len(document.encode())
            num_characters += len(document)
            count += 1
    return count, num_characters


def main() -> None:
    """Runs the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--text', type=Path, required=True, help='reviews: JSON lines with a field `text`, or the same as .gz')
    add('--output', type=Path, required=True)
    add('--workers', type=int, default=1, help='runs at a time, each with one thread')
    add('--prepare', action='store_true', help='only write the texts and corpora')
    add('--only', nargs='+', help='run only these runs (they have the names of the files in OUTPUT/results)')
    flags = parser.parse_args()
    flags.output, flags.text = flags.output.resolve(), flags.text.resolve()
    grid = Grid(flags.output, flags)
    grid.keep_settings(flags, 'workers', 'prepare', 'only')
    if flags.only:
        for run in (*ordered_runs(), *CHECKS):
            if run.name in flags.only:
                print(f'--- {run.name}', flush=True)
                grid.write(run.name, grid.train(run))
    else:
        grid.run_all()


if __name__ == '__main__':
    main()
