"""A run, or several side by side, as one self-contained HTML page, and in short for a terminal.

Reads what a run leaves in its workdir (`config.json`, `metrics.jsonl`, `evaluation.json`); nothing of the corpus.
"""

import collections
import dataclasses
import html
import json
import math
import os
import statistics
from typing import Any

from etils import epath

from bert_jax.errors import BadInput
from bert_jax.evaluation import ranking
from bert_jax.files import write_whole
from bert_jax.page import MUTED, PAGE, draw, line_of, page, swatch

_SMOOTHED_FROM = 150  # points; longer curves are drawn faint, with their mean in so many bins on top
_BINS = 75


@dataclasses.dataclass(frozen=True)
class _Quantity:
    """One logged number: how it is called, and what it should be read next to."""

    key: str
    title: str
    baseline: str = ''  # what the baseline is
    baseline_key: str = ''  # its key in evaluation.json
    chance: float | None = None  # or its value
    percent: bool = False

    def show(self, value: float | None) -> str:
        if value is None:
            return '–'
        if not math.isfinite(value):
            return str(value)
        return f'{100 * value:.1f} %' if self.percent else f'{value:.3f}'


_MLM_LOSS = _Quantity('mlm_loss', 'MLM loss', 'unigram entropy', 'unigram_entropy')
_MLM_ACCURACY = _Quantity('mlm_accuracy', 'MLM accuracy', 'most frequent token', 'most_frequent_accuracy', percent=True)
_NSP_LOSS = _Quantity('nsp_loss', 'NSP loss', 'chance', chance=math.log(2))
_NSP_ACCURACY = _Quantity('nsp_accuracy', 'NSP accuracy', 'chance', chance=0.5, percent=True)
_LEARNING_RATE = _Quantity('learning_rate', 'Learning rate')
_THROUGHPUT = _Quantity('tokens_per_second', 'Throughput (tokens per second)')
_GRAD_NORM = _Quantity('grad_norm', 'Gradient norm')
_MFU = _Quantity('mfu', 'MFU', percent=True)
_INPUT_WAIT = _Quantity('input_wait_fraction', 'Waiting for input', percent=True)
_WORDS = _Quantity(ranking.WORDS, 'Nats/char', 'character frequencies', 'unigram_nats_per_character')
_CHARTS = (_MLM_LOSS, _MLM_ACCURACY, _NSP_ACCURACY, _LEARNING_RATE, _THROUGHPUT, _GRAD_NORM)
_FINAL = (_MLM_LOSS, _MLM_ACCURACY, _NSP_LOSS, _NSP_ACCURACY, _WORDS)
_LOGGED = {q.key for q in (*_CHARTS, *_FINAL, _MFU, _INPUT_WAIT)} | {'loss'}
_CHECKED = _LOGGED | {f'validation/{q.key}' for q in _FINAL}


# --- Reading ---


@dataclasses.dataclass(frozen=True)
class Run:
    """What a workdir says about itself."""

    name: str
    document: dict[str, Any]  # config.json
    metrics: list[dict[str, Any]]  # one a step, steps ascending
    evaluation: dict[str, Any]  # empty: not evaluated

    @property
    def step(self) -> int:
        return self.metrics[-1]['step']

    @property
    def planned_steps(self) -> int | None:
        train = self.document['config'].get('train')
        steps = train.get('steps') if isinstance(train, dict) else None
        return steps if isinstance(steps, int) else None

    @property
    def has_pairs(self) -> bool:
        data = self.document['config'].get('data')
        return not (isinstance(data, dict) and data.get('pairing') == 'none')

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of what was logged under `key`."""
        points = [(line['step'], line[key]) for line in self.metrics if line.get(key) is not None]
        return [step for step, _ in points], [value for _, value in points]

    def last(self, key: str) -> float | None:
        values = self.curve(key)[1]
        return values[-1] if values else None

    @property
    def figures(self) -> ranking.Figures:
        merged: dict[str, Any] = {}
        for line in self.metrics:
            merged |= line
        return ranking.Figures(self.step, self.evaluation, merged, self.document['config'].get('probe'))

    def validation(self, quantity: _Quantity) -> float | None:
        value = self.evaluation.get(quantity.key)
        return value if value is not None else self.last(f'validation/{quantity.key}')

    def baseline(self, quantity: _Quantity) -> float | None:
        return self.evaluation.get(quantity.baseline_key) if quantity.baseline_key else quantity.chance


def rank(runs: list[Run]) -> list[str]:
    """The runs from the best by what all were measured by alike, a line each, and why; nothing where there is none."""
    measure = ranking.common_measure([run.figures for run in runs])
    if measure is None:
        return []
    order = sorted(range(len(runs)), key=measure.scores.__getitem__)
    places = [f'{place}. {runs[i].name}  {measure.show(measure.values[i])}' for place, i in enumerate(order, 1)]
    return [measure.why[0].upper() + measure.why[1:] + '.', *places]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_object(path: epath.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise BadInput(str(path), f'is not JSON ({_reason(error)})', 'a JSON object') from None
    if not isinstance(value, dict):
        raise BadInput(str(path), f'holds a {type(value).__name__}', 'a JSON object')
    return value


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f'{error.msg}, line {error.lineno}, column {error.colno}'
    return 'not UTF-8'


def _read_metrics(path: epath.Path, workdir: str) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl merged by step; a last line cut off by a kill is passed over."""
    again = f'python -m bert_jax train --workdir={workdir}'
    if not path.exists():
        raise BadInput(str(path), 'there is no such file', 'the metrics of a run that has logged a step', again)
    lines = path.read_bytes().split(b'\n')
    steps: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        where, expected = f'{path}:{number}', 'a JSON object with an integer `step`'
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no newline after it: half-written
                continue
            raise BadInput(where, f'is not JSON ({_reason(error)})', expected) from None
        if not isinstance(values, dict) or type(values.get('step')) is not int:
            raise BadInput(where, 'is JSON of another kind', expected)
        for key in _CHECKED & values.keys():
            if values[key] is not None and not _is_number(values[key]):
                raise BadInput(where, f'{key} is of type {type(values[key]).__name__}', 'a number')
        steps.setdefault(values['step'], {}).update(values)
    if not steps:
        raise BadInput(str(path), 'holds no complete line yet', 'at least one logged step', again)
    return [steps[step] for step in sorted(steps)]


