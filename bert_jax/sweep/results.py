"""Results of the runs of a sweep, ranked where their losses can be compared, and their table for the terminal."""

import dataclasses
import math
import shlex
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bert_jax.config import is_records
from bert_jax.errors import BadInput
from bert_jax.evaluation.ranking import Measure, common_measure
from bert_jax.files import json_digest
from bert_jax.json_files import read_json
from bert_jax.report import LoggedRun, flatten, read_run
from bert_jax.runtime.lease import holder_of
from bert_jax.runtime.stopping import EXIT_RUN_AGAIN
from bert_jax.sweep.launch import is_finished, log_tail, saved_step
from bert_jax.sweep.runs import Run, short_names
from bert_jax.workdir import identity as run_files

# Why MLM losses cannot be compared, by what differs; the rest of `data` decides which examples there are.
_WHY = {
    'tokenizer': 'a loss is of one token, and the tokens are not the same',
    'data.masking': 'what is masked decides how hard it is to guess',
    'lengths': 'more context makes guessing easier',
    'data.sequence_length': 'more context makes guessing easier',
    'validation text': 'the losses are of different text',
    'train.evaluate_rows': 'the losses are of different text',
}
_WHY_ELSE = 'the examples are made in another way'

_NUMBERS = ('MLM loss', 'best', 'NSP', 'tokens/s')  # columns of the table


@dataclasses.dataclass(frozen=True)
class Result:
    """A run's state and numbers; None where there is no such number yet.

    Attributes:
      status: finished, failed, stopped, not started, or how far it is.
      log_tail: of a failed run.
      final_mlm_loss, best_mlm_loss: on held-out text, of the last evaluation and the lowest of all (at best_step).
      tokens_per_second: median over the run.
      task: what the MLM loss is a loss of; runs with equal ones can be compared.
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
    common: Measure | None = None
    common_value: float | None = None

    def as_json(self) -> dict[str, Any]:
        """What `sweep --json` says of the run; null for what is not finite, which JSON cannot say."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ('run', 'logged', 'common')]
        values = {name: getattr(self, name) for name in names}
        values = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
        ranked_by = {'ranked_by': self.common.name if self.common else 'MLM loss'}
        return {'name': self.run.name, 'workdir': self.run.workdir, 'varied': self.run.varied} | values | ranked_by


def read_results(runs: tuple[Run, ...], statuses: dict[str, int]) -> list[Result]:
    """The results of runs as their workdirs tell them, in the order of the runs.

    Args:
      statuses: {name: exit status} of the runs that were started just now.
    """
    results = [_read(run, statuses.get(run.name)) for run in runs]
    if (measure := _common_measure(results)) is not None:
        return _ranked_by(measure, results)
    ranks: dict[str, int] = {}
    for task in {json_digest(result.task): None for result in results}:
        ranked = [r for r in results if json_digest(r.task) == task and r.status == 'finished']
        ranked = [r for r in ranked if _is_finite(r.final_mlm_loss)]
        ranked.sort(key=lambda result: result.final_mlm_loss or 0.0)
        ranks |= {result.run.name: rank for rank, result in enumerate(ranked, start=1)}
    return [dataclasses.replace(result, rank=ranks.get(result.run.name)) for result in results]


def _finished(results: list[Result]) -> list[Result]:
    return [result for result in results if result.status == 'finished' and result.logged]


def _common_measure(results: list[Result]) -> Measure | None:
    """What the finished runs can be ranked by although their MLM losses do not compare; None where these do."""
    finished = _finished(results)
    if len({json_digest(result.task) for result in finished}) < 2:
        return None
    return common_measure([result.logged.figures for result in finished if result.logged])


def _ranked_by(measure: Measure, results: list[Result]) -> list[Result]:
    finished = [result.run.name for result in _finished(results)]
    order = sorted(range(len(finished)), key=measure.scores.__getitem__)
    ranks = {finished[i]: place for place, i in enumerate(order, start=1)}
    values = dict(zip(finished, measure.values, strict=True))
    return [
        dataclasses.replace(
            result, common=measure, rank=ranks.get(result.run.name), common_value=values.get(result.run.name)
        )
        for result in results
    ]


