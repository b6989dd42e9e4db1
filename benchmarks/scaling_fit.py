"""Fits the law of `bert-jax advise` to the runs of benchmarks/scaling_grid.py, and writes the file, table and figure.

    python -m benchmarks.scaling_fit --runs=runs/scaling --machine='two cores of an AMD EPYC'

Writes bert_jax/advise/runs.json (points, coefficients, error), and in --runs table.md and scaling_grid.svg. The points
are those of the finished runs of the grid and its checks, and two longer runs that the documentation describes. The fit
minimizes the errors of the logarithm of the loss, with a factor for each text and with priors at the published
exponents (0.35) and the published R of repetitions (15.4), because a small grid does not determine all coefficients.
The held-out error is that of runs left out of the fit, one run with all its budgets at a time; the checks are printed.
Points whose loss is above 65% of the baseline know little more than the frequencies of tokens: they have not left the
plateau at the beginning of training, which no power law describes, and are listed but not fitted.
"""

import argparse
import dataclasses
import datetime
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import least_squares

from bert_jax.advise.law import PLATEAU, PUBLISHED, Law, encoder_parameters

_FILE = Path(__file__).resolve().parent.parent / 'bert_jax' / 'advise' / 'runs.json'
_ERROR = 0.01  # of the logarithm of a loss, in units of which the priors count
_REFITS = 60
_STARTS = ((0.1, 2.0, 2.0), (0.3, 5.0, 20.0), (0.2, 1.0, 100.0))  # E, A, B

TEXT_SPREAD = 0.1  # of the logarithm of the loss, between texts
# (centre, width) of the priors on the logarithms of E, A, alpha, B, beta and R. That of B lets a small model leave the
# plateau after some million characters; trial runs were still there after five.
_PRIORS = (
    (math.log(0.2), 0.5), (math.log(5.0), 3.0), (math.log(PUBLISHED.alpha), 0.2),
    (math.log(40.0), 0.5), (math.log(PUBLISHED.beta), 0.1), (math.log(PUBLISHED.R), 0.5),
)  # fmt: skip
Point = dict[str, Any]

