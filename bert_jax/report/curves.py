"""Charts of the metrics that runs logged, with all runs in one chart, and events marked along the step axis."""

import dataclasses
import itertools
import math
import statistics
from typing import Any

from bert_jax.report.html import Figure, Text
from bert_jax.report.logged import LoggedRun, probes, task_metrics
from bert_jax.report.quantities import (
    GRAD_NORM,
    INPUT_WAIT,
    LEARNING_RATE,
    MLM_ACCURACY,
    MLM_LOSS,
    NSP_ACCURACY,
    OF_OTHER_OBJECTIVES,
    TASK_LOSS,
    THROUGHPUT,
    VALIDATION,
    Quantity,
)
from bert_jax.report.svg import MUTED, PAGE, Drawing, draw, plot_style

_PRETRAINING = (MLM_LOSS, MLM_ACCURACY, *OF_OTHER_OBJECTIVES, NSP_ACCURACY)
_ANY_RUN = (LEARNING_RATE, THROUGHPUT, INPUT_WAIT, GRAD_NORM)
_MAX_POINTS = 150  # a curve with more points is drawn faint, under a curve of means over bins
_NUM_BINS = 75
_MARKERS = {  # Matplotlib's name and HTML's sign for each kind of event
    'restarted': ('^', '▲'),
    'skipped an update': ('x', '×'),
    'rolled back': ('D', '◆'),
}
_PHASE_MARK = '┊', 'next phase'


@dataclasses.dataclass(frozen=True)
class Charts:
    """Charts that share a legend.

    Attributes:
      runs: names of the runs; run i is series i of every figure.
      marks: (sign, meaning) of each kind of event in the figures.
    """

    runs: list[str]
    marks: list[tuple[str, str]]
    figures: list[Figure]


def quantities(runs: list[LoggedRun]) -> list[Quantity]:
    """Returns the quantities to draw, in the order of their charts."""
    of_tasks = [TASK_LOSS, *task_metrics(runs)] if any(run.is_finetune for run in runs) else []
    return [q for q in (*_PRETRAINING, *of_tasks, *probes(runs), *_ANY_RUN) if has_values(q, runs)]


def has_values(quantity: Quantity, runs: list[LoggedRun]) -> bool:
    """Returns whether any run measured a quantity."""
    return any(run.last(quantity.key) is not None or run.validation(quantity) is not None for run in runs)


def charts(runs: list[LoggedRun]) -> Charts:
    """Draws one chart for each quantity that any of the runs logged."""
    occurring = {name for run in runs for name, steps in _event_steps(run).items() if steps}
    figures = []
    for i, quantity in enumerate(quantities(runs)):
        if (drawing := _draw(f'chart{i}', quantity, runs)) is None:
            continue
        baselines = ', '.join(quantity.format(value) for value in _baselines(quantity, runs))
        note = f'baseline {baselines} ({quantity.baseline})' if baselines else ''
        figures.append(Figure(Text(quantity.title, note), drawing))
    marks = [(sign, name) for name, (_, sign) in _MARKERS.items() if name in occurring]
    if any(_last_steps_of_phases(run) for run in runs):
        marks.append(_PHASE_MARK)
    return Charts([run.name for run in runs], marks, figures)


def _baselines(quantity: Quantity, runs: list[LoggedRun]) -> list[float]:
    return sorted({value for run in runs if (value := run.baseline(quantity)) is not None})


def _event_steps(run: LoggedRun) -> dict[str, list[int]]:
    """Returns the steps of a run's events, by kind of event."""
    restarts = [line['step'] for line in run.starts()[1:]]
    rollbacks = [line['step'] for line in run.history if line['event'] == 'back']
    return dict(zip(_MARKERS, (restarts, [step for step, _ in run.skipped()], rollbacks), strict=True))


def _last_steps_of_phases(run: LoggedRun) -> list[int]:
    """Returns the last step of each phase but the last; [] for a run without phases."""
    steps = [phase.train.steps for phase in run.phases.in_phases] if run.phases else []
    return [*itertools.accumulate(steps[:-1])]


def _bin_means(steps: list[int], values: list[float]) -> tuple[list[float], list[float]]:
    """Returns the means of steps and of values over `_NUM_BINS` bins with equally many points."""
    edges = [len(steps) * i // _NUM_BINS for i in range(_NUM_BINS + 1)]
    bins = [(low, high) for low, high in zip(edges, edges[1:], strict=False) if high > low]
    mean_steps, mean_values = ([statistics.fmean(points[low:high]) for low, high in bins] for points in (steps, values))
    return mean_steps, mean_values


def _draw(key: str, quantity: Quantity, runs: list[LoggedRun]) -> Drawing | None:
    """Draws the chart of a quantity, without names of runs; returns None if no run logged it."""
    if not any(run.curve(name)[0] for run in runs for name in (quantity.key, f'{VALIDATION}{quantity.key}')):
        return None
    return draw(key, quantity.title, lambda axes: _plot(axes, quantity, runs))


def _plot(axes: Any, quantity: Quantity, runs: list[LoggedRun]) -> None:
    lowest = math.inf
    for i, run in enumerate(runs):
        style = plot_style(i)
        steps, values = run.curve(quantity.key)
        lowest = min([lowest, *(value for value in values if not math.isnan(value))])
        if len(steps) > _MAX_POINTS and quantity is not LEARNING_RATE:
            axes.plot(steps, values, color=style['color'], alpha=0.25, linewidth=0.7)
            steps, values = _bin_means(steps, values)
        single_point = {'marker': 'o', 'markersize': 3} if len(steps) == 1 else {}
        axes.plot(steps, values, linewidth=1.5, **style, **single_point)
        linewidth = 0 if steps else 0.8  # a line joins the validation points only if there is no training curve
        dots = {'color': style['color'], 'marker': 'o', 'markersize': 4.5, 'markeredgecolor': PAGE}
        axes.plot(*run.curve(f'{VALIDATION}{quantity.key}'), linewidth=linewidth, **dots)
    for value in _baselines(quantity, runs):
        axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    _scale(axes, quantity, lowest)
    reached = max((line['step'] for run in runs for line in run.metrics), default=0)
    for i, run in enumerate(runs):
        colour = plot_style(i)['color'] if len(runs) > 1 else MUTED
        for step in _last_steps_of_phases(run):
            if step < reached:  # the axis ends where the runs have got to
                axes.axvline(step, color=colour, linewidth=0.8, linestyle=(0, (1, 2)))
    for i, run in enumerate(runs):
        for name, steps in _event_steps(run).items():
            marks = {'marker': _MARKERS[name][0], 'markersize': 4.5, 'linewidth': 0, 'color': plot_style(i)['color']}
            axes.plot(steps, [0.03] * len(steps), transform=axes.get_xaxis_transform(), **marks)


def _scale(axes: Any, quantity: Quantity, lowest: float) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator

    if quantity is GRAD_NORM and 0 < lowest < math.inf:
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # because a curve may stay within one decade
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ''))
    elif quantity.is_fraction:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{100 * value:g}%'))
    elif quantity is THROUGHPUT:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(EngFormatter(sep=''))
    axes.xaxis.set_major_formatter(EngFormatter(sep=''))
    axes.set_xlabel('step', color=MUTED)
