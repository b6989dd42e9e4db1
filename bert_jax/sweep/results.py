"""Reads the results of a sweep's runs, ranks those that are comparable, and formats the table for the terminal."""

import dataclasses
import math
import shlex
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bert_jax.config import is_records
from bert_jax.errors import BadInput, program
from bert_jax.evaluation.ranking import RankingMetric, common_metric
from bert_jax.files import json_digest
from bert_jax.json_files import read_json
from bert_jax.report import LoggedRun, flatten, read_run
from bert_jax.runtime.lease import holder_of
from bert_jax.runtime.stopping import EXIT_RUN_AGAIN
from bert_jax.sweep.launch import is_finished, log_tail, saved_step
from bert_jax.sweep.runs import Run, short_names
from bert_jax.workdir import identity as run_files

# Why MLM losses are not comparable, by the field that differs. Other fields of `data` determine the examples.
_REASONS = {
    'tokenizer': 'the loss is per token, and tokens differ',
    'train.fixed_evaluation': 'what is masked decides how hard it is to predict',
    'data.masking': 'what is masked decides how hard it is to predict',
    'lengths': 'more context makes prediction easier',
    'data.sequence_length': 'more context makes prediction easier',
    'validation text': 'the losses are for different text',
    'train.evaluate_rows': 'the losses are for different text',
}
_IGNORED_BY_FIXED_EVALUATION = (
    'data.masking',
    'data.max_predictions',
    'data.max_sequences',
    'data.bucket_lengths',
    'data.remask',
)
_OTHER_REASON = 'the examples are built differently'

_NUMBERS = ('MLM loss', 'best', 'NSP', 'tokens/s')  # columns of the table


@dataclasses.dataclass(frozen=True)
class Result:
    """The state and metrics of a run; a metric is None if it does not exist yet.

    Attributes:
      status: finished, failed, stopped, not started, or the step it has reached.
      log_tail: the end of the log of a failed run.
      final_mlm_loss, best_mlm_loss: on held-out text: the last evaluation, and the lowest of all (at best_step).
      tokens_per_second: median over the run.
      task: the settings that determine what the MLM loss measures; runs with equal tasks are comparable.
      rank: from 1, by final_mlm_loss, among the finished runs of one task. If tasks differ but all finished runs share
        another metric, the rank is by that metric, among all of them. None if there is nothing to rank.
      common, common_value: the shared metric, and its value for this run.
    """

    run: Run
    status: str
    log_tail: list[str]
    logged: LoggedRun | None
    step: int
    final_mlm_loss: float | None
    best_mlm_loss: float | None
    best_step: int | None
    mlm_accuracy: float | None
    nsp_accuracy: float | None
    tokens_per_second: float | None
    task: dict[str, Any]
    rank: int | None = None
    common: RankingMetric | None = None
    common_value: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns what `sweep --json` prints for the run; non-finite values become null."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ('run', 'logged', 'common')]
        values = {name: getattr(self, name) for name in names}
        values = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
        ranked_by = {'ranked_by': self.common.name if self.common else 'MLM loss'}
        return {'name': self.run.name, 'workdir': self.run.workdir, 'varied': self.run.varied} | values | ranked_by


def read_results(runs: tuple[Run, ...], statuses: dict[str, int]) -> list[Result]:
    """Reads the results of runs from their workdirs, in the order of the runs.

    Args:
      statuses: {name: exit status} of the runs that this command has started.
    """
    results = [_read(run, statuses.get(run.name)) for run in runs]
    if (metric := _common_metric(results)) is not None:
        return _ranked_by(metric, results)
    ranks: dict[str, int] = {}
    for task in {json_digest(result.task): None for result in results}:
        ranked = [r for r in results if json_digest(r.task) == task and r.status == 'finished']
        ranked = [r for r in ranked if _is_finite(r.final_mlm_loss)]
        ranked.sort(key=lambda result: result.final_mlm_loss or 0.0)
        ranks |= {result.run.name: rank for rank, result in enumerate(ranked, start=1)}
    return [dataclasses.replace(result, rank=ranks.get(result.run.name)) for result in results]


