"""`finetune`: fine-tunes one task with several seeds, one after another, and summarizes their metrics."""

import dataclasses
import statistics
from typing import Any

from bert_jax.config import Config
from bert_jax.config.finetuning import FinetuneConfig, batch_of
from bert_jax.console import say
from bert_jax.finetune.metrics import check_libraries, format_metric
from bert_jax.finetune.seed import SeedResult, Setup, claim_workdir, run_seed
from bert_jax.finetune.start import prepare_start
from bert_jax.finetune.tasks import read_data
from bert_jax.finetune.workdirs import seed_workdir, seeds_of, write_plan, write_results
from bert_jax.runtime import processes
from bert_jax.runtime.dtype import resolve_dtype
from bert_jax.runtime.stopping import StopRequest
from bert_jax.runtime.supervisor import Supervisor
from bert_jax.train.memory import reporting_out_of_memory
from bert_jax.workdir import identity


@dataclasses.dataclass(frozen=True)
class Summary:
    """The results of all seeds.

    Attributes:
      metrics: {name: median over the seeds}.  spread: {name: [lowest, highest]}.
      finished: whether every seed reached its last step; if not, the metrics cover only those that did.
    """

    finished: bool
    metrics: dict[str, float]
    spread: dict[str, list[float]]
    seeds: list[dict[str, Any]]


def finetune(config: FinetuneConfig, workdir: str, num_seeds: int = 1, stop: StopRequest | None = None) -> Summary:
    """Fine-tunes with seeds `train.seed`, `train.seed` + 1, …, in WORKDIR/seed-N; writes WORKDIR/results.json.

    Finished seeds are not repeated, and unfinished ones resume.

    Args:
      stop: an existing signal handler; by default, a new one is installed.

    Raises:
      BadInput: if the config or its files cannot be used; nothing has been written then.
    """
    check_libraries()
    train = config.train
    workdirs = {seed: seed_workdir(workdir, seed) for seed in range(train.seed, train.seed + num_seeds)}
    if existing := seeds_of(workdir):
        config = identity.with_recorded_defaults(config, existing[0])
    config = resolve_dtype(config)
    with Supervisor(
        stop,
        stop_at=train.stop_at,
        watchdog_seconds=train.watchdog_seconds,
        watchdog_long_seconds=train.watchdog_long_seconds,
    ) as supervisor:
        start = prepare_start(config, [*workdirs.values()])
        setup = Setup.create(start, read_data(start.config, start.tokenizer))
        memory = Config(model=start.config.model, train=batch_of(start.config.train), mesh=start.config.mesh)
        with reporting_out_of_memory(memory, finds_microbatches=False):
            outcomes = _run_seeds(setup, workdir, workdirs, supervisor)
    summary = summarize(outcomes, num_seeds)
    if summary.finished and processes.is_process_zero():
        write_results(workdir, dataclasses.asdict(summary))
    return summary


def _run_seeds(setup: Setup, workdir: str, workdirs: dict[int, str], supervisor: Supervisor) -> list[SeedResult]:
    """Runs the seeds in order until one is stopped or a stop is requested between two.

    Args:
      workdirs: {seed: its workdir}.
    """
    outcomes: list[SeedResult] = []
    for seed, directory in workdirs.items():
        if outcomes and supervisor.any_should_stop():
            reason = supervisor.received or 'another process'
            say(f'Stopped by {reason} before seed {seed}. Rerun the same command to resume.')
            break
        claim_workdir(setup, directory, seed, supervisor)
        if not outcomes and processes.is_process_zero():
            write_plan(workdir, len(workdirs))
        outcomes.append(run_seed(setup, directory, seed, supervisor))
        if not outcomes[-1].finished:
            break
    return outcomes


def summarize(outcomes: list[SeedResult], num_seeds: int) -> Summary:
    """Computes the median and range of every metric over the finished seeds."""
    finished = [outcome.metrics for outcome in outcomes if outcome.finished]
    by_name = {name: [metrics[name] for metrics in finished] for name in (finished[0] if finished else {})}
    return Summary(
        len(finished) == num_seeds,
        {name: statistics.median(values) for name, values in by_name.items()},
        {name: [min(values), max(values)] for name, values in by_name.items()},
        [dataclasses.asdict(outcome) for outcome in outcomes],
    )


def describe(summary: Summary) -> str:
    """Formats one line per metric: median, range and the value of every seed."""
    lines = []
    for name, median in summary.metrics.items():
        low, high = summary.spread[name]
        values = ' '.join(format_metric(name, seed['metrics'][name]) for seed in summary.seeds if seed['finished'])
        range_text = f'{format_metric(name, low)} to {format_metric(name, high)}'
        details = f'   median of {len(summary.seeds)} seeds, {range_text}: {values}'
        lines.append(f'  {name:20} {format_metric(name, median):>6}' + (details if len(summary.seeds) > 1 else ''))
    return '\n'.join(lines)
