"""The table and the figure of `benchmarks.recipes`."""

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Runs = Mapping[str, list[dict[str, Any] | None]]  # kind of part -> result of each seed; None while it is not finished


class _Metric(NamedTuple):
    """A column of the table and a panel of the figure: the value `key` of parts of a kind."""

    title: str
    kind: str
    key: str
    scale: float
    form: str

    def values(self, runs: Runs) -> list[float]:
        """Returns what was measured; a run whose objective fills no masks has no masked words."""
        return [self.scale * run[self.key] for run in runs[self.kind] if run and run.get(self.key) is not None]


_METRICS = (
    _Metric('masked words, nats per character', 'pretrain', 'masked_word_nats_per_character', 1, '{:.3f}'),
    _Metric('SST-2 accuracy, 1,000 examples', 'sst2', 'accuracy', 100, '{:.1f}'),
    _Metric('WikiANN entity F1', 'wikiann', 'entity_f1', 100, '{:.1f}'),
)
KINDS = tuple(metric.kind for metric in _METRICS)


def table(found: Mapping[str, Runs], names: Mapping[str, str]) -> str:
    """Formats the results as a Markdown table: one row per recipe, medians with the smallest and the largest value."""
    header = ['recipe', 'steps', *(metric.title for metric in _METRICS), 'seeds']
    rows = [header, ['---', *['--:'] * (len(header) - 1)]]
    for recipe, runs in found.items():
        if done := [run for run in runs['pretrain'] if run]:
            steps = f'{statistics.median(run["steps"] for run in done):,.0f}'
            cells = [_range(metric.values(runs), metric.form.format) for metric in _METRICS]
            rows.append([names[recipe], steps, *cells, str(len(done))])
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def _range(values: list[float], form: Callable[[float], str]) -> str:
    if len(values) < 2:
        return ''.join(map(form, values))
    return f'{form(statistics.median(values))} ({form(min(values))} to {form(max(values))})'


def draw(found: Mapping[str, Runs], base: str, path: Path) -> None:
    """Draws one panel per metric, with a row per recipe: a dot per seed and a bar at their median.

    Args:
      base: the recipe whose median is a line through all rows.
    """
    import matplotlib
    from matplotlib.figure import Figure

    recipes = [recipe for recipe, runs in found.items() if any(runs['pretrain'])]
    with matplotlib.rc_context({'font.size': 9, 'svg.hashsalt': 'recipes', 'svg.fonttype': 'none'}):
        figure = Figure(figsize=(9.0, 1.0 + 0.28 * len(recipes)), layout='constrained')
        panels = figure.subplots(1, len(_METRICS), sharey=True)
        for axes, metric in zip(panels, _METRICS, strict=True):
            for y, recipe in enumerate(recipes):
                if values := metric.values(found[recipe]):
                    axes.plot(values, [y] * len(values), 'o', color='#2b6cb0', alpha=0.7, markersize=5)
                    axes.vlines(statistics.median(values), y - 0.32, y + 0.32, color='#1a365d', linewidth=1.8)
            if base in found and (values := metric.values(found[base])):
                axes.axvline(statistics.median(values), color='#bbbbbb', linestyle='--', linewidth=1, zorder=0)
            axes.set_title(metric.title, fontsize=9)
            axes.spines[['top', 'right']].set_visible(False)
        panels[0].set_yticks(range(len(recipes)), recipes)
        panels[0].set_ylim(len(recipes) - 0.5, -0.5)
        panels[0].invert_xaxis()  # less is better: better is right in every panel
        figure.savefig(path, metadata={'Date': None})
