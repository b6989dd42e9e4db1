"""Retrieval from raw text alone, end to end: which film review does a sentence come from?

    python -m benchmarks.reviews_retrieval --text=reviews.jsonl.gz --output=runs/reviews [--encoder=runs/mine]

1. An encoder is pretrained on reviews with configs/small_budget.py, or given: a workdir or an export whose training
   text leaves out every fiftieth review, as this benchmark and `benchmarks.recipes` do.
2. `finetune` trains it on pairs of neighbouring spans of the same reviews (configs/finetune/embedding.py:corpus).
3. From each held-out review a random sentence of 8 to 40 words is removed. It is a query; the rest of the review is the
   passage to find among those of all held-out reviews. A quarter of the queries is the split `dev`, the rest `test`.
4. `evaluate` measures the encoder before and after step 2, and BM25. The encoder reads at most its number of positions,
   BM25 the whole text. A second set has only the first 90 words of each passage, so that all read the same text.

The numbers of steps are given, so the result does not depend on the speed of the machine. Parts that are finished are
in OUTPUT/results and not repeated. OUTPUT/retrieval.md has the table, OUTPUT/reviews_retrieval.svg the figure.
"""

import argparse
import dataclasses
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts import Parts, run_bert_jax
from benchmarks.pretraining_data import write_reviews
from bert_jax.config.sizes import gated_sizes

_ROOT = Path(__file__).resolve().parent.parent
_QUERY_WORDS = range(8, 41)
_SHORT_WORDS = 90  # of a passage in the second set
_DEV_EVERY = 4  # queries
SETS = {'whole': 'whole reviews', 'short': f'first {_SHORT_WORDS} words'}
_BEFORE, _AFTER, _BM25 = 'pretrained only', 'contrastive training', 'BM25'
_COLUMNS = {'ndcg_at_10': 'nDCG@10', 'mrr_at_10': 'MRR@10', 'recall_at_100': 'recall@100', 'mean_cosine': 'mean cosine'}
_COLORS = {_BEFORE: '#8c8c8c', _AFTER: '#2b6cb0', _BM25: '#d0801f'}


# --- The retrieval sets ---


def split_review(text: str, seed: int) -> tuple[str, str] | None:
    """Returns (a random sentence, the text without it), or None if no sentence has the length of a query."""
    from bert_jax.text.sentences import split_into_sentences

    sentences = [sentence for line in text.splitlines() for sentence in split_into_sentences(line)]
    candidates = [index for index, sentence in enumerate(sentences) if len(sentence.split()) in _QUERY_WORDS]
    if not candidates or len(sentences) < 2:
        return None
    chosen = random.Random(seed).choice(candidates)
    return sentences[chosen], ' '.join(sentences[:chosen] + sentences[chosen + 1 :])


def write_set(held_out: Path, directory: Path, max_words: int = 0) -> dict[str, int]:
    """Writes a set in BEIR format, and dev.jsonl with the pairs of its split `dev`; returns counts.

    Args:
      held_out: reviews, JSON lines with `text`; equal ones count once.
      max_words: to which passages are cut; 0 for all.
    """
    with held_out.open(encoding='utf-8') as file:
        reviews = list(dict.fromkeys(json.loads(line)['text'] for line in file))
    passages, queries, dev = [], [], []
    splits: dict[str, list[str]] = {'dev': [], 'test': []}
    for index, review in enumerate(reviews):
        query, passage = split_review(review, index) or ('', review)
        words = passage.split()
        passage = ' '.join(words[: max_words or len(words)])
        passages.append({'_id': f'r{index}', 'text': passage})
        if query:
            split = 'test' if len(queries) % _DEV_EVERY else 'dev'
            splits[split].append(f'q{index}\tr{index}\t1\n')
            queries.append({'_id': f'q{index}', 'text': query})
            if split == 'dev':
                dev.append({'anchor': query, 'positive': passage})
    (directory / 'qrels').mkdir(parents=True, exist_ok=True)
    for name, records in (('corpus', passages), ('queries', queries), ('dev', dev)):
        lines = ''.join(json.dumps(record) + '\n' for record in records)
        (directory / f'{name}.jsonl').write_text(lines, encoding='utf-8')
    for split, judgements in splits.items():
        (directory / 'qrels' / f'{split}.tsv').write_text('query-id\tcorpus-id\tscore\n' + ''.join(judgements))
    return {'passages': len(passages)} | {split: len(judgements) for split, judgements in splits.items()}


# --- Parts ---