def _finished(results: list[Result]) -> list[Result]:
    return [result for result in results if result.status == 'finished' and result.logged]


def _common_metric(results: list[Result]) -> RankingMetric | None:
    """Returns a metric to rank the finished runs by if their MLM losses are not comparable, or None."""
    finished = _finished(results)
    if len({json_digest(result.task) for result in finished}) < 2:
        return None
    return common_metric([result.logged.run_metrics for result in finished if result.logged])


def _ranked_by(metric: RankingMetric, results: list[Result]) -> list[Result]:
    finished = [result.run.name for result in _finished(results)]
    order = sorted(range(len(finished)), key=metric.scores.__getitem__)
    ranks = {finished[i]: rank for rank, i in enumerate(order, start=1)}
    values = dict(zip(finished, metric.values, strict=True))
    return [
        dataclasses.replace(
            result, common=metric, rank=ranks.get(result.run.name), common_value=values.get(result.run.name)
        )
        for result in results
    ]


def _read(run: Run, exit_status: int | None) -> Result:
    try:
        logged = read_run(run.workdir, run.name)
    except BadInput:  # nothing was logged yet; `status` shows that
        logged = None
    steps, losses = logged.curve('validation/mlm_loss') if logged else ([], [])
    finite = [(loss, step) for loss, step in zip(losses, steps, strict=True) if math.isfinite(loss)]
    best_loss, best_step = min(finite, default=(None, None))
    speeds = [speed for speed in logged.curve('tokens_per_second')[1] if math.isfinite(speed)] if logged else []
    status = _status(run, exit_status)
    return Result(
        run=run,
        status=status,
        log_tail=log_tail(run) if status.startswith('failed') else [],
        logged=logged,
        step=saved_step(run) or 0,
        final_mlm_loss=losses[-1] if losses else None,
        best_mlm_loss=best_loss,
        best_step=best_step,
        mlm_accuracy=logged.last('validation/mlm_accuracy') if logged else None,
        nsp_accuracy=logged.last('validation/nsp_accuracy') if logged else None,
        tokens_per_second=statistics.median(speeds) if speeds else None,
        task=_task(run),
    )


def _status(run: Run, exit_status: int | None) -> str:
    if is_finished(run):
        return 'finished'
    if exit_status in (None, EXIT_RUN_AGAIN):
        step = saved_step(run)
        if holder := holder_of(run.workdir):
            return f'running, step {step or 0} of {run.config.train.steps} saved ({holder})'
        if step is None:
            return 'not started' if exit_status is None else 'stopped'
        return f'{"stopped at " if exit_status else ""}step {step} of {run.config.train.steps}'
    return f'failed ({exit_status})'


def _task(run: Run) -> dict[str, Any]:
    """Returns the settings that determine what the run's MLM loss measures; {} before the run has started."""
    if not Path(run.workdir, 'config.json').exists():
        return {}
    fingerprint = run_files.load_fingerprint(run.workdir)
    task = {name: value for name, value in fingerprint.items() if name.startswith('data.')}
    if not task.get('data.packing'):
        task.pop('data.max_sequences', None)  # has no effect, and earlier versions had another default
    lengths = [phase['sequence_length'] for phase in fingerprint.get('phases') or ()]
    if run_files.load_config(run.workdir).train.fixed_evaluation:
        task = {name: value for name, value in task.items() if name not in _IGNORED_BY_FIXED_EVALUATION}
        task |= {'data.sequence_length': min(lengths)} if lengths else {}
        task['train.fixed_evaluation'] = True
    elif lengths:
        task['lengths'] = lengths
    task |= {'tokenizer': fingerprint['tokenizer'], 'validation text': fingerprint['corpus']}
    task |= {'train.evaluate_rows': run.config.train.evaluate_rows}
    manifest = Path(run.config.data.corpus, 'manifest.json')
    if manifest.exists() and not is_records(run.config.data.source):  # different corpora may hold out the same text
        files = read_json(manifest)['files']
        held_out = {name: file for name, file in files.items() if name.startswith('validation/')}
        task['validation text'] = json_digest(held_out)
    return flatten(task)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


