"""Fits the law of `bert-jax advise` to the runs of benchmarks/scaling_grid.py, and writes the file, table and figure.

    python -m benchmarks.scaling_fit --runs=runs/scaling --machine='two cores of an AMD EPYC'

Writes bert_jax/advise/runs.json (points, coefficients, error), and in --runs table.md and scaling_grid.svg. The points
are those of the finished runs of the grid and its checks, and two longer runs that the documentation describes. The fit
minimizes the errors of the logarithm of the loss, with weak priors at the published exponents (0.35) and the published
R of repetitions (15.4), because a small grid does not determine all six coefficients. The held-out error is that of
runs left out of the fit, one run with all its budgets at a time; the checks are printed.
"""

import argparse
import dataclasses
import datetime
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from bert_jax.advise.law import PUBLISHED, Law, encoder_parameters

_FILE = Path(__file__).resolve().parent.parent / 'bert_jax' / 'advise' / 'runs.json'
_ERROR = 0.01  # of the logarithm of a loss, in units of which the priors count
_REFITS = 60
_STARTS = ((0.1, 2.0, 2.0), (0.3, 5.0, 20.0), (0.2, 1.0, 100.0))  # E, A, B

# (centre, width) of the priors on log E, log A, alpha, log B, beta, log R.
_PRIORS = (
    (math.log(0.2), 0.7), (math.log(5.0), 3.0), (PUBLISHED.alpha, 0.1),
    (math.log(20.0), 3.0), (PUBLISHED.beta, 0.1), (math.log(PUBLISHED.R), 0.7),
)  # fmt: skip
Point = dict[str, Any]

# Runs of the documentation: docs/getting-started/quickstart.md, and docs/benchmarks/pretraining-pays.md (bert_jax).
# Characters are tokens times the characters per token of their vocabularies of 8,192.
DOCUMENTED: tuple[Point, ...] = (
    {
        'run': 'documented-quickstart', 'text': 'docstrings', 'size': 'L2_H128', 'encoder_parameters': 393_216,
        'corpus_characters': 14_200_000, 'characters': 28_800_000, 'unique_characters': 14_200_000,
        'epochs': 2.03, 'steps': 3100, 'nats_per_character': 1.452, 'unigram_nats_per_character': 3.133,
    },
    {
        'run': 'documented-pretraining-pays', 'text': 'reviews', 'size': 'L4_H128', 'encoder_parameters': 786_432,
        'corpus_characters': 64_150_000, 'characters': 94_000_000, 'unique_characters': 64_150_000,
        'epochs': 1.47, 'steps': 11_449, 'nats_per_character': 1.541, 'unigram_nats_per_character': 3.054,
    },
)  # fmt: skip


def read_points(directory: Path) -> list[Point]:
    """Returns the points of all finished runs and of the documentation."""
    points = list(DOCUMENTED)
    results = directory / 'results'
    for path in sorted([*results.glob('run-*.json'), *results.glob('check-*.json')]):
        run = json.loads(path.read_text())
        for point in run['points']:
            characters = run['corpus_characters']
            passes, seen = point['tokens'] / run['corpus_tokens'], point['unique_tokens'] / run['corpus_tokens']
            points.append(
                {
                    'run': path.stem,
                    'text': run['text'],
                    'size': run['size'],
                    'encoder_parameters': encoder_parameters(run['layers'], run['hidden']),
                    'corpus_characters': characters,
                    'characters': round(passes * characters),
                    'unique_characters': round(seen * characters),
                    'epochs': passes / seen,
                    'steps': point['step'],
                    'nats_per_character': point['masked_word_nats_per_character'],
                    'unigram_nats_per_character': point['unigram_nats_per_character'],
                }
            )
    return points


def fit(points: Sequence[Point]) -> Law:
    """Fits a law to points: masked-word nats per character over the unigram baseline."""
    parameters, characters, unique, losses = _arrays(points)

    def residuals(theta: np.ndarray) -> np.ndarray:
        law = _law(theta)
        predicted = [law(*each) for each in zip(parameters, characters, unique, strict=True)]
        errors = (np.log(predicted) - np.log(losses)) / _ERROR
        priors = [(value - centre) / width for value, (centre, width) in zip(theta, _PRIORS, strict=True)]
        return np.concatenate([np.clip(errors, -1e6, 1e6), priors])

    starts = [
        [math.log(E), math.log(A), PUBLISHED.alpha, math.log(B), PUBLISHED.beta, math.log(PUBLISHED.R)]
        for E, A, B in _STARTS
    ]
    found = [least_squares(residuals, start, loss='soft_l1', max_nfev=500) for start in starts]
    return _law(min(found, key=lambda each: each.cost).x)


def _law(theta: np.ndarray) -> Law:
    E, A, alpha, B, beta, R = map(float, theta)
    return Law(math.exp(E), math.exp(A), alpha, math.exp(B), beta, math.exp(R))


def _arrays(points: Sequence[Point]) -> tuple[np.ndarray, ...]:
    names = ('encoder_parameters', 'characters', 'unique_characters')
    columns = [np.array([point[name] for point in points], float) for name in names]
    return *columns, np.array([point['nats_per_character'] / point['unigram_nats_per_character'] for point in points])


def errors(law: Law, points: Sequence[Point]) -> np.ndarray:
    """Returns the relative errors of the predictions."""
    parameters, characters, unique, losses = _arrays(points)
    predicted = [law(*each) for each in zip(parameters, characters, unique, strict=True)]
    return np.array(predicted) / losses - 1


