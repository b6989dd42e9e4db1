"""A report in a few lines, for a terminal."""

import json
import math
import statistics
from typing import Any

from bert_jax.report.curves import is_shown
from bert_jax.report.page import fillers, progress_of
from bert_jax.report.quantities import FINAL, MLM_LOSS, TASK_LOSS
from bert_jax.report.runs import Run, probes, rank, read_runs
from bert_jax.report.settings import differing
from bert_jax.report.timeline import hardware, summary

_MOST_DIFFERENCES = 8


def summarize(workdirs: list[str]) -> str:
    """Each run in a few lines: progress, hardware, what happened, the loss, final numbers next to baselines, what it
    fills in; then their ranking, and what differs between them.

    Raises:
      BadInput: as `write_report` does.
    """
    runs = read_runs(workdirs)
    lines = [line for run in runs for line in _of_run(run)]
    for group in dict.fromkeys(run.group for run in runs if run.is_finetune):
        lines += _medians(group, [run for run in runs if run.group == group])
    return '\n'.join([*lines, *rank(runs), *_differences(runs)])


def _of_run(run: Run) -> list[str]:
    lines = [f'{run.workdir}: {progress_of(run)}']
    if places := hardware(run):
        lines.append(f'  on {places[-1][1]}')
    if told := summary(run):
        lines.append(f'  {told}')
    loss = TASK_LOSS if run.is_finetune else MLM_LOSS
    if losses := run.curve(loss.key)[1]:
        first, last = loss.show(losses[0]), loss.show(losses[-1])
        lines.append(f'  {loss.title:13} {_sparkline(losses)}  {first} → {last}')
    for quantity in (*FINAL, *probes([run])):
        value, baseline = run.validation(quantity), run.baseline(quantity)
        if not run.is_finetune and is_shown(quantity, [run]) and value is not None:
            beside = f'  ({quantity.baseline} {quantity.show(baseline)})' if baseline is not None else ''
            lines.append(f'  validation {quantity.title:13} {quantity.show(value):>8}{beside}')
    if run.examples:
        lines += [f'  {example["text"]}  {fillers(example)}' for example in run.examples[-1]['examples']]
    return lines


def _medians(group: str, seeds: list[Run]) -> list[str]:
    done = [seed.results for seed in seeds if seed.results]
    lines = [f'{group}: {len(done)} of {len(seeds)} seeds finished']
    for metric in done[0] if done else ():
        values = [results[metric] for results in done if metric in results]
        lines.append(f'  {metric:20} {statistics.median(values):6.1%}   {min(values):.1%} to {max(values):.1%}')
    return lines


def _differences(runs: list[Run]) -> list[str]:
    found = differing(runs) if len(runs) > 1 else {}
    lines = [f'  {path}: {" | ".join(map(_short, values))}' for path, values in found.items()]
    if len(lines) > _MOST_DIFFERENCES:
        lines = [*lines[:_MOST_DIFFERENCES], f'  … and {len(lines) - _MOST_DIFFERENCES} more, in the page']
    return ['What differs:', *lines] if lines else []


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f'{text[:39]}…'


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
