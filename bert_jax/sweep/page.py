"""DIR/sweep.html: the table of a sweep, its final losses by setting, the best commands, and the curves.

This module computes the content of the page; `templates/sweep.html` lays it out.
"""

import dataclasses
import math
from typing import Any

from etils import epath

from bert_jax.files import write_whole
from bert_jax.report import charts
from bert_jax.report.curves import Charts
from bert_jax.report.html import Column, ColumnKind, Figure, Group, Table, Text, render
from bert_jax.report.svg import MUTED, draw, plot_style
from bert_jax.sweep.results import (
    Result,
    best_commands,
    cell,
    columns,
    comparable_groups,
    differing_fields,
    notes,
    tabulate,
    title,
    value,
)

_MAX_CURVES = 24  # distinguishable combinations of colour and dash
_LOG_AXIS_RATIO = 8  # largest to smallest value, from which an axis is logarithmic


@dataclasses.dataclass(frozen=True)
class SweepPage:
    """The content of sweep.html; parts without content are None or empty.

    Attributes:
      title: name of the sweep's directory.
      notes: sentences about the table.
      final_losses: the final loss over the field with the most values, one figure per group of comparable runs.
      best_commands: (title of the group, command of its best run).
      failures: (name of the run, end of its log).
      num_not_drawn: number of runs that `charts` omits.
    """

    title: str
    num_runs: int
    num_finished: int
    table: Table
    notes: list[str]
    final_losses: list[Figure]
    best_commands: list[tuple[str, str]]
    failures: list[tuple[str, str]]
    charts: Charts | None
    num_not_drawn: int


def write_page(results: list[Result], directory: str) -> epath.Path:
    """Writes `sweep.html` into a directory and returns its path. The page needs no network and has no corpus text."""
    path = epath.Path(directory) / 'sweep.html'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, render('sweep.html', _page(results, path.parent.name), package='bert_jax.sweep'))
    return path


def _page(results: list[Result], name: str) -> SweepPage:
    groups = comparable_groups(results)
    logged = [result for group in groups for result in group if result.logged]
    drawn = logged[:_MAX_CURVES]
    figures = [_final_losses(group, groups, f'final{i}') for i, group in enumerate(groups)]
    return SweepPage(
        title=name,
        num_runs=len(results),
        num_finished=sum(result.status == 'finished' for result in results),
        table=_table(results, drawn),
        notes=notes(results),
        final_losses=[figure for figure in figures if figure],
        best_commands=best_commands(results),
        failures=[(result.run.name, '\n'.join(result.log_tail)) for result in results if result.log_tail],
        charts=charts([result.logged for result in drawn if result.logged]) if drawn else None,
        num_not_drawn=len(logged) - len(drawn),
    )


def _table(results: list[Result], drawn: list[Result]) -> Table:
    """Returns the table of the sweep; next to each rank is the line style of the run in the charts."""
    tabulated = tabulate(results)
    headings = ['', *tabulated.headings[1:]]
    kinds: list[ColumnKind] = ['number' if is_number else 'text' for is_number in tabulated.is_number]
    groups = []
    for group in tabulated.groups:
        rows = [
            [Text(rank, series=drawn.index(result) if result in drawn else None), *cells]
            for result, (rank, *cells) in group.rows
        ]
        groups.append(Group(rows, group.title))
    return Table([Column(heading, kind) for heading, kind in zip(headings, kinds, strict=True)], groups)


# --- The final loss over the field with the most values. ---


def _final_losses(group: list[Result], groups: list[list[Result]], key: str) -> Figure | None:
    """Returns the final loss of a group over the numeric field with the most values; None if no such field varied.

    There is one line per combination of the other fields.
    """
    losses = [(r, r.final_mlm_loss) for r in group if r.final_mlm_loss is not None and math.isfinite(r.final_mlm_loss)]
    ended = [result for result, _ in losses]
    field = _most_varied(ended)
    if not field:
        return None
    lines: dict[str, list[tuple[float, float]]] = {}
    varied = columns(result.run for result in ended)
    others = [name for name in varied if name != field and len({cell(r.run, name) for r in ended}) > 1]
    for result, loss in losses:
        combination = ', '.join(
            cell(result.run, name) if not name else f'{varied[name]}={cell(result.run, name)}' for name in others
        )
        lines.setdefault(combination, []).append((value(result.run, field), loss))
    drawing = draw(key, f'Final MLM loss over {field}', lambda axes: _fill(axes, field, lines))
    note = title(group, differing_fields(groups)) if len(groups) > 1 else ''
    return Figure(Text(f'Final MLM loss over {varied[field]}', note), drawing, list(filter(None, lines)))


def _fill(axes: Any, field: str, lines: dict[str, list[tuple[float, float]]]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    values = sorted({x for points in lines.values() for x, _ in points})
    for i, points in enumerate(lines.values()):
        x, y = zip(*sorted(points), strict=True)
        axes.plot(x, y, marker='o', markersize=4.5, linewidth=1.5, **plot_style(i))
    if values[0] > 0 and values[-1] >= _LOG_AXIS_RATIO * values[0]:
        axes.set_xscale('log')
    if len(values) <= 8:
        axes.set_xticks(values)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(field.rpartition('.')[2].replace('_', ' '), color=MUTED)


def _most_varied(results: list[Result]) -> str:
    """Returns the numeric column with the most distinct values; '' if none has two."""
    counts: dict[str, int] = {}
    for field in filter(None, columns(result.run for result in results) if results else ()):
        tried = {value(result.run, field) for result in results}
        if all(type(each) in (int, float) for each in tried):
            counts[field] = len(tried)
    best = max(counts, key=counts.__getitem__, default='')
    return best if counts.get(best, 0) > 1 else ''
