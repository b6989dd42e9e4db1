"""Starts the runs of a sweep, as processes on this machine or as a SLURM array.

A run that has the checkpoint of its last step is finished and is not started again. The output of a run goes to
train.log in its workdir. A failing run does not stop the others.
"""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from etils import epath

from bert_jax.config import is_records
from bert_jax.config.fields import identity_of
from bert_jax.errors import BadInput
from bert_jax.files import write_whole
from bert_jax.runtime import end_with_parent
from bert_jax.runtime.lease import holder_of
from bert_jax.runtime.stopping import EXIT_BAD_INPUT, EXIT_RUN_AGAIN
from bert_jax.sweep.runs import Run
from bert_jax.workdir import identity as run_files
from bert_jax.workdir.seal import sealed_steps

LOG = 'train.log'
_POLL_SECONDS = 0.1


def saved_step(run: Run) -> int | None:
    """Returns the step of the newest sealed checkpoint, or None."""
    return max(sealed_steps(epath.Path(run.workdir) / 'checkpoints'), default=None)


def is_finished(run: Run) -> bool:
    """Returns whether the run's last step is saved."""
    return saved_step(run) == run.config.train.steps


def check_workdirs(runs: tuple[Run, ...]) -> None:
    """Raises BadInput if a run's workdir holds another run, naming the fields that differ."""
    for run in runs:
        if not Path(run.workdir, 'config.json').exists():
            continue
        ours = json.loads(
            json.dumps(identity_of(run_files.with_recorded_defaults(run.config, run.workdir, quiet=True)))
        )
        theirs = run_files.load_fingerprint(run.workdir)
        if differ := [name for name in theirs.keys() & ours.keys() if theirs[name] != ours[name]]:
            found = f'holds another run: {run_files.describe_differences(differ, theirs, ours)}'
            raise BadInput(run.workdir, found, 'the same values', 'use another --workdir')


# --- On this machine. ---


class SignalForwarder:
    """Forwards SIGINT and SIGTERM to the running processes, which save and stop.

    Attributes:
      received: name of the first signal, '' before it.
      processes: the processes to forward to.
    """

    _FORWARDED = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = ''
        self.processes: list[subprocess.Popen] = []

    def __enter__(self) -> 'SignalForwarder':
        self._previous_handlers = {signum: signal.signal(signum, self._receive) for signum in self._FORWARDED}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, _: FrameType | None) -> None:
        self.received = self.received or signal.Signals(signum).name
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signum)


def prepare_corpora(runs: list[Run], signals: SignalForwarder) -> int:
    """Prepares the missing corpora one after the other; returns the exit status of the first that fails, or 0."""
    corpora = {run.config.data.corpus: run for run in runs if not is_records(run.config.data.source)}
    missing = {directory: run for directory, run in corpora.items() if not Path(directory, 'manifest.json').exists()}
    for run in missing.values():
        command = end_with_parent.command(['-m', 'bert_jax', 'prepare', *run.flags])
        process = subprocess.Popen(command, stdout=sys.stderr, stdin=subprocess.DEVNULL, start_new_session=True)
        signals.processes = [process]
        status = process.wait()
        if signals.received:
            return EXIT_RUN_AGAIN
        if status:
            return status
    return 0


def run_all(runs: list[Run], jobs: int, signals: SignalForwarder) -> Iterator[tuple[Run, int, float]]:
    """Runs `train` for each run, `jobs` at a time, and yields (run, exit status, seconds) as the runs end.

    After a signal no further run is started. A run whose workdir another process holds is not started either; its
    status is 75, so that it can be retried later.
    """
    waiting, slots = list(runs), {}
    try:
        while (waiting and not signals.received) or slots:
            for slot in range(jobs):
                if slot not in slots and waiting and not signals.received:
                    run = waiting.pop(0)
                    if holder_of(run.workdir):
                        yield run, EXIT_RUN_AGAIN, 0.0
                        continue
                    slots[slot] = (run, _start(run, slot, jobs), time.monotonic())
                    signals.processes = [process for _, process, _ in slots.values()]
            for slot, (run, process, start) in list(slots.items()):
                if process.poll() is not None:
                    del slots[slot]
                    # Another process may have taken the workdir since the check above.
                    is_held = process.returncode == EXIT_BAD_INPUT and holder_of(run.workdir)
                    yield run, EXIT_RUN_AGAIN if is_held else process.returncode, time.monotonic() - start
            time.sleep(_POLL_SECONDS)
    finally:  # an error here leaves no process running
        for _, process, _ in slots.values():
            process.terminate()
            process.wait()


def _start(run: Run, slot: int, jobs: int) -> subprocess.Popen:
    Path(run.workdir).mkdir(parents=True, exist_ok=True)
    with open(Path(run.workdir, LOG), 'ab', buffering=0) as log:
        with contextlib.suppress(OSError):  # on a full disk the line is omitted
            log.write(f'$ {shlex.join(run.train_command)}\n'.encode(errors='backslashreplace'))
        return subprocess.Popen(
            end_with_parent.command(run.train_command[1:]),
            env=os.environ | visible_devices(run.config.platform, slot, jobs),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the processes through `SignalForwarder`, once
        )