# Runs of the documentation: docs/getting-started/quickstart.md, and docs/benchmarks/pretraining-pays.md (bert_jax).
# Characters are tokens times the characters per token of their vocabularies of 8,192.
DOCUMENTED: tuple[Point, ...] = (
    {
        'run': 'documented-quickstart', 'text': 'docstrings', 'size': 'L2_H128', 'encoder_parameters': 393_216,
        'corpus_characters': 14_200_000, 'characters': 28_800_000, 'unique_characters': 14_200_000,
        'epochs': 28.8 / 14.2, 'steps': 3100, 'nats_per_character': 1.452, 'unigram_nats_per_character': 3.133,
    },
    {
        'run': 'documented-pretraining-pays', 'text': 'reviews', 'size': 'L4_H128', 'encoder_parameters': 786_432,
        'corpus_characters': 64_150_000, 'characters': 94_000_000, 'unique_characters': 64_150_000,
        'epochs': 94 / 64.15, 'steps': 11_449, 'nats_per_character': 1.541, 'unigram_nats_per_character': 3.054,
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


def is_learned(point: Point) -> bool:
    """Whether a run has learned more than the frequencies of tokens."""
    return point['nats_per_character'] < PLATEAU * point['unigram_nats_per_character']


class Fit(NamedTuple):
    """A law, and the factor of each text, by which its losses differ from those of the law."""

    law: Law
    factors: dict[str, float]


def fit(points: Sequence[Point]) -> Fit:
    """Fits a law to points: masked-word nats per character over the unigram baseline."""
    texts = sorted({point['text'] for point in points})
    columns, losses = _columns(points), np.log(_relative_losses(points))
    of_text = np.array([texts.index(point['text']) for point in points])
    centres, widths = np.array([*_PRIORS, *[(0.0, TEXT_SPREAD)] * len(texts)]).T

    def residuals(theta: np.ndarray) -> np.ndarray:
        law, factors = _law(theta), theta[len(_PRIORS) :]
        predicted = np.log(_predicted(law, columns)) + factors[of_text]
        return np.concatenate([(predicted - losses) / _ERROR, (theta - centres) / widths])

    found = [
        least_squares(residuals, np.concatenate([[math.log(E), math.log(A), start[2], math.log(B)], start[4:]]))
        for E, A, B in _STARTS
        for start in [centres]
    ]
    theta = min(found, key=lambda each: each.cost).x
    return Fit(_law(theta), dict(zip(texts, np.exp(theta[len(_PRIORS) :]).tolist(), strict=True)))


def _law(theta: np.ndarray) -> Law:
    E, A, alpha, B, beta, R = np.exp(theta[: len(_PRIORS)]).tolist()
    return Law(E, A, alpha, B, beta, R)


def _columns(points: Sequence[Point]) -> np.ndarray:
    """Returns [3, points]: parameters, characters, distinct characters."""
    names = ('encoder_parameters', 'characters', 'unique_characters')
    return np.array([[point[name] for point in points] for name in names], float)


def _relative_losses(points: Sequence[Point]) -> np.ndarray:
    return np.array([point['nats_per_character'] / point['unigram_nats_per_character'] for point in points])


def _predicted(law: Law, columns: np.ndarray) -> np.ndarray:
    return np.array([law(*each) for each in columns.T.tolist()])


def errors(found: Fit, points: Sequence[Point]) -> np.ndarray:
    """Returns the relative errors of the predictions; a text that was not fitted has a factor of 1."""
    factors = np.array([found.factors.get(point['text'], 1.0) for point in points])
    return _predicted(found.law, _columns(points)) * factors / _relative_losses(points) - 1


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
    return [fit([point for run in sample for point in run]).law for sample in samples]


def content(points: list[Point], left_out: np.ndarray, machine: str) -> dict[str, Any]:
    """Returns the content of runs.json; left_out: errors of the points when their runs are left out."""
    fitted = [point for point in points if is_learned(point)]
    found = fit(fitted)
    return {
        'origin': {
            'command': 'python -m benchmarks.scaling_grid --text=reviews.jsonl.gz --output=runs/scaling --workers=2',
            'fit': 'python -m benchmarks.scaling_fit --runs=runs/scaling',
            'machine': machine,
            'date': datetime.date.today().isoformat(),
        },
        'fit': {
            'law': dataclasses.asdict(found.law),
            'text_factors': found.factors,
            'text_spread': TEXT_SPREAD,
            'held_out_error': float(np.sqrt(np.mean(left_out**2))),
            'fitted_error': float(np.sqrt(np.mean(errors(found, fitted) ** 2))),
            'refits': [dataclasses.asdict(each) for each in refits(fitted)],
        },
        'points': [point | {'is_fitted': is_learned(point)} for point in points],
    }


def table(points: list[Point], found: Fit) -> str:
    """Returns a Markdown table with a row per corpus and size, and a column per budget."""
    steps = sorted({point['steps'] for point in points})
    lines = [
        '| text | corpus | size | parameters of the layers | ' + ' | '.join(f'{step:,} steps' for step in steps) + ' |',
        '|---|--:|---|--:|' + '--:|' * len(steps),
    ]
    by_run: dict[tuple[str, int, int, str], dict[int, str]] = {}
    for point, error in zip(points, errors(found, points), strict=True):
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


def draw(points: list[Point], found: Fit, path: Path) -> None:
    """Draws measured against predicted losses."""
    import matplotlib

    matplotlib.use('svg')
    matplotlib.rcParams['svg.hashsalt'] = 'scaling_grid'
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 4.2))
    predicted = (errors(found, points) + 1) * [point['nats_per_character'] for point in points]
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
    fitted_points = [point for point in points if is_learned(point)]
    left_out = held_out_errors(fitted_points)
    found = content(points, np.concatenate(list(left_out.values())), flags.machine)
    flags.file.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    fitted = found['fit']
    law = Fit(Law(**fitted['law']), fitted['text_factors'])
    text = table(points, law)
    (flags.runs / 'table.md').write_text(text + '\n', encoding='utf-8')
    draw(points, law, flags.runs / 'scaling_grid.svg')
    print(text, f'\n{law}\nerror {fitted["fitted_error"]:.2%}, held out {fitted["held_out_error"]:.2%}')
    for run, relative in left_out.items():
        if not run.startswith(('check', 'documented')):
            continue
        measured = [point['nats_per_character'] for point in fitted_points if point['run'] == run]
        cells = [f'{m:.3f}, predicted {m * (1 + e):.3f} ({e:+.1%})' for m, e in zip(measured, relative, strict=True)]
        print(f'{run}, left out: {"; ".join(cells)}')


if __name__ == '__main__':
    main()