def read_run(workdir: str, name: str) -> Run:
    """What a workdir's files say, under a name.

    Raises:
      BadInput: for a missing or broken file, or when no step is logged yet.
    """
    directory = epath.Path(workdir)
    config_path = directory / 'config.json'
    if not config_path.exists():
        raise BadInput(str(config_path), 'there is no such file', 'the workdir of a run')
    document = _read_object(config_path)
    if not isinstance(document.get('config'), dict):
        raise BadInput(str(config_path), 'has no `config`', 'a JSON object with the resolved config under `config`')
    metrics = _read_metrics(directory / 'metrics.jsonl', workdir)
    evaluation_path = directory / 'evaluation.json'
    evaluation = _read_object(evaluation_path) if evaluation_path.exists() else {}
    for key in [q.key for q in _FINAL] + [q.baseline_key for q in _FINAL if q.baseline_key]:
        if evaluation.get(key) is not None and not _is_number(evaluation[key]):
            raise BadInput(str(evaluation_path), f'{key} is of type {type(evaluation[key]).__name__}', 'a number')
    return Run(name, document, metrics, evaluation)


def _read_runs(workdirs: list[str]) -> list[Run]:
    """Runs under their directories' names, or whole paths where names collide."""
    if not workdirs:
        raise BadInput('--workdir', 'is missing', 'the workdir of a run', '--workdir=runs/demo')
    names = [os.path.basename(workdir.rstrip('/')) or workdir for workdir in workdirs]
    if len(set(names)) < len(names):
        names = list(workdirs)
    return [read_run(workdir, name) for workdir, name in zip(workdirs, names, strict=True)]


# --- Drawing ---


def _bin_means(steps: list[int], values: list[float]) -> tuple[list[float], list[float]]:
    """Means over `_BINS` equal runs of points, of steps and of values."""
    edges = [len(steps) * i // _BINS for i in range(_BINS + 1)]
    bins = [(low, high) for low, high in zip(edges, edges[1:], strict=False) if high > low]
    return tuple([statistics.fmean(points[low:high]) for low, high in bins] for points in (steps, values))


def _draw(quantity: _Quantity, runs: list[Run]) -> str:
    """One chart as an `<svg>` element, or '' when no run logged the quantity. No name of a run goes in."""
    if not any(run.curve(quantity.key)[0] for run in runs):
        return ''
    return draw(quantity.key, quantity.title, lambda axes: _fill(axes, quantity, runs))


def _fill(axes: Any, quantity: _Quantity, runs: list[Run]) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator

    lowest = math.inf
    for i, run in enumerate(runs):
        line = line_of(i)
        steps, values = run.curve(quantity.key)
        lowest = min([lowest, *(value for value in values if not math.isnan(value))])
        if len(steps) > _SMOOTHED_FROM and quantity is not _LEARNING_RATE:
            axes.plot(steps, values, color=line['color'], alpha=0.25, linewidth=0.7)
            steps, values = _bin_means(steps, values)
        lone = {'marker': 'o', 'markersize': 3} if len(steps) == 1 else {}
        axes.plot(steps, values, linewidth=1.5, **line, **lone)
        steps, values = run.curve(f'validation/{quantity.key}')
        axes.plot(steps, values, color=line['color'], linewidth=0, marker='o', markersize=4.5, markeredgecolor=PAGE)
    baselines = sorted({value for run in runs if (value := run.baseline(quantity)) is not None})
    for value in baselines:
        axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    if quantity is _GRAD_NORM and 0 < lowest < math.inf:
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # a curve may stay within a decade
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ''))
    elif quantity.percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{100 * value:g} %'))
    elif quantity is _THROUGHPUT:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(EngFormatter(sep=''))
    axes.xaxis.set_major_formatter(EngFormatter(sep=''))
    axes.set_xlabel('step', color=MUTED)