def visible_devices(platform: str, slot: int, jobs: int) -> dict[str, str]:
    """Returns environment variables that give a slot its equal share of the GPUs; {} for one job, or without GPUs.

    Raises:
      BadInput: if there are fewer GPUs than jobs.
    """
    if jobs == 1 or platform not in ('', 'cuda') or os.environ.get('JAX_PLATFORMS') == 'cpu':
        return {}
    from bert_jax.runtime.processes import share_of_devices, visible_gpus

    count = visible_gpus(os.environ)
    if not count:
        return {}
    if jobs > count:
        expected = f'at most {count}, one per GPU'
        raise BadInput('--jobs', f'is {jobs}', expected, f'--jobs={count}, or --config.platform=cpu')
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = [name for name in visible.split(',') if name] if visible else [str(i) for i in range(count)]
    return {'CUDA_VISIBLE_DEVICES': ','.join(names[i] for i in share_of_devices(slot, jobs, count))}


def log_tail(run: Run, num_lines: int = 4) -> list[str]:
    """Returns the last lines of a run's log."""
    path = Path(run.workdir, LOG)
    return path.read_text(errors='replace').splitlines()[-num_lines:] if path.exists() else []


# --- SLURM. ---

_SCRIPT = """\
#!/bin/bash
# Written by `bert-jax sweep`: each task of the array is one run.
#SBATCH --job-name={name}
#SBATCH --array={array}
#SBATCH --output={output}
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180

case $SLURM_ARRAY_TASK_ID in
{cases}
esac
mkdir -p "$workdir"
srun --kill-on-bad-exit=0 --output="$workdir/{log}" --open-mode=append \\
  {python} -m bert_jax train "$@" --workdir="$workdir" &
step=$!
# SIGUSR1: three minutes before the time limit; SIGTERM: preempted. The run saves and exits with 75: run it again.
trap 'kill -USR1 $step' USR1
trap 'kill -TERM $step' TERM

wait $step
status=$?
while kill -0 $step 2>/dev/null; do # a trap ends `wait` early
  wait $step
  status=$?
done
if [ $status -eq {again} ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID" && exit 0
fi
exit $status
"""


def slurm_script(runs: list[Run], task_ids: list[int], directory: str, jobs: int | None) -> str:
    """Returns the script of a SLURM array.

    Args:
      runs: the runs to start.
      task_ids: their indices among all runs of the sweep, which become the ids of the array's tasks.
      jobs: maximum number of concurrent runs; None leaves it to SLURM.
    """
    cases = '\n'.join(
        f'  {task_id}) workdir={shlex.quote(os.path.abspath(run.workdir))}; set -- {shlex.join(run.flags)} ;;'
        for task_id, run in zip(task_ids, runs, strict=True)
    )
    return _SCRIPT.format(
        name=_job_name(directory),
        array=','.join(map(str, task_ids)) + (f'%{jobs}' if jobs else ''),
        output=shlex.quote(f'{os.path.abspath(directory)}/slurm-%A_%a.out'),
        cases=cases,
        log=LOG,
        python=shlex.quote(sys.executable),
        again=EXIT_RUN_AGAIN,
    )


def check_slurm(directory: str) -> None:
    """Raises BadInput if there is no sbatch, or if an earlier array of this sweep is in the queue."""
    if shutil.which('sbatch') is None:
        raise BadInput('--slurm', 'sbatch is not found', 'a machine that can submit SLURM jobs', 'omit --slurm')
    queue = ['squeue', '--noheader', f'--name={_job_name(directory)}', '--format=%F']
    queued = subprocess.run(queue, capture_output=True, text=True).stdout.split()
    if queued:
        found = f'job {queued[0]} of this sweep is in the queue'
        raise BadInput('--slurm', found, '', f'scancel {queued[0]}, or wait for it')


def submit(runs: list[Run], task_ids: list[int], directory: str, jobs: int | None, options: str) -> str:
    """Writes DIR/sweep.sbatch and submits it with sbatch's `options`; returns the job id.

    Raises:
      BadInput: if sbatch fails.
    """
    script = Path(directory, 'sweep.sbatch')
    script.parent.mkdir(parents=True, exist_ok=True)
    write_whole(script, slurm_script(runs, task_ids, directory, jobs))
    command = ['sbatch', '--parsable', *shlex.split(options), str(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BadInput('--slurm', f'sbatch failed: {done.stderr.strip()}', 'valid options of sbatch')
    return done.stdout.strip().partition(';')[0]


def _job_name(directory: str) -> str:
    return 'sweep-' + hashlib.sha256(os.path.abspath(directory).encode()).hexdigest()[:8]
