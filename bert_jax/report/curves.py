"""The charts: what runs logged, over each other, with what happened to them as marks on the axis of steps."""

import html
import math
import statistics
from typing import Any

from bert_jax.report.html import MUTED, PAGE, draw, line_of, swatch
from bert_jax.report.quantities import (
    GRAD_NORM,
    INPUT_WAIT,
    LEARNING_RATE,
    MLM_ACCURACY,
    MLM_LOSS,
    NSP_ACCURACY,
    NSP_LOSS,
    TASK_LOSS,
    THROUGHPUT,
    VALIDATION,
    Quantity,
)
from bert_jax.report.runs import Run, probes, task_figures

_PRETRAINING = (MLM_LOSS, MLM_ACCURACY, NSP_ACCURACY)
_OF_ALL = (LEARNING_RATE, THROUGHPUT, INPUT_WAIT, GRAD_NORM)
_SMOOTHED_FROM = 150  # points; longer curves are drawn faint, with their mean in so many bins on top
_BINS = 75
_MARKS = {'started again': ('^', '▲'), 'skipped an update': ('x', '×'), 'went back': ('D', '◆')}  # Matplotlib's, HTML's


def quantities(runs: list[Run]) -> list[Quantity]:
    """What the charts of runs are of, in their order."""
    of_tasks = [TASK_LOSS, *task_figures(runs)] if any(run.is_finetune for run in runs) else []
    return [q for q in (*_PRETRAINING, *of_tasks, *probes(runs), *_OF_ALL) if is_shown(q, runs)]


def is_shown(quantity: Quantity, runs: list[Run]) -> bool:
    """Whether any run measured it; without pairs the logged numbers of sentence prediction mean nothing."""
    if quantity in (NSP_LOSS, NSP_ACCURACY):
        runs = [run for run in runs if run.has_pairs]
    return any(run.last(quantity.key) is not None or run.validation(quantity) is not None for run in runs)


def charts(runs: list[Run]) -> str:
    """The curves of runs over each other, as HTML, with a legend; `swatch(i)` is the i-th run's line."""
    entries = [f'<span>{swatch(i)}<b>{html.escape(run.name)}</b></span>' for i, run in enumerate(runs)]
    if len(runs) == 1:
        entries = [f'<span>{swatch(0)}training</span>']
    entries.append('<span><span class="dot"></span>validation</span><span><span class="dash"></span>baseline</span>')
    marked = {name for run in runs for name, steps in _marks(run).items() if steps}
    entries += [f'<span>{sign} {name}</span>' for name, (_, sign) in _MARKS.items() if name in marked]
    figures = []
    for number, quantity in enumerate(quantities(runs)):
        drawing = _draw(f'chart{number}', quantity, runs)
        if not drawing:
            continue
        baselines = sorted({value for run in runs if (value := run.baseline(quantity)) is not None})
        shown = ', '.join(quantity.show(value) for value in baselines)
        note = f' <small>{quantity.baseline} {shown}</small>' if shown else ''
        figures.append(f'<figure><figcaption>{html.escape(quantity.title)}{note}</figcaption>{drawing}</figure>')
    return f'<div class="legend">{"".join(entries)}</div><div class="charts">{"".join(figures)}</div>'


def _marks(run: Run) -> dict[str, list[int]]:
    """The steps at which something happened."""
    again = [line['step'] for line in run.starts()[1:]]
    back = [line['step'] for line in run.history if line['event'] == 'back']
    return dict(zip(_MARKS, (again, [step for step, _ in run.skipped()], back), strict=True))


def _bin_means(steps: list[int], values: list[float]) -> tuple[list[float], list[float]]:
    """Means over `_BINS` equal runs of points, of steps and of values."""
    edges = [len(steps) * i // _BINS for i in range(_BINS + 1)]
    bins = [(low, high) for low, high in zip(edges, edges[1:], strict=False) if high > low]
    return tuple([statistics.fmean(points[low:high]) for low, high in bins] for points in (steps, values))


def _draw(key: str, quantity: Quantity, runs: list[Run]) -> str:
    """One chart as an `<svg>` element, or '' when no run logged the quantity. No name of a run goes in."""
    if not any(run.curve(name)[0] for run in runs for name in (quantity.key, f'{VALIDATION}{quantity.key}')):
        return ''
    return draw(key, quantity.title, lambda axes: _fill(axes, quantity, runs))


def _fill(axes: Any, quantity: Quantity, runs: list[Run]) -> None:
    lowest = math.inf
    for i, run in enumerate(runs):
        line = line_of(i)
        steps, values = run.curve(quantity.key)
        lowest = min([lowest, *(value for value in values if not math.isnan(value))])
        if len(steps) > _SMOOTHED_FROM and quantity is not LEARNING_RATE:
            axes.plot(steps, values, color=line['color'], alpha=0.25, linewidth=0.7)
            steps, values = _bin_means(steps, values)
        lone = {'marker': 'o', 'markersize': 3} if len(steps) == 1 else {}
        axes.plot(steps, values, linewidth=1.5, **line, **lone)
        held_out = f'{VALIDATION}{quantity.key}'
        joined = 0 if steps else 0.8  # a figure that training does not have
        style = {'color': line['color'], 'marker': 'o', 'markersize': 4.5, 'markeredgecolor': PAGE}
        axes.plot(*run.curve(held_out), linewidth=joined, **style)
    baselines = sorted({value for run in runs if (value := run.baseline(quantity)) is not None})
    for value in baselines:
        axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    _scale(axes, quantity, lowest)
    for i, run in enumerate(runs):
        for name, steps in _marks(run).items():
            style = {'marker': _MARKS[name][0], 'markersize': 4.5, 'linewidth': 0, 'color': line_of(i)['color']}
            axes.plot(steps, [0.03] * len(steps), transform=axes.get_xaxis_transform(), **style)


def _scale(axes: Any, quantity: Quantity, lowest: float) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator

    if quantity is GRAD_NORM and 0 < lowest < math.inf:
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # a curve may stay within a decade
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ''))
    elif quantity.percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{100 * value:g} %'))
    elif quantity is THROUGHPUT:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(EngFormatter(sep=''))
    axes.xaxis.set_major_formatter(EngFormatter(sep=''))
    axes.set_xlabel('step', color=MUTED)
