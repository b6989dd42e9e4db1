"""Builds report.html, about one run or several side by side.

This module computes the values of the page, and `templates/report.html` lays them out.
"""

import dataclasses
import math
import statistics
from typing import Any

from etils import epath

from bert_jax.report.curves import Charts, charts, has_values
from bert_jax.report.html import Column, ColumnKind, Group, Table, Text, render
from bert_jax.report.logged import LoggedRun, losses_by_length, probes, rank, read_runs
from bert_jax.report.quantities import FINAL, INPUT_WAIT, MFU, Quantity, task_metric
from bert_jax.report.settings import Settings, settings_of
from bert_jax.report.timeline import events, hardware, summarize_events
from bert_jax.train.phase_table import phase_table
from bert_jax.workdir.result import save

_MAX_EXAMPLE_STEPS = 5  # number of steps whose fillers appear for each sentence
_MAX_UNFOLDED_EVENTS = 12  # longer timelines are folded
_ABBREVIATIONS = {'MLM': 'masked-language modelling', 'NSP': 'next-sentence prediction'}


@dataclasses.dataclass(frozen=True)
class FineTune:
    """Metrics over the seeds of a fine-tune; `table` is None until a seed has finished."""

    name: Text
    table: Table | None


@dataclasses.dataclass(frozen=True)
class Example:
    """A sentence with masks, and the most likely tokens for them at some steps of each run."""

    text: str
    table: Table


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The events of a run."""

    summary: Text
    events: Table
    is_folded: bool


@dataclasses.dataclass(frozen=True)
class Phases:
    """The phases of a run; `name` is empty if it is the only run."""

    name: Text
    table: Table


@dataclasses.dataclass(frozen=True)
class ReportPage:
    """The content of report.html; sections without content are None or empty.

    Attributes:
      title: the names of the workdirs.
      progress: a line per run.
      ranking: the lines that `rank` returns.
      final: the final metrics of pretraining runs with their baselines.
      final_note: explains the abbreviations and units in `final`.
    """

    title: str
    progress: list[Text]
    ranking: list[str]
    final: Table | None
    final_note: str
    finetunes: list[FineTune]
    charts: Charts
    phases: list[Phases]
    examples: list[Example]
    timelines: list[Timeline]
    hardware: Table | None
    settings: Settings


def write_report(workdirs: list[str], output: str = '') -> epath.Path | None:
    """Writes a page about all workdirs to `output`, by default to report.html in the first workdir.

    The page needs no network. It contains the metrics, configs, versions and events of the runs, and the tokens that
    they predict for the sentences in `train.examples`, but no text of the corpus.

    Args:
      workdirs: directories of runs or fine-tunes. The curves of all runs, and of all seeds, share their charts.

    Returns:
      The path of the page; None if the workdir is not writable, which is reported.

    Raises:
      BadInput: if config.json, metrics.jsonl (with the line) or evaluation.json is missing or damaged. An incomplete
        last line of metrics.jsonl, as a killed run leaves it, is skipped.
    """
    return save(render('report.html', _page(read_runs(workdirs))), workdirs[0], 'report.html', output)


def _page(runs: list[LoggedRun]) -> ReportPage:
    groups = list(dict.fromkeys(run.group for run in runs))
    pretraining = [run for run in runs if not run.is_finetune]
    seeds = {name: [run for run in runs if run.group == name and run.is_finetune] for name in groups}
    return ReportPage(
        title=', '.join(groups),
        progress=[_text_about(runs, i, describe_progress(run)) for i, run in enumerate(runs)],
        ranking=rank(runs),
        final=_final_metrics(runs) if pretraining else None,
        final_note=_final_note(pretraining),
        finetunes=[_finetune(name, members) for name, members in seeds.items() if members],
        charts=charts(runs),
        phases=_phases(runs),
        examples=_examples(runs),
        timelines=_timelines(runs),
        hardware=_hardware(runs),
        settings=settings_of(runs),
    )


def _run_label(runs: list[LoggedRun], i: int) -> Text:
    """Returns the name of a run, after the line of its series."""
    return Text(runs[i].name, series=i)


def _text_about(runs: list[LoggedRun], i: int, text: str) -> Text:
    """Returns text about a run, preceded by the run's label if there are several runs."""
    return Text(f'{runs[i].name}: {text}', series=i) if len(runs) > 1 else Text(text)


# --- Final metrics. ---


def describe_progress(run: LoggedRun) -> str:
    """Returns the progress and the speed of a run as one line."""
    parts = [f'step {run.step:,}' + (f' of {run.planned_steps:,}' if run.planned_steps is not None else '')]
    if (speed := _median(run, 'tokens_per_second')) is not None:
        parts.append(f'{f"{speed:,.0f}" if speed >= 1000 else f"{speed:.4g}"} tokens per second')
    if (mfu := _median(run, MFU.key)) is not None:
        parts.append(f'MFU {MFU.format(mfu)}')
    if (wait := _median(run, INPUT_WAIT.key)) is not None:
        parts.append(f'{INPUT_WAIT.format(wait)} of the time spent waiting for input')
    return ' · '.join(parts)


def _median(run: LoggedRun, key: str) -> float | None:
    values = [value for value in run.curve(key)[1] if math.isfinite(value)]
    return statistics.median(values) if values else None


