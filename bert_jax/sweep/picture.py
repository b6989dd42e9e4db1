"""DIR/sweep.html: the table of a sweep, what its losses depend on, its curves over each other, what to type next."""

import html
import math
from typing import Any

from etils import epath

from bert_jax.files import write_whole
from bert_jax.report import charts
from bert_jax.report.html import MUTED, draw, line_of, page, swatch
from bert_jax.sweep.results import (
    Result,
    at_the_end_of_their_range,
    best_commands,
    cell,
    columns,
    differing,
    headings,
    numbers,
    tasks,
    title,
    value,
    why_not_ranked,
)

_MOST_CURVES = 24  # as many as colours and dashes tell apart
_LOG_AXIS_FROM = 8  # largest by smallest value


def write_picture(results: list[Result], directory: str) -> epath.Path:
    """Writes `sweep.html` into a directory and returns its path; it needs no network and holds no corpus text."""
    path = epath.Path(directory) / 'sweep.html'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, _page(results, path.parent.name))
    return path


def _page(results: list[Result], name: str) -> str:
    groups = tasks(results)
    drawn = [result for group in groups for result in group if result.logged][:_MOST_CURVES]
    finished = sum(result.status == 'finished' for result in results)
    escaped = html.escape(name)
    parts = [f'<h1>{escaped}</h1><p>{finished} of {len(results)} runs finished</p>']
    parts.append(f'<h2>Runs</h2>{_table(groups, drawn)}')
    notes = [*filter(None, [why_not_ranked(groups)]), *at_the_end_of_their_range(groups)]
    parts += [f'<p>{html.escape(note)}</p>' for note in notes]
    if pictures := [_against(group, groups, number) for number, group in enumerate(groups)]:
        parts.append(f'<div class="charts" style="margin-top: 1.2rem">{"".join(pictures)}</div>')
    if commands := best_commands(results):
        shown = ''.join(_command(*command) for command in commands)
        parts.append(f'<h2>The best, to type</h2>{shown}')
    failed = [result for result in results if result.log_tail]
    if failed:
        parts.append('<h2>What failed</h2>' + ''.join(_failure(result) for result in failed))
    if drawn:
        left_out = sum(result.logged is not None for result in results) - len(drawn)
        note = f'<p>The first {_MOST_CURVES} runs of the table; {left_out} more are not drawn.</p>' if left_out else ''
        parts.append(f'<h2>Curves</h2>{note}{charts([result.logged for result in drawn])}')
    return page(name, '\n'.join(parts))


def _table(groups: list[list[Result]], drawn: list[Result]) -> str:
    results = [result for group in groups for result in group]
    varied = columns(result.run for result in results)
    shown = headings(results)[1:]
    head = ['', *varied.values(), *shown, 'status']
    is_number = [False] * (1 + len(varied)) + [True] * len(shown) + [False]
    names, body = differing(groups), []
    for group in groups:
        if len(groups) > 1:
            heading = html.escape(title(group, names))
            body.append(f'<tr class="group"><th colspan="{len(head)}">{heading}</th></tr>')
        for result in group:
            rank, *rest = numbers(result)
            line = swatch(drawn.index(result)) if result in drawn else ''
            cells = [*(cell(result.run, field) for field in varied), *rest, result.status]
            row = [f'<span style="white-space: nowrap">{line}{rank}</span>', *map(html.escape, cells)]
            body.append('<tr>' + ''.join(map(_cell, row, is_number)) + '</tr>')
    top = ''.join(
        f'<th{" class=number" if n else ""}>{html.escape(h)}</th>' for h, n in zip(head, is_number, strict=True)
    )
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        '<p>Losses in nats on held-out text, the last and the lowest; tokens/s the median of a run.</p>'
    )


def _cell(content: str, is_number: bool) -> str:
    return f'<td class="number">{content}</td>' if is_number else f'<td>{content}</td>'


def _command(group: str, command: str) -> str:
    heading = f'<h3>{html.escape(group)}</h3>' if group else ''
    return f'{heading}<pre>{html.escape(command)}</pre>'


def _failure(result: Result) -> str:
    lines = html.escape('\n'.join(result.log_tail))
    return f'<h3>{html.escape(result.run.name)}</h3><pre>{lines}</pre>'


# --- The final loss against what varied most. ---


def _against(group: list[Result], groups: list[list[Result]], number: int) -> str:
    """The final loss of a group over the number that varied most, a line for each value of the rest; '' without one."""
    ended = [r for r in group if r.final_mlm_loss is not None and math.isfinite(r.final_mlm_loss)]
    field = _most_varied(ended)
    if not field:
        return ''
    lines: dict[str, list[tuple[float, float]]] = {}
    varied = columns(result.run for result in ended)
    for result in ended:
        others = [name for name in varied if name != field and len({cell(r.run, name) for r in ended}) > 1]
        rest = ', '.join(
            cell(result.run, name) if not name else f'{varied[name]}={cell(result.run, name)}' for name in others
        )
        lines.setdefault(rest, []).append((value(result.run, field), result.final_mlm_loss))
    svg = draw(f'against{number}', f'Final MLM loss over {field}', lambda axes: _fill(axes, field, lines))
    legend = ''.join(f'<span>{swatch(i)}<b>{html.escape(name)}</b></span>' for i, name in enumerate(lines) if name)
    of = f' <small>{html.escape(title(group, differing(groups)))}</small>' if len(groups) > 1 else ''
    caption = f'Final MLM loss over {html.escape(varied[field])}{of}'
    return f'<figure><figcaption>{caption}</figcaption><div class="legend">{legend}</div>{svg}</figure>'


def _fill(axes: Any, field: str, lines: dict[str, list[tuple[float, float]]]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    values = sorted({x for points in lines.values() for x, _ in points})
    for i, points in enumerate(lines.values()):
        x, y = zip(*sorted(points), strict=True)
        axes.plot(x, y, marker='o', markersize=4.5, linewidth=1.5, **line_of(i))
    if values[0] > 0 and values[-1] >= _LOG_AXIS_FROM * values[0]:
        axes.set_xscale('log')
    if len(values) <= 8:
        axes.set_xticks(values)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(field.rpartition('.')[2].replace('_', ' '), color=MUTED)


def _most_varied(results: list[Result]) -> str:
    """The numeric column with the most values among results, '' when none has two."""
    counts = {}
    for field in filter(None, columns(result.run for result in results) if results else ()):
        tried = {value(result.run, field) for result in results}
        if all(type(number) in (int, float) for number in tried):
            counts[field] = len(tried)
    best = max(counts, key=counts.get, default='')
    return best if counts.get(best, 0) > 1 else ''