# --- Groups of comparable runs. ---


def comparable_groups(results: list[Result]) -> list[list[Result]]:
    """Groups results by task, each group best first. Runs that have not started are last, or in the only group."""
    groups: dict[str, list[Result]] = {}
    num_tasks = len({json_digest(result.task) for result in results if result.task})
    is_single = num_tasks <= 1 or any(result.common for result in results)
    for result in results:
        groups.setdefault('' if is_single else json_digest(result.task), []).append(result)
    for group in groups.values():
        group.sort(key=lambda result: result.rank or len(results) + 1)
    return sorted(groups.values(), key=lambda group: not group[0].task)


def differing_fields(groups: list[list[Result]]) -> list[str]:
    """Returns the names of the settings that differ between the tasks of groups."""
    started = [group[0].task for group in groups if group[0].task]
    names = dict.fromkeys(name for task in started for name in task)
    return [name for name in names if any(task.get(name) != started[0].get(name) for task in started)]


def ranking_note(groups: list[list[Result]]) -> str:
    """Explains why groups are not ranked against each other, or why a group is not ranked by MLM loss; '' otherwise."""
    if groups and groups[0][0].common:
        reasons = _reasons([[result] for result in groups[0] if result.task])
        return f'Runs are {groups[0][0].common.reason}. Their MLM losses are not comparable: they differ in {reasons}.'
    if not differing_fields(groups):
        return ''
    return (
        f'The groups are ranked separately, because their MLM losses are not comparable: they differ in '
        f'{_reasons(groups)}. To compare all runs, fine-tune them on your task, or run `evaluate` on each with the '
        'same text: the sweep then ranks them by masked words, in nats per character.'
    )


def _reasons(groups: list[list[Result]]) -> str:
    """Lists what differs between groups, and why that affects a loss."""
    by_reason: dict[str, list[str]] = {}
    for name in differing_fields(groups):
        reasons = (reason for prefix, reason in _REASONS.items() if name.startswith(prefix))
        by_reason.setdefault(next(reasons, _OTHER_REASON), []).append(name)
    return '; '.join(f'{", ".join(names)} ({reason})' for reason, names in by_reason.items())


def title(group: list[Result], names: list[str]) -> str:
    """Returns a title for a group: the values in which it differs from other groups.

    Hashes are omitted: the tokenizer and data fields of its runs describe the same.
    """
    task = group[0].task
    if not task:
        return 'no results'
    values = [f'{name}={task[name]}' for name in names if name in task and name not in ('tokenizer', 'validation text')]
    own = {field: value for field, value in group[0].run.varied.items() if field.startswith(('tokenizer.', 'data.'))}
    same = {f: v for f, v in own.items() if all(result.run.varied.get(f) == v for result in group) and f not in task}
    return ', '.join([*values, *(f'{field}={value}' for field, value in same.items())]) or group[0].run.name


# --- The table. ---


def columns(runs: Iterable[Run]) -> dict[str, str]:
    """Returns {field: heading} of the fields that vary; the field '' stands for the names of explicit runs."""
    runs = list(runs)
    named = {'': 'run'} if runs[0].label else {}
    return named | short_names([field for run in runs for field in (run.point if run.label else run.varied)])


def cell(run: Run, field: str) -> str:
    """Returns the text of a run's cell in a column of the table."""
    if not field:
        return run.label
    return str(value(run, field))


def value(run: Run, field: str) -> Any:
    """Returns a run's value of a field, which may come from the base config."""
    return flatten(dataclasses.asdict(run.config))[field]