def _read(run: Run, exit_status: int | None) -> Result:
    try:
        logged = read_run(run.workdir, run.name)
    except BadInput:  # nothing logged: it has not come that far, which `status` tells
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
            return f'running at step {step or 0} of {run.config.train.steps} ({holder})'
        if step is None:
            return 'not started' if exit_status is None else 'stopped'
        return f'{"stopped at " if exit_status else ""}step {step} of {run.config.train.steps}'
    return f'failed ({exit_status})'


def _task(run: Run) -> dict[str, Any]:
    """What the run's MLM loss is a loss of; empty before it has started."""
    if not Path(run.workdir, 'config.json').exists():
        return {}
    fingerprint = run_files.load_fingerprint(run.workdir)
    task = {name: value for name, value in fingerprint.items() if name.startswith('data.')}
    if not task.get('data.packing'):
        task.pop('data.max_sequences', None)  # means nothing, and earlier versions had another default
    task |= {'tokenizer': fingerprint['tokenizer'], 'validation text': fingerprint['corpus']}
    task |= {'train.evaluate_rows': run.config.train.evaluate_rows}
    if phases := fingerprint.get('phases'):
        task['lengths'] = [phase['sequence_length'] for phase in phases]
    manifest = Path(run.config.data.corpus, 'manifest.json')
    if manifest.exists() and not is_records(run.config.data.source):  # other corpora may hold out the same text
        files = read_json(manifest)['files']
        held_out = {name: file for name, file in files.items() if name.startswith('validation/')}
        task['validation text'] = json_digest(held_out)
    return flatten(task)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


# --- Groups of runs that can be compared. ---


def comparable_groups(results: list[Result]) -> list[list[Result]]:
    """Results by what their MLM loss is a loss of, the best first; those without any, last or in the only group."""
    groups: dict[str, list[Result]] = {}
    is_one = len({json_digest(result.task) for result in results if result.task}) <= 1 or any(r.common for r in results)
    for result in results:
        groups.setdefault('' if is_one else json_digest(result.task), []).append(result)
    for group in groups.values():
        group.sort(key=lambda result: result.rank or len(results) + 1)
    return sorted(groups.values(), key=lambda group: not group[0].task)


def differing_fields(groups: list[list[Result]]) -> list[str]:
    """The names of what differs between the comparable_groups of groups."""
    started = [group[0].task for group in groups if group[0].task]
    names = dict.fromkeys(name for task in started for name in task)
    return [name for name in names if any(task.get(name) != started[0].get(name) for task in started)]


def ranking_note(groups: list[list[Result]]) -> str:
    """Why runs of different groups are not ranked against each other, or those of one not by MLM loss; else ''."""
    if groups and groups[0][0].common:
        reasons = _reasons([[result] for result in groups[0] if result.task])
        return f'Runs are {groups[0][0].common.why}; MLM losses do not compare, for they differ in {reasons}.'
    names = differing_fields(groups)
    if not names:
        return ''
    return (
        f'Runs of different groups are not ranked by MLM loss, for they differ in {_reasons(groups)}. '
        'Compare them by what they are for: finetune; or `evaluate` all of them on the same text, and they are ranked '
        'by masked words in nats a character.'
    )


def _reasons(groups: list[list[Result]]) -> str:
    """What differs between groups, and why that matters to a loss."""
    names = differing_fields(groups)
    whys = {name: next((why for prefix, why in _WHY.items() if name.startswith(prefix)), _WHY_ELSE) for name in names}
    grouped: dict[str, list[str]] = {}
    for name, why in whys.items():
        grouped.setdefault(why, []).append(name)
    return '; '.join(f'{", ".join(names)} ({why})' for why, names in grouped.items())


