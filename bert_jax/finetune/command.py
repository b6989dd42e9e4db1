"""`finetune`: several seeds of one task, one after another, and what they have in common."""

import dataclasses
import statistics
from typing import Any

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.finetune.metrics import check_libraries
from bert_jax.finetune.seed import Outcome, Setup, run_seed
from bert_jax.finetune.start import starting_point
from bert_jax.finetune.tasks import open_task
from bert_jax.finetune.workdirs import seed_workdir, write_plan, write_results
from bert_jax.runtime import processes
from bert_jax.runtime.supervisor import Supervisor


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


def finetune(config: FinetuneConfig, workdir: str, num_seeds: int = 1) -> Summary:
    """Fine-tunes `num_seeds` times, from `train.seed` on, in WORKDIR/seed-N each; writes WORKDIR/results.json.

    What is finished is not done again, what was begun is gone on with.

    Raises:
      BadInput: before anything is written, when something cannot work.
    """
    check_libraries()
    seeds = range(config.train.seed, config.train.seed + num_seeds)
    workdirs = [seed_workdir(workdir, seed) for seed in seeds]
    train, outcomes = config.train, []

    def plan() -> None:
        if processes.is_first():
            write_plan(workdir, num_seeds)

    with Supervisor(
        stop_at=train.stop_at,
        watchdog_seconds=train.watchdog_seconds,
        watchdog_long_seconds=train.watchdog_long_seconds,
    ) as supervisor:
        start = starting_point(config, workdirs)
        setup = Setup.of(start, open_task(start.config.task, start.config.train, start.tokenizer))
        for seed, place in zip(seeds, workdirs, strict=True):
            outcomes.append(run_seed(setup, place, seed, supervisor, plan))
            if not outcomes[-1].finished:
                break
    summary = summarize(outcomes, num_seeds)
    if summary.finished and processes.is_first():
        write_results(workdir, dataclasses.asdict(summary))
    return summary


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
        each = ' '.join(f'{seed["metrics"][name]:.1%}' for seed in summary.seeds if seed['finished'])
        several = f'   median of {len(summary.seeds)} seeds, {low:.1%} to {high:.1%}: {each}'
        lines.append(f'  {name:20} {median:6.1%}' + (several if len(summary.seeds) > 1 else ''))
    return '\n'.join(lines)
