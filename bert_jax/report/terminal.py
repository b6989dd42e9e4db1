"""Summarizes runs in a few lines for the terminal."""

import json
import math
import statistics
from typing import Any

from bert_jax.finetune.metrics import format_metric
from bert_jax.report.curves import has_values
from bert_jax.report.logged import LoggedRun, losses_by_length, probes, rank, read_runs
from bert_jax.report.page import describe_fillers, describe_progress
from bert_jax.report.quantities import FINAL, MLM_LOSS, TASK_LOSS
from bert_jax.report.settings import differing_fields
from bert_jax.report.timeline import hardware, summarize_events

_MAX_DIFFERENCES = 8


def summarize(workdirs: list[str]) -> str:
    """Returns a few lines about each run, then the ranking of the runs and the settings in which they differ.

    The lines of a run are its progress, hardware, events, loss curve, final metrics with baselines, and the most likely
    tokens for its example sentences.

    Raises:
      BadInput: as `write_report`.
    """
    runs = read_runs(workdirs)
    lines = [line for run in runs for line in _describe_run(run)]
    for group in dict.fromkeys(run.group for run in runs if run.is_finetune):
        lines += _describe_seeds(group, [run for run in runs if run.group == group])
    return '\n'.join([*lines, *rank(runs), *_differences(runs)])


def _describe_run(run: LoggedRun) -> list[str]:
    lines = [f'{run.workdir}: {describe_progress(run)}']
    if changes := hardware(run):
        lines.append(f'  on {changes[-1][1]}')
    if summary := summarize_events(run):
        lines.append(f'  {summary}')
    loss = TASK_LOSS if run.is_finetune else MLM_LOSS
    if losses := run.curve(loss.key)[1]:
        first, last = loss.format(losses[0]), loss.format(losses[-1])
        lines.append(f'  {loss.title} in training: {_sparkline(losses)}  {first} → {last}')
    lines += _describe_validation(run)
    if run.examples and (examples := run.examples[-1]['examples']):
        lines.append(f'  Most likely tokens for [MASK] at step {run.examples[-1]["step"]:,}:')
        lines += [f'    {example["text"]}  {describe_fillers(example)}' for example in examples]
    return lines


def _describe_validation(run: LoggedRun) -> list[str]:
    """Returns a table of the metrics on held-out text and their baselines."""
    quantities = [*(() if run.is_finetune else FINAL), *losses_by_length([run]), *probes([run])]
    values = [(quantity, run.validation(quantity)) for quantity in quantities if has_values(quantity, [run])]
    values = [(quantity, value) for quantity, value in values if value is not None]
    width = max((len(quantity.title) for quantity, _ in values), default=0)
    lines = ['  Validation:'] if values else []
    for quantity, value in values:
        baseline = run.baseline(quantity)
        compared = f'  baseline: {quantity.format(baseline)} ({quantity.baseline})' if baseline is not None else ''
        sample = f', on {sample}' if (sample := run.describe_sample(quantity)) else ''
        lines.append(f'    {quantity.title:{width}} {quantity.format(value):>8}{compared}{sample}')
    return lines


def _describe_seeds(group: str, seeds: list[LoggedRun]) -> list[str]:
    finished = [seed.results for seed in seeds if seed.results]
    heading = f'{group}: {len(finished)} of {len(seeds)} seeds finished'
    lines = [f'{heading}; median and range:' if finished else heading]
    for metric in finished[0] if finished else ():
        values = [results[metric] for results in finished if metric in results]
        median, low, high = (
            format_metric(metric, value) for value in (statistics.median(values), min(values), max(values))
        )
        lines.append(f'  {metric:20} {median:>6}   {low} to {high}')
    return lines


def _differences(runs: list[LoggedRun]) -> list[str]:
    fields = differing_fields(runs) if len(runs) > 1 else {}
    lines = [f'  {path}: {" | ".join(map(_abbreviate, values))}' for path, values in fields.items()]
    if len(lines) > _MAX_DIFFERENCES:
        lines = [*lines[:_MAX_DIFFERENCES], f'  … and {len(lines) - _MAX_DIFFERENCES} more, listed in the report']
    return ['Settings that differ:', *lines] if lines else []


def _abbreviate(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f'{text[:39]}…'


def _sparkline(values: list[float], width: int = 40) -> str:
    """Draws at most `width` bars, each the mean of equally many values; '!' if any of those values is not finite."""
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