# --- The page ---


def _number(value: float) -> str:
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def _setting(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return html.escape(text) if text else '<i>empty</i>'


def flatten(values: Any, prefix: str = '') -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}; an empty group is a value."""
    if not isinstance(values, dict) or not values:
        return {prefix[:-1]: values} if prefix else {}
    flat = {}
    for name, value in values.items():
        flat |= flatten(value, f'{prefix}{name}.')
    return flat


def _progress(run: Run) -> str:
    steps = f'step {run.step:,}' + (f' of {run.planned_steps:,}' if run.planned_steps is not None else '')
    speeds = [value for value in run.curve('tokens_per_second')[1] if math.isfinite(value)]
    speed = f' · {_number(statistics.median(speeds))} tokens per second' if speeds else ''
    mfu, waits = ([v for v in run.curve(q.key)[1] if math.isfinite(v)] for q in (_MFU, _INPUT_WAIT))
    shares = f' · MFU {_MFU.show(statistics.median(mfu))}' if mfu else ''
    shares += f' · waiting for input {_INPUT_WAIT.show(statistics.median(waits))}' if waits else ''
    return steps + speed + shares


def _final_table(runs: list[Run]) -> str:
    rows = []
    for quantity in _FINAL:
        if not _is_shown(quantity, runs):
            continue
        if len(runs) > 1:
            beside = f' <small>baseline: {quantity.baseline}</small>'
            rows.append(f'<tbody><tr class="group"><th colspan="4">{quantity.title}{beside}</th></tr>')
        else:
            rows.append('<tbody>')
        for i, run in enumerate(runs):
            label = swatch(i) + html.escape(run.name) if len(runs) > 1 else quantity.title
            baseline = run.baseline(quantity)
            named = len(runs) == 1 and baseline is not None
            beside = quantity.show(baseline) + (f'<small>{quantity.baseline}</small>' if named else '')
            cells = (quantity.show(run.last(quantity.key)), quantity.show(run.validation(quantity)), beside)
            rows.append(
                f'<tr><th>{label}</th>' + ''.join(f'<td class="number">{cell}</td>' for cell in cells) + '</tr>'
            )
        rows.append('</tbody>')
    head = ''.join(f'<th class="number">{name}</th>' for name in ('training', 'validation', 'baseline'))
    return f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead>{"".join(rows)}</table></div>'


def _is_shown(quantity: _Quantity, runs: list[Run]) -> bool:
    """Whether any run measured it; without pairs the logged numbers of sentence prediction mean nothing."""
    if quantity in (_NSP_LOSS, _NSP_ACCURACY):
        runs = [run for run in runs if run.has_pairs]
    return any(run.last(quantity.key) is not None or run.validation(quantity) is not None for run in runs)


def charts(runs: list[Run]) -> str:
    """The curves of runs over each other, as HTML, with a legend; `swatch(i)` is the i-th run's line."""
    entries = [f'<span>{swatch(i)}<b>{html.escape(run.name)}</b></span>' for i, run in enumerate(runs)]
    if len(runs) == 1:
        entries = [f'<span>{swatch(0)}training</span>']
    entries.append('<span><span class="dot"></span>validation</span><span><span class="dash"></span>baseline</span>')
    figures = []
    for quantity in _CHARTS:
        drawing = _draw(quantity, runs) if _is_shown(quantity, runs) else ''
        if not drawing:
            continue
        baselines = sorted({value for run in runs if (value := run.baseline(quantity)) is not None})
        shown = ', '.join(quantity.show(value) for value in baselines)
        note = f' <small>{quantity.baseline} {shown}</small>' if shown else ''
        figures.append(f'<figure><figcaption>{quantity.title}{note}</figcaption>{drawing}</figure>')
    return f'<div class="legend">{"".join(entries)}</div><div class="charts">{"".join(figures)}</div>'


def _sections(settings: dict[str, Any]) -> str:
    """Settings as small tables, one for each group of the config."""
    groups = collections.defaultdict(list)
    for path, value in settings.items():
        group, _, name = path.partition('.')
        groups[group if name else 'run'].append((name or group, value))
    tables = []
    for group, rows in groups.items():
        body = ''.join(
            f'<tr><th>{html.escape(name).replace("_", "_<wbr>")}</th><td>{_setting(value)}</td></tr>'
            for name, value in rows
        )
        tables.append(f'<div><h3>{html.escape(group)}</h3><table>{body}</table></div>')
    return f'<div class="sections">{"".join(tables)}</div>'