def held_out_errors(points: Sequence[Point]) -> dict[str, np.ndarray]:
    """Returns the relative errors of each run, predicted from the others."""
    found = {}
    for run in dict.fromkeys(point['run'] for point in points):
        rest = [point for point in points if point['run'] != run]
        found[run] = errors(fit(rest), [point for point in points if point['run'] == run])
    return found


def refits(points: Sequence[Point], count: int = _REFITS) -> list[Law]:
    """Returns laws fitted to runs sampled with replacement."""
    runs, rng = sorted({point['run'] for point in points}), np.random.default_rng(0)
    by_run = {run: [point for point in points if point['run'] == run] for run in runs}
    samples = ([by_run[run] for run in rng.choice(runs, len(runs))] for _ in range(count))
    return [fit([point for run in sample for point in run]) for sample in samples]


def content(points: list[Point], left_out: np.ndarray, machine: str) -> dict[str, Any]:
    """Returns the content of runs.json; left_out: errors of the points when their runs are left out."""
    law = fit(points)
    return {
        'origin': {
            'command': 'python -m benchmarks.scaling_grid --text=reviews.jsonl.gz --output=runs/scaling --workers=2',
            'fit': 'python -m benchmarks.scaling_fit --runs=runs/scaling',
            'machine': machine,
            'date': datetime.date.today().isoformat(),
        },
        'fit': {
            'law': dataclasses.asdict(law),
            'held_out_error': float(np.sqrt(np.mean(left_out**2))),
            'fitted_error': float(np.sqrt(np.mean(errors(law, points) ** 2))),
            'refits': [dataclasses.asdict(each) for each in refits(points)],
        },
        'points': points,
    }


def table(points: list[Point], law: Law) -> str:
    """Returns a Markdown table with a row per corpus and size, and a column per budget."""
    steps = sorted({point['steps'] for point in points})
    lines = [
        '| text | corpus | size | parameters of the layers | ' + ' | '.join(f'{step:,} steps' for step in steps) + ' |',
        '|---|--:|---|--:|' + '--:|' * len(steps),
    ]
    by_run: dict[tuple[str, int, int, str], dict[int, str]] = {}
    for point, error in zip(points, errors(law, points), strict=True):
        key = (point['text'], point['corpus_characters'], point['encoder_parameters'], point['size'])
        cell = f'{point["nats_per_character"]:.3f} ({-error:+.1%}), {point["epochs"]:.1f}'
        by_run.setdefault(key, {})[point['steps']] = cell
    for (text, characters, parameters, size), cells in sorted(by_run.items()):
        row = [
            text,
            f'{characters / 1e6:.3g} M',
            f'`{size}`',
            f'{parameters:,}',
            *(cells.get(step, '') for step in steps),
        ]
        lines.append(f'| {" | ".join(row)} |')
    return '\n'.join(lines)


def draw(points: list[Point], law: Law, path: Path) -> None:
    """Draws measured against predicted losses."""
    import matplotlib

    matplotlib.use('svg')
    matplotlib.rcParams['svg.hashsalt'] = 'scaling_grid'
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 4.2))
    predicted = (errors(law, points) + 1) * [point['nats_per_character'] for point in points]
    for text, marker in (('reviews', 'o'), ('docstrings', '^')):
        chosen = [index for index, point in enumerate(points) if point['text'] == text]
        if chosen:
            epochs = np.log2([points[index]['epochs'] for index in chosen])
            measured = [points[index]['nats_per_character'] for index in chosen]
            dots = axes.scatter(measured, predicted[chosen], c=epochs, marker=marker, vmin=0, vmax=5, label=text)
    low, high = min(predicted) * 0.98, max(predicted) * 1.02
    axes.plot([low, high], [low, high], color='gray', linewidth=1)
    axes.set(xlabel='measured, masked-word nats per character', ylabel='fitted')
    axes.legend()
    figure.colorbar(dots, label='log2 of epochs')
    figure.tight_layout()
    figure.savefig(path, metadata={'Date': None})


def main() -> None:
    """Fits, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--runs', type=Path, required=True, help='the --output of benchmarks.scaling_grid')
    add('--machine', default='', help='what the runs were made on')
    add('--file', type=Path, default=_FILE, help='file to write')
    flags = parser.parse_args()
    points = read_points(flags.runs)
    left_out = held_out_errors(points)
    found = content(points, np.concatenate(list(left_out.values())), flags.machine)
    flags.file.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    fitted = found['fit']
    law = Law(**fitted['law'])
    text = table(points, law)
    (flags.runs / 'table.md').write_text(text + '\n', encoding='utf-8')
    draw(points, law, flags.runs / 'scaling_grid.svg')
    print(text, f'\n{law}\nerror {fitted["fitted_error"]:.2%}, held out {fitted["held_out_error"]:.2%}')
    for run, relative in left_out.items():
        if not run.startswith(('check', 'documented')):
            continue
        measured = [point['nats_per_character'] for point in points if point['run'] == run]
        cells = [f'{m:.3f}, predicted {m * (1 + e):.3f} ({e:+.1%})' for m, e in zip(measured, relative, strict=True)]
        print(f'{run}, left out: {"; ".join(cells)}')


if __name__ == '__main__':
    main()
