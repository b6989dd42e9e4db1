"""The `sweep` command: checks, prepares, runs and shows the runs of a sweep file."""

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
    """Runs every unfinished run of a sweep, and shows the results of all.

    Args:
      runs: what `expand` returned.
      directory: of the sweep.
      jobs: maximum number of concurrent runs; 0 only shows results; None means 1 here and all under SLURM.
      slurm: options of sbatch, to submit the runs as an array; None runs them on this machine.

    Returns:
      Exit status, what `--json` prints, and the table. The status is 0 if all runs are finished (or submitted, or
      jobs is 0), 75 after a signal, 1 if a run failed, and that of `prepare` if a corpus cannot be prepared.

    Raises:
      BadInput: before any run is started.
    """
    if not is_local(directory):
        raise BadInput('--workdir', f'is {directory}', 'a directory on a local or shared disk, because it holds logs')
    launch.check_workdirs(runs)
    unfinished = [run for run in runs if not launch.is_finished(run)]
    if slurm is None and jobs:
        for platform in {run.config.platform for run in unfinished}:
            launch.visible_devices(platform, 0, jobs)
    if slurm is not None and jobs != 0:
        launch.check_slurm(directory)
    statuses: dict[str, int] = {}
    job, stopped = '', ''
    if unfinished and jobs != 0:
        say(f'{len(runs)} run{"s" if len(runs) != 1 else ""}, {len(runs) - len(unfinished)} already finished')
        with SignalForwarder() as signals, _hold(directory):
            status = launch.prepare_corpora(unfinished, signals)
            if status:
                found = (
                    f'was stopped by {signals.received}' if signals.received else f'failed with exit status {status}'
                )
                return status, {'runs': [], 'error': BadInput('prepare', found).as_json()}, ''
            if slurm is None:
                statuses = _run_here(runs, unfinished, jobs or 1, signals)
                stopped = signals.received
        if slurm is not None:
            task_ids = [runs.index(run) for run in unfinished]
            job = launch.submit(unfinished, task_ids, directory, jobs, slurm)
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
def _hold(directory: str) -> Iterator[None]:
    """Holds the lease of a sweep's directory, so that a second sweep does not start the same runs."""
    lease = Lease(directory)
    lease.acquire(say)
    try:
        yield
    finally:
        lease.close()


def _run_here(runs: tuple[Run, ...], unfinished: list[Run], jobs: int, signals: SignalForwarder) -> dict[str, int]:
    """Runs `unfinished` on this machine; returns {name: exit status} of the runs that ended."""
    statuses = {}
    num_finished = len(runs) - len(unfinished)

    def describe_progress() -> str:
        steps = {run.name: launch.saved_step(run) for run in unfinished if run.name not in statuses}
        saved = [f'{name} has saved step {step}' for name, step in steps.items() if step is not None]
        return '; '.join([f'{len(statuses)} of {len(unfinished)} runs have ended', *saved[:jobs]])

    with activity(describe_progress), progress_bar(total=len(runs), initial=num_finished, unit='run') as bar:
        ended = launch.run_all(unfinished, jobs, signals)
        for count, (run, status, seconds) in enumerate(ended, start=num_finished + 1):
            statuses[run.name] = status
            [result] = read_results((run,), statuses)
            bar.update()
            say(f'{count}/{len(runs)}  {run.name}: {_summarize(result)}, {tqdm.format_interval(seconds)}')
            for line in result.log_tail:
                say(f'    {line}')
    if signals.received:
        say(f'{signals.received}: the runs in progress have saved and stopped. Rerun the same command to resume.')
    return statuses


def _summarize(result: Result) -> str:
    parts = [result.status]
    if result.final_mlm_loss is not None:
        parts.append(f'MLM loss {result.final_mlm_loss:.3f}')
    if result.nsp_accuracy is not None:
        parts.append(f'NSP accuracy {result.nsp_accuracy:.1%}')
    if result.tokens_per_second is not None:
        parts.append(f'{result.tokens_per_second:,.0f} tokens/s')
    return ', '.join(parts)


def _exit_status(results: list[Result], statuses: dict[str, int], stopped: str) -> int:
    if stopped or EXIT_RUN_AGAIN in statuses.values():
        return EXIT_RUN_AGAIN
    return 1 if any(status for status in statuses.values()) else 0


def _describe(results: list[Result], commands: list[tuple[str, str]], page: str, job: str) -> str:
    lines = [table(results), '']
    for group, command in commands:
        lines.append(f'Best run{f" of group {group}" if group else ""}: {command}')
    if job:
        lines.append(f'Submitted as SLURM job {job}. To see its progress, rerun the same command with --jobs=0.')
    num_failed = sum(result.status.startswith('failed') for result in results)
    if num_failed:
        many = f'{num_failed} runs failed: see train.log in their workdirs'
        failed = '1 run failed: see train.log in its workdir' if num_failed == 1 else many
        lines.append(f'{failed}. Rerun the same command to try again.')
    return '\n'.join([*lines, f'Wrote {page}'])