def title(group: list[Result], names: list[str]) -> str:
    """A group by the values in which it differs from others; hashes are left out, the fields of its runs tell them."""
    task = group[0].task
    if not task:
        return 'no results'
    told = [f'{name}={task[name]}' for name in names if name in task and name not in ('tokenizer', 'validation text')]
    own = {field: value for field, value in group[0].run.varied.items() if field.startswith(('tokenizer.', 'data.'))}
    same = {f: v for f, v in own.items() if all(result.run.varied.get(f) == v for result in group) and f not in task}
    return ', '.join([*told, *(f'{field}={value}' for field, value in same.items())]) or group[0].run.name


# --- The table. ---


def columns(runs: Iterable[Run]) -> dict[str, str]:
    """{field or '': heading} of what varies; '' stands for the names of the explicit runs."""
    runs = list(runs)
    named = {'': 'run'} if runs[0].label else {}
    return named | short_names([field for run in runs for field in (run.point if run.label else run.varied)])


def cell(run: Run, field: str) -> str:
    """What stands in a run's column of the table."""
    if not field:
        return run.label
    return str(value(run, field))


def value(run: Run, field: str) -> Any:
    """A run's value of a field, also where it leaves it to the base config."""
    return flatten(dataclasses.asdict(run.config))[field]


def optima_at_range_ends(groups: list[list[Result]]) -> list[str]:
    """A sentence for each field of the optimiser whose best value is the lowest or highest of three or more tried."""
    told = []
    for group in groups:
        ranked = [result for result in group if result.rank]
        for field, name in columns(result.run for result in ranked).items() if ranked else ():
            tried = {value(result.run, field) for result in ranked} if field.startswith('optimizer.') else set()
            if len(tried) < 3 or not all(type(number) in (int, float) for number in tried):
                continue
            best = value(ranked[0].run, field)
            if best in (min(tried), max(tried)):
                end = 'lowest' if best == min(tried) else 'highest'
                told.append(
                    f'The best {name}, {best}, is the {end} that was tried: there may be better ones beyond it.'
                )
    return list(dict.fromkeys(told))


@dataclasses.dataclass(frozen=True)
class TableGroup:
    """Results that can be compared, best first, each with the cells of its row; no title if it is the only group."""

    title: str
    rows: list[tuple[Result, list[str]]]


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """The results of a sweep as text. The first column is the rank; `is_number` marks columns of numbers."""

    headings: list[str]
    is_number: list[bool]
    groups: list[TableGroup]


def tabulate(results: list[Result]) -> ResultTable:
    """The table of a sweep, for the terminal and the page."""
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
    """The columns `_NUMBERS`, and the common measure if the runs are ranked by one."""
    best = '–' if result.best_mlm_loss is None else f'{result.best_mlm_loss:.3f}'
    if result.best_step is not None and result.best_mlm_loss != result.final_mlm_loss:
        best += f' at {result.best_step}'
    shown = [
        '–' if result.final_mlm_loss is None else f'{result.final_mlm_loss:.3f}',
        best,
        '–' if result.nsp_accuracy is None else f'{result.nsp_accuracy:.1%}',
        '–' if result.tokens_per_second is None else f'{result.tokens_per_second:,.0f}',
    ]
    if result.common:
        shown.append('–' if result.common_value is None else result.common.show(result.common_value))
    return shown


def notes(results: list[Result]) -> list[str]:
    """Sentences to read with the table."""
    groups = comparable_groups(results)
    return [*filter(None, [ranking_note(groups)]), *optima_at_range_ends(groups)]


def table(results: list[Result]) -> str:
    """The table and its notes as text."""
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
    """(the group's title, the command of its best run) of each group that has one."""
    groups = comparable_groups(results)
    names = differing_fields(groups)
    return [
        (title(group, names) if len(groups) > 1 else '', shlex.join(['python', *group[0].run.train_command[1:]]))
        for group in groups
        if group[0].rank == 1
    ]