def _final_metrics(runs: list[LoggedRun]) -> Table:
    """Returns each quantity in training and on held-out text, with its baseline.

    Each quantity is a row, or a group with a row per run if there are several runs.
    """
    pretraining = [run for run in runs if not run.is_finetune]
    columns = [Column('', 'label'), *(Column(heading, 'number') for heading in ('training', 'validation', 'baseline'))]
    groups = []
    for quantity in (*FINAL, *losses_by_length(pretraining), *probes(pretraining)):
        if not has_values(quantity, pretraining):
            continue
        if len(runs) == 1:
            baseline = runs[0].baseline(quantity)
            cell = Text(quantity.format(baseline), note=quantity.baseline if baseline is not None else '')
            groups.append(Group([[quantity.title, *_last_values(quantity, runs[0]), cell]]))
        else:
            rows = [
                [_run_label(runs, i), *_last_values(quantity, run), quantity.format(run.baseline(quantity))]
                for i, run in enumerate(runs)
                if not run.is_finetune
            ]
            note = f'baseline: {quantity.baseline}' if quantity.baseline else ''
            groups.append(Group(rows, Text(quantity.title, note)))
    return Table(columns, groups)


def _final_note(pretraining: list[LoggedRun]) -> str:
    titles = ' '.join(quantity.title for quantity in FINAL if has_values(quantity, pretraining))
    abbreviations = [f'{short}: {name}.' for short, name in _ABBREVIATIONS.items() if short in titles]
    if not abbreviations:
        return ''
    is_fixed = [run.has_fixed_evaluation for run in pretraining]
    validation = ['Validation always masks 15% of the tokens, whatever the run trains with.'] if all(is_fixed) else []
    return ' '.join([*abbreviations, 'Losses are in nats.', *validation])


def _last_values(quantity: Quantity, run: LoggedRun) -> list[str | Text]:
    """Returns the last values in training and on held-out text."""
    training = None if quantity.is_held_out else run.last(quantity.key)
    validation = Text(quantity.format(run.validation(quantity)), note=run.describe_sample(quantity))
    return [quantity.format(training), validation]


def _finetune(name: str, seeds: list[LoggedRun]) -> FineTune:
    """Returns the median and the range of each metric over the finished seeds."""
    finished = [seed.results for seed in seeds if seed.results]
    if not finished:
        return FineTune(Text(name), None)
    rows = []
    for metric in finished[0]:
        values = [results[metric] for results in finished if metric in results]
        statistics_of_seeds = statistics.median(values), min(values), max(values)
        rows.append([metric.replace('_', ' '), *map(task_metric(metric).format, statistics_of_seeds)])
    columns = [Column('', 'label'), *(Column(heading, 'number') for heading in ('median', 'lowest', 'highest'))]
    count = f'{len(finished)} of {len(seeds)} seeds finished' if len(seeds) > 1 else 'one seed'
    return FineTune(Text(name, note=count), Table(columns, [Group(rows)]))


def _phases(runs: list[LoggedRun]) -> list[Phases]:
    found = []
    for i, run in enumerate(runs):
        if run.phases is not None:
            headings, rows = phase_table(run.phases)
            first_of_text = headings.index('learning rate')
            columns = [Column(name, 'number' if i < first_of_text else 'text') for i, name in enumerate(headings)]
            found.append(Phases(_run_label(runs, i) if len(runs) > 1 else Text(''), Table(columns, [Group(rows)])))
    return found


# --- Masked-word predictions. ---


def describe_fillers(example: dict[str, Any]) -> str:
    """Formats the most likely tokens for each mask of a sentence: `file 19%, path 13% / not 4%`."""
    masks = [[f'{filler["token"]} {filler["score"]:.0%}' for filler in mask] for mask in example['fillers']]
    return ' / '.join(', '.join(mask) for mask in masks)


def _examples(runs: list[LoggedRun]) -> list[Example]:
    """Returns each sentence with the most likely tokens of every run at a few steps."""
    texts = dict.fromkeys(example['text'] for run in runs for line in run.examples for example in line['examples'])
    columns = [Column('step', 'number'), Column('most likely tokens', 'text')]
    examples = []
    for text in texts:
        groups = []
        for i, run in enumerate(runs):
            points = [(line['step'], e) for line in run.examples for e in line['examples'] if e['text'] == text]
            rows = [[f'{step:,}', describe_fillers(example)] for step, example in _evenly_spaced(points)]
            if rows:
                groups.append(Group(rows, _run_label(runs, i) if len(runs) > 1 else ''))
        examples.append(Example(text, Table(columns, groups, style='examples')))
    return examples


def _evenly_spaced(points: list[Any]) -> list[Any]:
    """Returns at most `_MAX_EXAMPLE_STEPS` of the points, evenly spaced, including the first and the last."""
    count = min(len(points), _MAX_EXAMPLE_STEPS)
    return [points[round(i * (len(points) - 1) / max(count - 1, 1))] for i in range(count)]


# --- Timeline and hardware. ---


def _timelines(runs: list[LoggedRun]) -> list[Timeline]:
    kinds: dict[str, ColumnKind] = {'step': 'number', 'event': 'text', 'steps repeated': 'number', 'time (UTC)': 'text'}
    columns = [Column(heading, kind) for heading, kind in kinds.items()]
    timelines = []
    for i, run in enumerate(runs):
        rows = [
            [f'{event.step:,}', event.description, str(event.lost_steps or '–'), _format_time(event.time)]
            for event in events(run)
        ]
        if rows:
            summary = _text_about(runs, i, summarize_events(run) or 'no restarts, rollbacks or skipped updates')
            is_folded = len(runs) > 1 or len(rows) > _MAX_UNFOLDED_EVENTS
            timelines.append(Timeline(summary, Table(columns, [Group(rows)]), is_folded))
    return timelines


def _format_time(time: str) -> str:
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
