"""Formats the results of `benchmarks.finetuning` as Markdown."""

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

METRIC_NAMES = {
    'accuracy': 'accuracy',
    'f1': 'F1',
    'matthews': 'Matthews',
    'pearson': 'Pearson',
    'entity_f1': 'entity F1',
    'exact_match': 'exact match',
}


class Compared(Protocol):
    """What the tables read of a `benchmarks.finetuning.Comparison`."""

    @property
    def name(self) -> str: ...

    @property
    def encoder(self) -> Path: ...

    @property
    def steps(self) -> int | None: ...

    @property
    def flags(self) -> Any: ...

    def results(self, side: str) -> list[dict[str, Any]]:
        """Returns the results of a side's finished runs: metrics, constant, examples_per_second, minutes."""
        ...


def page(comparisons: Sequence[Compared]) -> str:
    """Returns the settings, the table of metrics and the table of speeds; both leave out unfinished comparisons."""
    flags = comparisons[0].flags
    settings = (
        f'Batches of {flags.batch}, at most {flags.length} positions, peak learning rate {flags.learning_rate:g}, '
        f'{flags.dtype}, {os.cpu_count()} CPU cores.'
    )
    measured = [each for each in comparisons if each.results('bert_jax') and each.results('Trainer')]
    quality = _quality([each for each in measured if each.steps is None])
    return '\n'.join([settings, '', *quality, '', *_speed(measured), ''])


def _quality(comparisons: Sequence[Compared]) -> list[str]:
    lines = [
        '| encoder | task | metric | bert_jax | Trainer | difference | most frequent class | seeds |',
        '|---|---|---|--:|--:|--:|--:|--:|',
    ]
    for each in comparisons:
        ours, theirs = each.results('bert_jax'), each.results('Trainer')
        seeds = f'{len(ours)}' if len(ours) == len(theirs) else f'{len(ours)}, {len(theirs)}'
        for metric in filter(ours[0]['metrics'].__contains__, METRIC_NAMES):
            values = [[result['metrics'][metric] for result in results] for results in (ours, theirs)]
            difference = 100 * (statistics.median(values[0]) - statistics.median(values[1]))
            constant = ours[0]['constant'].get(metric)
            cells = [
                describe(each.encoder),
                each.name,
                METRIC_NAMES[metric],
                *map(median_and_deviation, values),
                f'{difference:+.1f}',
                '' if constant is None else f'{100 * constant:.1f}',
                seeds,
            ]
            lines.append(f'| {" | ".join(cells)} |')
    return lines


def _speed(comparisons: Sequence[Compared]) -> list[str]:
    lines = [
        '| encoder | task | bert_jax, examples/s | Trainer | ratio | bert_jax, minutes | Trainer | runs |',
        '|---|---|--:|--:|--:|--:|--:|--:|',
    ]
    for each in comparisons:
        ours, theirs = each.results('bert_jax'), each.results('Trainer')
        speeds, minutes = (
            [statistics.median(result[key] for result in results) for results in (ours, theirs)]
            for key in ('examples_per_second', 'minutes')
        )
        cells = [
            describe(each.encoder),
            each.name,
            *(f'{speed:,.1f}' if speed < 100 else f'{speed:,.0f}' for speed in speeds),
            f'{speeds[0] / speeds[1]:.2f}',
            *(f'{each:.1f}' for each in minutes),
            f'{len(ours)}' if len(ours) == len(theirs) else f'{len(ours)}, {len(theirs)}',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def describe(encoder: Path) -> str:
    """Returns the size of a Hugging Face encoder and its dropout rates: `2 layers of 128, no dropout`."""
    settings = json.loads((encoder / 'config.json').read_text())
    size = f'{settings["num_hidden_layers"]} layers of {settings["hidden_size"]}'
    rates = {
        settings[f'{part}_dropout_prob' if part == 'hidden' else f'{part}_probs_dropout_prob']
        for part in ('hidden', 'attention')
    }
    return f'{size}, ' + (f'dropout {" and ".join(map(str, sorted(rates)))}' if any(rates) else 'no dropout')


def median_and_deviation(values: list[float]) -> str:
    """Formats fractions in percent: `median ± standard deviation`."""
    deviation = f' ± {100 * statistics.stdev(values):.1f}' if len(values) > 1 else ''
    return f'{100 * statistics.median(values):.1f}{deviation}'
