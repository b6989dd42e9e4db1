"""`sweep`, from a sweep file to its table: checked, prepared, run, shown."""

import contextlib
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from bert_jax.activity import activity
from bert_jax.console import progress_bar, say
from bert_jax.errors import BadInput
from bert_jax.files import is_local
from bert_jax.runtime.lease import Lease
from bert_jax.runtime.stopping import EXIT_RUN_AGAIN
from bert_jax.sweep import launch
from bert_jax.sweep.launch import SignalForwarder
from bert_jax.sweep.page import write_page
from bert_jax.sweep.results import Result, best_commands, read_results, table
from bert_jax.sweep.runs import Run


def sweep(
    runs: tuple[Run, ...], directory: str, jobs: int | None, slurm: str | None
) -> tuple[int, dict[str, Any], str]:
    """Gets every run of a sweep done that is not, and shows all.

    Args:
      runs: as `expand` gives them.  directory: of the sweep.
      jobs: how many at a time; 0 starts none and only shows what there is; None is 1 here and all under SLURM.
      slurm: options of sbatch, to submit the runs as an array; None runs them on this machine.

    Returns:
      Exit status, what `--json` prints, and the table. The status is 0 when all runs are finished (or submitted, or
      jobs is 0), 75 after a signal, 1 when a run failed, and that of `prepare` when a corpus cannot be made.

    Raises:
      BadInput: before anything is started.
    """
    if not is_local(directory):
        raise BadInput('--workdir', f'is {directory}', 'a directory on a local or shared disk: logs are written there')
    launch.check_workdirs(runs)
    todo = [run for run in runs if not launch.is_finished(run)]
    if slurm is None and jobs:
        for platform in {run.config.platform for run in todo}:
            launch.visible_devices(platform, 0, jobs)
    if slurm is not None and jobs != 0:
        launch.check_slurm(directory)
    statuses: dict[str, int] = {}
    job, stopped = '', ''
    if todo and jobs != 0:
        say(f'{len(runs)} runs, {len(runs) - len(todo)} of them finished')
        with SignalForwarder() as signals, _held(directory):
            status = launch.prepare_corpora(todo, signals)
            if status:
                found = f'was stopped by {signals.received}' if signals.received else f'ended with exit status {status}'
                return status, {'runs': [], 'error': BadInput('prepare', found).as_json()}, ''
            if slurm is None:
                statuses = _run_here(runs, todo, jobs or 1, signals)
                stopped = signals.received
        if slurm is not None:
            job = launch.submit(todo, [runs.index(run) for run in todo], directory, jobs, slurm)
    results = read_results(runs, statuses)
    page = str(write_page(results, directory))
    commands = best_commands(results)
    as_json = {
        'runs': [result.as_json() for result in results],
        'best': [{'group': group, 'command': command} for group, command in commands],
        'page': page,
    }
    if job:
        as_json['job'] = job
    return _exit_status(results, statuses, stopped), as_json, _describe(results, commands, page, job)


@contextlib.contextmanager
def _held(directory: str) -> Iterator[None]:
    """Holds the directory of a sweep, so that a second one does not start the same runs."""
    lease = Lease(directory)
    lease.acquire(say)
    try:
        yield
    finally:
        lease.close()


def _run_here(runs: tuple[Run, ...], todo: list[Run], jobs: int, signals: SignalForwarder) -> dict[str, int]:
    statuses = {}
    done = len(runs) - len(todo)

    def describe_progress() -> str:
        steps = {run.name: launch.saved_step(run) for run in todo if run.name not in statuses}
        begun = [f'{name} has saved step {step}' for name, step in steps.items() if step is not None]
        return '; '.join([f'{len(statuses)} of {len(todo)} runs have ended', *begun[:jobs]])

    with activity(describe_progress), progress_bar(total=len(runs), initial=done, unit='run') as bar:
        for number, (run, status, seconds) in enumerate(launch.run_all(todo, jobs, signals), start=done + 1):
            statuses[run.name] = status
            [result] = read_results((run,), statuses)
            bar.update()
            say(f'{number}/{len(runs)}  {run.name}: {_in_short(result)}, {tqdm.format_interval(seconds)}')
            for line in result.log_tail:
                say(f'    {line}')
    if signals.received:
        say(f'{signals.received}: the runs in progress are saved. Rerun the same command to resume.')
    return statuses


def _in_short(result: Result) -> str:
    shown = [result.status]
    if result.final_mlm_loss is not None:
        shown.append(f'MLM loss {result.final_mlm_loss:.3f}')
    if result.nsp_accuracy is not None:
        shown.append(f'NSP {result.nsp_accuracy:.1%}')
    if result.tokens_per_second is not None:
        shown.append(f'{result.tokens_per_second:,.0f} tokens/s')
    return ', '.join(shown)


def _exit_status(results: list[Result], statuses: dict[str, int], stopped: str) -> int:
    if stopped or EXIT_RUN_AGAIN in statuses.values():
        return EXIT_RUN_AGAIN
    return 1 if any(status for status in statuses.values()) else 0


def _describe(results: list[Result], commands: list[tuple[str, str]], page: str, job: str) -> str:
    lines = [table(results), '']
    for group, command in commands:
        lines.append(f'Best{f" of {group}" if group else ""}: {command}')
    if job:
        lines.append(f'Submitted as job {job} of SLURM; the same command with --jobs=0 shows how far it is.')
    failed = sum(result.status.startswith('failed') for result in results)
    if failed:
        lines.append(f'{failed} failed (train.log in the workdir of each); the same command tries them again.')
    return '\n'.join([*lines, f'Wrote {page}'])
