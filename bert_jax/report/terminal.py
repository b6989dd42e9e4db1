"""A report of a few lines for a terminal."""

import json
import math
import statistics
from typing import Any

from bert_jax.finetune.metrics import format_metric
from bert_jax.report.curves import is_shown
from bert_jax.report.logged import LoggedRun, probes, rank, read_runs
from bert_jax.report.page import describe_fillers, describe_progress
from bert_jax.report.quantities import FINAL, MLM_LOSS, TASK_LOSS
from bert_jax.report.settings import differing
from bert_jax.report.timeline import hardware, summarize_events

_MOST_DIFFERENCES = 8


def summarize(workdirs: list[str]) -> str:
    """A few lines about each run, then their ranking and what differs between them.

    The lines of a run are its progress, hardware, events, loss curve, final numbers with baselines, and fillers.

    Raises:
      BadInput: as in `write_report`.
    """
    runs = read_runs(workdirs)
    lines = [line for run in runs for line in _of_run(run)]
    for group in dict.fromkeys(run.group for run in runs if run.is_finetune):
        lines += _medians(group, [run for run in runs if run.group == group])
    return '\n'.join([*lines, *rank(runs), *_differences(runs)])


def _of_run(run: LoggedRun) -> list[str]:
    lines = [f'{run.workdir}: {describe_progress(run)}']
    if changes := hardware(run):
        lines.append(f'  on {changes[-1][1]}')
    if summary := summarize_events(run):
        lines.append(f'  {summary}')
    loss = TASK_LOSS if run.is_finetune else MLM_LOSS
    if losses := run.curve(loss.key)[1]:
        first, last = loss.show(losses[0]), loss.show(losses[-1])
        lines.append(f'  {loss.title:13} {_sparkline(losses)}  {first} → {last}')
    for quantity in (*(() if run.is_finetune else FINAL), *probes([run])):
        value, baseline = run.validation(quantity), run.baseline(quantity)
        if is_shown(quantity, [run]) and value is not None:
            compared = f'  ({quantity.baseline} {quantity.show(baseline)})' if baseline is not None else ''
            size = f'  {size}' if (size := run.sample_size(quantity)) else ''
            lines.append(f'  validation {quantity.title:13} {quantity.show(value):>8}{size}{compared}')
    if run.examples:
        lines += [f'  {example["text"]}  {describe_fillers(example)}' for example in run.examples[-1]['examples']]
    return lines


def _medians(group: str, seeds: list[LoggedRun]) -> list[str]:
    finished = [seed.results for seed in seeds if seed.results]
    lines = [f'{group}: {len(finished)} of {len(seeds)} seeds finished']
    for metric in finished[0] if finished else ():
        values = [results[metric] for results in finished if metric in results]
        median, low, high = (
            format_metric(metric, value) for value in (statistics.median(values), min(values), max(values))
        )
        lines.append(f'  {metric:20} {median:>6}   {low} to {high}')
    return lines


def _differences(runs: list[LoggedRun]) -> list[str]:
    found = differing(runs) if len(runs) > 1 else {}
    lines = [f'  {path}: {" | ".join(map(_short, values))}' for path, values in found.items()]
    if len(lines) > _MOST_DIFFERENCES:
        lines = [*lines[:_MOST_DIFFERENCES], f'  … and {len(lines) - _MOST_DIFFERENCES} more, in the page']
    return ['What differs:', *lines] if lines else []


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f'{text[:39]}…'


def _sparkline(values: list[float], width: int = 40) -> str:
    """At most `width` bars, each the mean of equally many values; '!' where one of them is not finite."""
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