@dataclasses.dataclass(frozen=True)
class Benchmark(Parts):
    """The parts of the benchmark."""

    flags: argparse.Namespace

    @property
    def encoder(self) -> Path:
        return self.flags.encoder or self.output / 'encoder'

    def _pretraining(self) -> list[str]:
        """Returns the flags of the corpus and of pretraining."""
        text = self.output / 'text'
        flags = [
            f'--config={_ROOT}/configs/small_budget.py',
            f'--config.data.source=jsonl:{text}/train.jsonl',
            f'--config.data.validation_source=jsonl:{text}/held_out.jsonl',
            f'--config.data.corpus={self.output}/corpus',
        ]
        sizes = gated_sizes(self.flags.layers, self.flags.hidden)
        flags += [f'--config.model.{name}={value}' for name, value in sizes.items()]
        if self.flags.encoder:
            saved = self.flags.encoder / 'tokenizer'
            flags.append(f'--config.tokenizer.path={saved if saved.exists() else self.flags.encoder}')
        return flags

    def text(self) -> dict[str, Any]:
        """Writes the reviews and the retrieval sets."""
        counts = write_reviews(self.flags.text, self.output / 'text', self.flags.documents)
        held_out = self.output / 'text' / 'held_out.jsonl'
        return counts | {
            name: write_set(held_out, self.output / 'sets' / name, _SHORT_WORDS if name == 'short' else 0)
            for name in SETS
        }

    def corpus(self) -> dict[str, Any]:
        """Prepares the corpus, with the tokenizer of the encoder if one is given."""
        from bert_jax.text.corpus import load_corpus

        summary = run_bert_jax('prepare', *self._pretraining())
        documents = np.diff(load_corpus(self.output / 'corpus').train.documents)
        usable = int((documents >= 2).sum())  # sentences, for a pair of neighbouring spans
        return {name: summary[name] for name in ('documents', 'tokens', 'seconds')} | {'pairs': usable}

    def pretraining(self) -> dict[str, Any]:
        """Pretrains the encoder."""
        started, steps = time.time(), self.flags.pretraining_steps
        fields = {
            'train.steps': steps,
            'train.checkpoint_every': max(1, steps // 10),
            'train.evaluate_every': 0,
            'optimizer.warmup_steps': min(100, steps // 10),
        }
        flags = [f'--config.{name}={value}' for name, value in fields.items()]
        run_bert_jax('train', *self._pretraining(), *flags, f'--workdir={self.encoder}')
        return {'steps': steps, 'minutes': (time.time() - started) / 60}

    def training(self, seed: int) -> dict[str, Any]:
        """Trains the encoder on neighbouring spans of the reviews."""
        pairs = (self.result('corpus') or {})['pairs']  # of an epoch
        started, steps, batch = time.time(), self.flags.training_steps, self.flags.batch
        fields = {
            'init': self.encoder,
            'task.train': f'corpus:{self.output}/corpus',
            'task.validation': f'jsonl:{self.output}/sets/whole/dev.jsonl',
            'task.sequence_length': self.flags.length,
            'train.epochs': (steps + 0.5) * batch / pairs,  # half a step more, so that rounding does not matter
            'train.global_batch_size': batch,
            'train.seed': seed,
            'train.checkpoint_every': max(1, steps // 10),
            'optimizer.peak_learning_rate': self.flags.learning_rate,
        }
        flags = [f'--config.{name}={value}' for name, value in fields.items()]
        config = f'--config={_ROOT}/configs/finetune/embedding.py:corpus'
        found = run_bert_jax('finetune', config, *flags, f'--workdir={self._trained(seed)}')
        return {'metrics': found['metrics'], 'minutes': (time.time() - started) / 60}

    def evaluation(self, name: str, seed: int) -> dict[str, Any]:
        """Measures the trained encoder; with the first seed, also the encoder before training and BM25."""
        more = ['--bm25=false'] if seed else ['--bm25', f'--baseline={self.encoder}']
        flags = [f'--retrieval={self.output}/sets/{name}', f'--split={self.flags.split}', *more]
        found = run_bert_jax('evaluate', f'--model={self._trained(seed)}', *flags)['retrieval']
        names = (_AFTER, _BEFORE, _BM25)
        return dict(zip(names, found['systems'], strict=False)) | {'queries': found['queries']}

    def _trained(self, seed: int) -> Path:
        return self.output / f'trained-{seed}'

    def parts(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Returns all parts by name, in their order."""
        found: dict[str, Callable[[], dict[str, Any]]] = {'text': self.text, 'corpus': self.corpus}
        if not self.flags.encoder:
            found['pretraining'] = self.pretraining
        for seed in range(self.flags.seeds):
            found[f'training-{seed}'] = lambda seed=seed: self.training(seed)
            for name in SETS:
                found[f'{name}-{self.flags.split}-{seed}'] = lambda name=name, seed=seed: self.evaluation(name, seed)
        return found

    def run(self) -> None:
        """Runs all parts that are not finished."""
        self.keep_settings(self.flags, 'seeds', 'split')
        parts = self.parts()
        for index, (name, run) in enumerate(parts.items(), 1):
            if self.result(name) is None:
                print(f'--- Part {index} of {len(parts)}: {name}', flush=True)
                self.write(name, run())

    def measured(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Returns {set: {system: results of the seeds}}; BM25 and the encoder have one."""
        found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for name in SETS:
            results = [self.result(f'{name}-{self.flags.split}-{seed}') or {} for seed in range(self.flags.seeds)]
            systems = {system: [result[system] for result in results if system in result] for system in _COLORS}
            found[name] = {system: values for system, values in systems.items() if values}
        return found


# --- The report ---


def table(measured: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Formats the metrics as a Markdown table: medians over the seeds, with the smallest and largest nDCG@10."""
    rows = [['passages', 'system', *_COLUMNS.values(), 'truncated texts', 'seeds']]
    rows.append(['---', '---', *['--:'] * (len(_COLUMNS) + 2)])
    for name, systems in measured.items():
        for system, results in systems.items():
            cells = []
            for key in _COLUMNS:
                values = [result[key] for result in results if result[key] is not None]
                shown = f'{statistics.median(values):.3f}' if values else ''
                has_range = len(values) > 1 and key == 'ndcg_at_10'
                cells.append(shown + (f' ({min(values):.3f} to {max(values):.3f})' if has_range else ''))
            rows.append([SETS[name], system, *cells, f'{results[0]["truncated"]:,}', str(len(results))])
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def draw(measured: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """Plots a dot per seed and a bar at their median, in one panel per set."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({'font.size': 9, 'svg.hashsalt': 'reviews_retrieval', 'svg.fonttype': 'none'}):
        figure = Figure(figsize=(6.4, 3.0), layout='constrained')
        panels = figure.subplots(1, len(SETS), sharey=True)
        for axes, (name, systems) in zip(panels, measured.items(), strict=True):
            for x, (system, color) in enumerate(_COLORS.items()):
                values = [result['ndcg_at_10'] for result in systems.get(system, [])]
                if values:
                    median = statistics.median(values)
                    axes.bar(x, median, 0.6, color=color, alpha=0.35)
                    axes.plot([x] * len(values), values, 'o', color=color, markersize=5)
                    label = (x, max(values)), (0, 6)
                    axes.annotate(f'{median:.3f}', *label, textcoords='offset points', ha='center')
            axes.set_title(SETS[name])
            axes.set_xticks(range(len(_COLORS)), ['pretrained\nonly', 'contrastive\ntraining', 'BM25'])
            axes.set_ylim(0, 1.08)
            axes.spines[['top', 'right']].set_visible(False)
        panels[0].set_ylabel('nDCG@10')
        figure.savefig(path, metadata={'Date': None})


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--text', type=Path, required=True, help='reviews: JSON lines with a field `text`, or the same as .gz')
    add('--output', type=Path, required=True)
    add('--encoder', type=Path, help='a workdir or an export instead of pretraining')
    add('--layers', type=int, default=4, help='of the encoder that is pretrained')
    add('--hidden', type=int, default=128, help='its hidden size')
    add('--pretraining_steps', type=int, default=5000)
    add('--training_steps', type=int, default=240)
    add('--batch', type=int, default=64, help='pairs')
    add('--length', type=int, default=128, help='positions of a text; longer ones are cut')
    add('--learning_rate', type=float, default=5e-4, help='of the contrastive training')
    add('--seeds', type=int, default=1, help='of the contrastive training')
    add('--split', choices=('dev', 'test'), default='test', help='dev is for choosing settings')
    add('--documents', type=int, default=0, help='number of reviews to use; 0 uses all')
    flags = parser.parse_args()
    flags.output, flags.text = flags.output.resolve(), flags.text.resolve()
    flags.encoder = flags.encoder and flags.encoder.resolve()
    benchmark = Benchmark(flags.output, flags)
    benchmark.run()
    measured = benchmark.measured()
    text = f'{table(measured)}\n\n{os.cpu_count()} CPU cores.\n'
    (flags.output / 'retrieval.md').write_text(text, encoding='utf-8')
    draw(measured, flags.output / 'reviews_retrieval.svg')
    print(text, f'\nWrote {flags.output}/retrieval.md and {flags.output}/reviews_retrieval.svg')


if __name__ == '__main__':
    main()
