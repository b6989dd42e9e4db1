"""`finetune`: several seeds of one task, one after another, and what they have in common."""

import dataclasses
import statistics
from typing import Any

from bert_jax.config import Config
from bert_jax.config.finetuning import FinetuneConfig, batch_of
from bert_jax.console import say
from bert_jax.finetune.metrics import check_libraries, shown
from bert_jax.finetune.seed import Outcome, Setup, claim, run_seed
from bert_jax.finetune.start import finetuning_start
from bert_jax.finetune.tasks import open_task
from bert_jax.finetune.workdirs import seed_workdir, seeds_of, write_plan, write_results
from bert_jax.runtime import processes
from bert_jax.runtime.stopping import StopRequest
from bert_jax.runtime.supervisor import Supervisor
from bert_jax.train.memory import reporting_out_of_memory
from bert_jax.workdir import identity


@dataclasses.dataclass(frozen=True)
class Summary:
    """What all seeds came to.

    Attributes:
      metrics: {name: median over the seeds}.  spread: {name: [lowest, highest]}.
      finished: whether every seed is at its last step; else the figures are of those that are.
    """

    finished: bool
    metrics: dict[str, float]
    spread: dict[str, list[float]]
    seeds: list[dict[str, Any]]


def finetune(config: FinetuneConfig, workdir: str, num_seeds: int = 1, stop: StopRequest | None = None) -> Summary:
    """Fine-tunes `num_seeds` times, from `train.seed` on, in WORKDIR/seed-N each; writes WORKDIR/results.json.

    Finished seeds are not repeated, and unfinished ones resume.

    Args:
      stop: what listens for signals already; without it they are listened for from here on.

    Raises:
      BadInput: before anything is written, when something cannot work.
    """
    check_libraries()
    train = config.train
    workdirs = {seed: seed_workdir(workdir, seed) for seed in range(train.seed, train.seed + num_seeds)}
    if begun := seeds_of(workdir):
        config = identity.with_recorded_defaults(config, begun[0])
    with Supervisor(
        stop,
        stop_at=train.stop_at,
        watchdog_seconds=train.watchdog_seconds,
        watchdog_long_seconds=train.watchdog_long_seconds,
    ) as supervisor:
        start = finetuning_start(config, [*workdirs.values()])
        setup = Setup.of(start, open_task(start.config.task, start.config.train, start.tokenizer))
        memory = Config(model=start.config.model, train=batch_of(start.config.train), mesh=start.config.mesh)
        with reporting_out_of_memory(memory, finds_microbatches=False):
            outcomes = _run_seeds(setup, workdir, workdirs, supervisor)
    summary = summarize(outcomes, num_seeds)
    if summary.finished and processes.is_process_zero():
        write_results(workdir, dataclasses.asdict(summary))
    return summary


def _run_seeds(setup: Setup, workdir: str, workdirs: dict[int, str], supervisor: Supervisor) -> list[Outcome]:
    """Runs the seeds in order, until one is stopped, or a request to stop comes between two.

    Args:
      workdirs: {seed: its workdir}.
    """
    outcomes: list[Outcome] = []
    for seed, place in workdirs.items():
        if outcomes and supervisor.any_should_stop():
            reason = supervisor.received or 'another process'
            say(f'Stopped by {reason} before seed {seed}. Rerun the same command to resume.')
            break
        claim(setup, place, seed, supervisor)
        if not outcomes and processes.is_process_zero():
            write_plan(workdir, len(workdirs))
        outcomes.append(run_seed(setup, place, seed, supervisor))
        if not outcomes[-1].finished:
            break
    return outcomes


def summarize(outcomes: list[Outcome], num_seeds: int) -> Summary:
    """Median and range of every figure over the finished seeds."""
    done = [outcome.metrics for outcome in outcomes if outcome.finished]
    by_name = {name: [metrics[name] for metrics in done] for name in (done[0] if done else {})}
    return Summary(
        len(done) == num_seeds,
        {name: statistics.median(values) for name, values in by_name.items()},
        {name: [min(values), max(values)] for name, values in by_name.items()},
        [dataclasses.asdict(outcome) for outcome in outcomes],
    )


def describe(summary: Summary) -> str:
    """A line for each figure: its median, its range, and every seed."""
    lines = []
    for name, median in summary.metrics.items():
        low, high = summary.spread[name]
        each = ' '.join(shown(name, seed['metrics'][name]) for seed in summary.seeds if seed['finished'])
        several = f'   median of {len(summary.seeds)} seeds, {shown(name, low)} to {shown(name, high)}: {each}'
        lines.append(f'  {name:20} {shown(name, median):>6}' + (several if len(summary.seeds) > 1 else ''))
    return '\n'.join(lines)