def _settings(runs: list[Run]) -> str:
    """The config, fingerprint and versions; of several runs what differs comes first."""
    flat = [
        flatten(run.document['config'])
        | {
            f'{part}.{name}': v
            for part in ('fingerprint', 'versions')
            for name, v in flatten(run.document.get(part)).items()
        }
        for run in runs
    ]
    paths = list(dict.fromkeys(path for settings in flat for path in settings))
    missing = object()
    same = {
        path: flat[0][path] for path in paths if all(s.get(path, missing) == flat[0].get(path, missing) for s in flat)
    }
    if len(runs) == 1:
        return f'<h2>Configuration</h2>{_sections(same)}'
    head = ''.join(f'<th>{swatch(i)}{html.escape(run.name)}</th>' for i, run in enumerate(runs))
    rows = [
        f'<tr><th>{html.escape(path)}</th>'
        + ''.join(f'<td>{_setting(settings[path]) if path in settings else "–"}</td>' for settings in flat)
        + '</tr>'
        for path in paths
        if path not in same
    ]
    table = (
        f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )
    return (
        f'<h2>What differs</h2>{table if rows else "<p>Nothing: the configurations are the same.</p>"}'
        f'<details><summary>What is the same ({len(same)} settings)</summary>{_sections(same)}</details>'
    )


def _page(runs: list[Run]) -> str:
    title = html.escape(', '.join(run.name for run in runs))
    several = len(runs) > 1
    progress = ''.join(
        f'<p>{f"{swatch(i)}{html.escape(run.name)}: " if several else ""}{_progress(run)}</p>'
        for i, run in enumerate(runs)
    )
    why, *places = rank(runs) or ['']
    ranked = f'<p>{html.escape(why)}<br>{"<br>".join(map(html.escape, places))}</p>' if places else ''
    return page(
        ', '.join(run.name for run in runs),
        f'<h1>{title}</h1>{progress}\n<h2>Where it stands</h2>{ranked}{_final_table(runs)}\n'
        f'<h2>Curves</h2>{charts(runs)}\n{_settings(runs)}',
    )


def write_report(workdirs: list[str]) -> epath.Path:
    """Writes `report.html` into the first workdir, about all of them, and returns its path.

    The page needs no network. It holds what the runs logged, their configs and versions, and no corpus text.

    Args:
      workdirs: directories of runs; several are drawn over each other.

    Raises:
      BadInput: for a missing or broken config.json, metrics.jsonl (with its line) or evaluation.json. A last line
        of metrics.jsonl that a kill left half-written is passed over.
    """
    content = _page(_read_runs(workdirs))
    path = epath.Path(workdirs[0]) / 'report.html'
    write_whole(path, content)
    return path


# --- The terminal ---


def summarize_ranking(workdirs: list[str]) -> list[str]:
    """`rank` of the runs in several workdirs."""
    return rank(_read_runs(workdirs))


def _sparkline(values: list[float], width: int = 40) -> str:
    """Values in at most `width` bars, each the mean of its stretch; '!' where a value is not finite."""
    width = min(width, len(values))
    edges = [len(values) * i // width for i in range(width + 1)]
    means = [statistics.fmean(values[low:high]) for low, high in zip(edges, edges[1:], strict=False)]
    finite = [mean for mean in means if math.isfinite(mean)]
    if not finite:
        return '!' * width
    low, span = min(finite), max(finite) - min(finite)
    bars = '▁▂▃▄▅▆▇█'
    return ''.join(
        bars[round((mean - low) / span * 7) if span else 0] if math.isfinite(mean) else '!' for mean in means
    )


def summarize(workdir: str) -> str:
    """The run in a few lines for a terminal: progress, the curve of the MLM loss, final numbers next to baselines.

    Raises:
      BadInput: as `write_report` does.
    """
    [run] = _read_runs([workdir])
    lines = [f'{workdir}: {_progress(run)}']
    losses = run.curve('mlm_loss')[1]
    if losses:
        lines.append(
            f'  MLM loss      {_sparkline(losses)}  {_MLM_LOSS.show(losses[0])} → {_MLM_LOSS.show(losses[-1])}'
        )
    for quantity in _FINAL:
        value, baseline = run.validation(quantity), run.baseline(quantity)
        if _is_shown(quantity, [run]) and value is not None:
            beside = f'  ({quantity.baseline} {quantity.show(baseline)})' if baseline is not None else ''
            lines.append(f'  validation {quantity.title:13} {quantity.show(value):>8}{beside}')
    return '\n'.join(lines)
