"""report.html: one run, or several side by side.

The values of the page are worked out here; `templates/report.html` lays them out.
"""

import dataclasses
import math
import statistics
from typing import Any

from etils import epath

from bert_jax.report.curves import Charts, charts, is_shown
from bert_jax.report.html import Column, ColumnKind, Group, Table, Text, render
from bert_jax.report.logged import LoggedRun, probes, rank, read_runs
from bert_jax.report.quantities import FINAL, INPUT_WAIT, MFU, Quantity, task_metric
from bert_jax.report.settings import Settings, settings_of
from bert_jax.report.timeline import events, hardware, summarize_events
from bert_jax.workdir.result import save

_MOST_EXAMPLES = 5  # steps at which the fillers of a sentence are shown
_MOST_EVENTS = 12  # a run with more has them folded


@dataclasses.dataclass(frozen=True)
class FineTune:
    """Metrics over the seeds of a fine-tune; no table before the first seed is finished."""

    name: Text
    table: Table | None


@dataclasses.dataclass(frozen=True)
class Example:
    """A sentence with masks, and what runs fill in."""

    text: str
    table: Table


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The events of a run."""

    summary: Text
    events: Table
    is_folded: bool


@dataclasses.dataclass(frozen=True)
class ReportPage:
    """The content of report.html; parts without content are None or empty.

    Attributes:
      title: names of the workdirs.
      progress: one line per run.
      ranking: as `rank` returns it.
      final: the final numbers of pretraining runs with their baselines.
    """

    title: str
    progress: list[Text]
    ranking: list[str]
    final: Table | None
    finetunes: list[FineTune]
    charts: Charts
    examples: list[Example]
    timelines: list[Timeline]
    hardware: Table | None
    settings: Settings


def write_report(workdirs: list[str], output: str = '') -> epath.Path | None:
    """Writes a page about all workdirs to `output`, or else as `report.html` into the first one.

    The page needs no network. It holds the metrics, configs, versions and events of the runs and their fillers for
    the sentences in `train.examples`, and no corpus text.

    Args:
      workdirs: directories of runs or fine-tunes; curves of several, and of seeds, share their charts.

    Returns:
      The path of the page; None where the workdir cannot be written to, which is reported.

    Raises:
      BadInput: for a missing or broken config.json, metrics.jsonl (with the line) or evaluation.json. A last line
        of metrics.jsonl that a kill left incomplete is skipped.
    """
    return save(render('report.html', _page(read_runs(workdirs))), workdirs[0], 'report.html', output)


def _page(runs: list[LoggedRun]) -> ReportPage:
    groups = list(dict.fromkeys(run.group for run in runs))
    pretraining = [run for run in runs if not run.is_finetune]
    seeds = {name: [run for run in runs if run.group == name and run.is_finetune] for name in groups}
    return ReportPage(
        title=', '.join(groups),
        progress=[_named(runs, i, describe_progress(run)) for i, run in enumerate(runs)],
        ranking=rank(runs),
        final=_final_numbers(runs) if pretraining else None,
        finetunes=[_finetune(name, members) for name, members in seeds.items() if members],
        charts=charts(runs),
        examples=_examples(runs),
        timelines=_timelines(runs),
        hardware=_hardware(runs),
        settings=settings_of(runs),
    )


def _label(runs: list[LoggedRun], i: int) -> Text:
    """The name and the line of a run among several."""
    return Text(runs[i].name, series=i)


def _named(runs: list[LoggedRun], i: int, text: str) -> Text:
    """Text about a run, which starts with the run's name and line if there are several."""
    return Text(f'{runs[i].name}: {text}', series=i) if len(runs) > 1 else Text(text)


# --- Where it stands. ---


def describe_progress(run: LoggedRun) -> str:
    """How far a run is, and how fast."""
    parts = [f'step {run.step:,}' + (f' of {run.planned_steps:,}' if run.planned_steps is not None else '')]
    if (speed := _median(run, 'tokens_per_second')) is not None:
        parts.append(f'{f"{speed:,.0f}" if speed >= 1000 else f"{speed:.4g}"} tokens per second')
    if (mfu := _median(run, MFU.key)) is not None:
        parts.append(f'MFU {MFU.show(mfu)}')
    if (wait := _median(run, INPUT_WAIT.key)) is not None:
        parts.append(f'waiting for input {INPUT_WAIT.show(wait)}')
    return ' · '.join(parts)


def _median(run: LoggedRun, key: str) -> float | None:
    values = [value for value in run.curve(key)[1] if math.isfinite(value)]
    return statistics.median(values) if values else None