def optima_at_range_ends(groups: list[list[Result]]) -> list[str]:
    """Returns a sentence per optimizer field whose best value is the lowest or highest of at least three values."""
    sentences = []
    for group in groups:
        ranked = [result for result in group if result.rank]
        for field, name in columns(result.run for result in ranked).items() if ranked else ():
            tried = {value(result.run, field) for result in ranked} if field.startswith('optimizer.') else set()
            if len(tried) < 3 or not all(type(each) in (int, float) for each in tried):
                continue
            best = value(ranked[0].run, field)
            if best in (min(tried), max(tried)):
                end = 'lowest' if best == min(tried) else 'highest'
                direction = 'lower' if end == 'lowest' else 'higher'
                sentences.append(
                    f'The best {name}, {best}, is the {end} value tried; a {direction} value may be even better.'
                )
    return list(dict.fromkeys(sentences))


@dataclasses.dataclass(frozen=True)
class TableGroup:
    """Comparable results, best first, each with the cells of its row; the title is '' if there is only one group."""

    title: str
    rows: list[tuple[Result, list[str]]]


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """The results of a sweep as text. The first column is the rank; `is_number` marks numeric columns."""

    headings: list[str]
    is_number: list[bool]
    groups: list[TableGroup]


def tabulate(results: list[Result]) -> ResultTable:
    """Returns the table of a sweep, for the terminal and the page."""
    varied = columns(result.run for result in results)
    common = [results[0].common.name] if results and results[0].common else []
    headings = ['rank', *varied.values(), *_NUMBERS, *common, 'status']
    is_number = [True, *(False for _ in varied), *(True for _ in (*_NUMBERS, *common)), False]
    groups = comparable_groups(results)
    names = differing_fields(groups)
    shown = [
        TableGroup(
            title(group, names) if len(groups) > 1 else '',
            [(result, _cells(result, varied)) for result in group],
        )
        for group in groups
    ]
    return ResultTable(headings, is_number, shown)


def _cells(result: Result, varied: Iterable[str]) -> list[str]:
    settings = [cell(result.run, field) for field in varied]
    return [str(result.rank or '–'), *settings, *_numbers(result), result.status]


def _numbers(result: Result) -> list[str]:
    """Returns the cells of the columns `_NUMBERS`, and of the common metric if the runs are ranked by one."""
    best = '–' if result.best_mlm_loss is None else f'{result.best_mlm_loss:.3f}'
    if result.best_step is not None and result.best_mlm_loss != result.final_mlm_loss:
        best += f' at step {result.best_step}'
    shown = [
        '–' if result.final_mlm_loss is None else f'{result.final_mlm_loss:.3f}',
        best,
        '–' if result.nsp_accuracy is None else f'{result.nsp_accuracy:.1%}',
        '–' if result.tokens_per_second is None else f'{result.tokens_per_second:,.0f}',
    ]
    if result.common:
        shown.append('–' if result.common_value is None else result.common.format(result.common_value))
    return shown


def notes(results: list[Result]) -> list[str]:
    """Returns sentences about the table: what is not comparable, and which ranges to extend."""
    groups = comparable_groups(results)
    return [*filter(None, [ranking_note(groups)]), *optima_at_range_ends(groups)]


def table(results: list[Result]) -> str:
    """Returns the table and its notes as text."""
    tabulated = tabulate(results)
    rows = [cells for group in tabulated.groups for _, cells in group.rows]
    widths = [max(map(len, column)) for column in zip(tabulated.headings, *rows, strict=True)]

    def line(row: list[str]) -> str:
        padded = (f'{c:>{w}}' if n else f'{c:{w}}' for c, w, n in zip(row, widths, tabulated.is_number, strict=True))
        return '  '.join(padded).rstrip()

    lines = [line(tabulated.headings)]
    for group in tabulated.groups:
        lines += [group.title] if group.title else []
        lines += [line(cells) for _, cells in group.rows]
    if sentences := notes(results):
        lines += ['', *sentences]
    return '\n'.join(lines)


def best_commands(results: list[Result]) -> list[tuple[str, str]]:
    """Returns (title, command of the best run) of each group that has a best run."""
    groups = comparable_groups(results)
    names = differing_fields(groups)
    return [
        (title(group, names) if len(groups) > 1 else '', f'{program()} {shlex.join(group[0].run.train_command[3:])}')
        for group in groups
        if group[0].rank == 1
    ]