def _final_numbers(runs: list[LoggedRun]) -> Table:
    """Each quantity in training and on held-out text, with its baseline: a row per quantity, or a group of runs."""
    pretraining = [run for run in runs if not run.is_finetune]
    columns = [Column('', 'label'), *(Column(heading, 'number') for heading in ('training', 'validation', 'baseline'))]
    groups = []
    for quantity in (*FINAL, *probes(pretraining)):
        if not is_shown(quantity, pretraining):
            continue
        if len(runs) == 1:
            baseline = runs[0].baseline(quantity)
            shown = Text(quantity.show(baseline), note=quantity.baseline if baseline is not None else '')
            groups.append(Group([[quantity.title, *_values(quantity, runs[0]), shown]]))
        else:
            rows = [
                [_label(runs, i), *_values(quantity, run), quantity.show(run.baseline(quantity))]
                for i, run in enumerate(runs)
                if not run.is_finetune
            ]
            note = f'baseline: {quantity.baseline}' if quantity.baseline else ''
            groups.append(Group(rows, Text(quantity.title, note)))
    return Table(columns, groups)


def _values(quantity: Quantity, run: LoggedRun) -> list[str | Text]:
    """The newest values in training and on held-out text."""
    training = None if quantity.is_held_out else run.last(quantity.key)
    return [quantity.show(training), Text(quantity.show(run.validation(quantity)), note=run.sample_size(quantity))]


def _finetune(name: str, seeds: list[LoggedRun]) -> FineTune:
    """The median of each metric over the finished seeds, and the range."""
    finished = [seed.results for seed in seeds if seed.results]
    if not finished:
        return FineTune(Text(name), None)
    rows = []
    for metric in finished[0]:
        values = [results[metric] for results in finished if metric in results]
        range_of = statistics.median(values), min(values), max(values)
        rows.append([metric.replace('_', ' '), *map(task_metric(metric).show, range_of)])
    columns = [Column('', 'label'), *(Column(heading, 'number') for heading in ('median', 'lowest', 'highest'))]
    count = f'{len(finished)} of {len(seeds)} seeds finished' if len(seeds) > 1 else 'one seed'
    return FineTune(Text(name, note=count), Table(columns, [Group(rows)]))


# --- Masked-word predictions. ---


def describe_fillers(example: dict[str, Any]) -> str:
    """The best fillers for each mask of a sentence: `file 19 %, path 13 % / not 4 %`."""
    masks = [[f'{filler["token"]} {100 * filler["score"]:.0f} %' for filler in mask] for mask in example['fillers']]
    return ' / '.join(', '.join(mask) for mask in masks)


def _examples(runs: list[LoggedRun]) -> list[Example]:
    """Each sentence with the fillers of every run at a few steps."""
    texts = dict.fromkeys(example['text'] for run in runs for line in run.examples for example in line['examples'])
    columns = [Column('step', 'number'), Column('most likely', 'text')]
    found = []
    for text in texts:
        groups = []
        for i, run in enumerate(runs):
            points = [(line['step'], e) for line in run.examples for e in line['examples'] if e['text'] == text]
            rows = [[f'{step:,}', describe_fillers(example)] for step, example in _spread(points)]
            if rows:
                groups.append(Group(rows, _label(runs, i) if len(runs) > 1 else ''))
        found.append(Example(text, Table(columns, groups, style='examples')))
    return found


def _spread(points: list[Any]) -> list[Any]:
    """At most `_MOST_EXAMPLES` of the points, evenly spaced, with the first and the last."""
    count = min(len(points), _MOST_EXAMPLES)
    return [points[round(i * (len(points) - 1) / max(count - 1, 1))] for i in range(count)]


# --- What happened, and on what hardware. ---


def _timelines(runs: list[LoggedRun]) -> list[Timeline]:
    kinds: dict[str, ColumnKind] = {'step': 'number', 'what': 'text', 'repeated steps': 'number', 'when (UTC)': 'text'}
    columns = [Column(heading, kind) for heading, kind in kinds.items()]
    found = []
    for i, run in enumerate(runs):
        rows = [
            [f'{event.step:,}', event.what, str(event.lost_steps or '–'), _readable(event.time)]
            for event in events(run)
        ]
        if rows:
            summary = _named(runs, i, summarize_events(run) or 'no incidents')
            is_folded = len(runs) > 1 or len(rows) > _MOST_EVENTS
            found.append(Timeline(summary, Table(columns, [Group(rows)]), is_folded))
    return found


def _readable(time: str) -> str:
    return time.replace('T', ' ').partition('+')[0]


def _hardware(runs: list[LoggedRun]) -> Table | None:
    rows = []
    for i, run in enumerate(runs):
        changes = hardware(run)
        for j, (step, description) in enumerate(changes):
            since = f'from step {step:,}' if len(changes) > 1 else ''
            is_first = len(runs) > 1 and j == 0
            label = Text(f'{run.name} {since}'.rstrip(), series=i) if is_first else Text(since)
            rows.append([label, description])
    return Table([Column('', 'label'), Column('', 'text')], [Group(rows)]) if rows else None
