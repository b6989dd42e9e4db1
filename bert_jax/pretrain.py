"""Pretraining: assembles a run from its parts; `loop.fit` trains it."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
from flax import nnx
from jax.sharding import Mesh

from bert_jax.config import (
    Config,
    describe_batch,
    model_at,
    num_full_steps,
    phase_at,
    row_lengths,
)
from bert_jax.console import say
from bert_jax.data.batches import CorpusStream, Stream
from bert_jax.data.device_batches import Batches
from bert_jax.data.epochs import MOST_EPOCHS, epochs_of_phases, flags_of_shorter
from bert_jax.data.fill import fill_of_phases
from bert_jax.data.mixture import MixtureStream, describe_sources
from bert_jax.data.skips import merged
from bert_jax.data.streams import Streams, open_streams
from bert_jax.errors import as_started
from bert_jax.evaluation.evaluator import Evaluator
from bert_jax.evaluation.fill_in import Examples, FillIn
from bert_jax.evaluation.held_out import HeldOut
from bert_jax.evaluation.probe import Probe, ProbeSet, load_datasets
from bert_jax.loop import TrainingRun, begin, fit
from bert_jax.model.family import num_parameters
from bert_jax.model.replaced_tokens import build_of, to_family
from bert_jax.pretrained.initialize import pretraining_start
from bert_jax.pretrained.load import Pretrained, from_params
from bert_jax.pretrained.provenance import Provenance, of_run
from bert_jax.runtime import processes
from bert_jax.runtime.dtype import resolve_dtype
from bert_jax.runtime.mesh import mesh_of_run
from bert_jax.runtime.stopping import StopRequest
from bert_jax.runtime.supervisor import Supervisor
from bert_jax.train.attention import describe_attention
from bert_jax.train.memory import reporting_out_of_memory, resolve_microbatches
from bert_jax.train.objectives import objective_of
from bert_jax.train.phase_table import PhaseCost, describe_phases
from bert_jax.train.program import TrainProgram, build_program
from bert_jax.train.speed import full_batch_flops
from bert_jax.train.state import TrainState
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import Checkpoints
from bert_jax.workdir.log import RunLog


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What `train` reports.

    Attributes:
      step: the last step done.
      finished: whether that is the last step of the run.
      resumed_from: step of the checkpoint that the run resumed from; None if it started from the first step.
      metrics: the newest ones; None for those that are undefined or not finite.
    """

    step: int
    finished: bool
    resumed_from: int | None
    metrics: dict[str, float | None]


def pretrain(
    config: Config, workdir: str, stop: StopRequest | None = None, allow_change: Sequence[str] = ()
) -> Outcome:
    """Trains the run of a workdir to its last step, or resumes it.

    Args:
      stop: receives signals already; by default, signals are handled from here on.
      allow_change: fields of the fingerprint that may differ from those of the workdir's run (`identity.claim`).

    Raises:
      BadInput: before anything is written, if the run cannot work or the workdir holds another run.
    """
    train = config.train
    seconds = {'watchdog_seconds': train.watchdog_seconds, 'watchdog_long_seconds': train.watchdog_long_seconds}
    with Supervisor(stop, stop_at=train.stop_at, **seconds) as supervisor, reporting_out_of_memory(config):
        return _pretrain(config, workdir, supervisor, allow_change)


def _pretrain(config: Config, workdir: str, supervisor: Supervisor, allow_change: Sequence[str]) -> Outcome:
    # --- Resolve and check everything: nothing is written before. ---
    config = resolve_dtype(identity.with_recorded_defaults(config, workdir, allow_change))
    start_from = pretraining_start(config, workdir)
    mesh = mesh_of_run(start_from.config)
    streams = _open_streams(start_from.config, workdir)
    config, num_steps = streams.config, streams.config.train.steps
    start_from.check(streams.tokenizer)
    fingerprint = identity.fingerprint(streams.config, streams) | start_from.fingerprint
    processes.check_agreement(fingerprint)
    probe_sets = load_datasets(config.probe, config.train.probe_every)
    vocab_size = streams.tokenizer.vocab_size
    config = resolve_microbatches(config, mesh, vocab_size)
    objective = config.in_phases[0].objective
    program = build_program(
        config.model,
        config.optimizer,
        config.train,
        vocab_size,
        mesh,
        phases=config.phases,
        build=build_of(objective),
        objective=objective_of(objective),
    )

    # --- Claim the workdir. ---
    supervisor.acquire(workdir)
    keep, keep_every = config.train.keep_checkpoints, config.train.keep_every
    with Checkpoints(workdir, keep=keep, keep_every=keep_every, check=supervisor.check_lease) as checkpoints:
        identity.claim(
            workdir,
            streams.config,
            streams.tokenizer,
            fingerprint,
            start=start_from.start,
            allow_change=allow_change,
            step=checkpoints.latest_step(),
        )

        # --- Restore the state, or create a new one. ---
        new_state = functools.partial(start_from.new_state, program, config.train.seed, streams.tokenizer)
        begun = begin(workdir, program, checkpoints, new_state, supervisor)
        if begun is None:
            return Outcome(num_steps, True, num_steps, {})
        skipped = merged((*begun.record.skipped_batches, *config.train.skip))
        say(_describe(config, mesh, vocab_size, streams.train, start_from.start, begun.resumed_from))

        # --- Train. ---
        start, phase_steps = int(begun.state.step), [phase.train.steps for phase in config.in_phases]
        programs = program.of_phases(config.in_phases)
        evaluators = _evaluators(config, programs, streams, probe_sets, start_from.start)
        shorter = functools.partial(flags_of_shorter, config)
        with RunLog(workdir, start, num_steps, mesh, _describe_step, supervisor, shorter) as log:
            run = TrainingRun(
                workdir=workdir,
                programs=programs,
                updates=[each.train_step for each in programs],
                batches=Batches(streams.train, phase_steps, mesh, start, skipped),
                evaluators=evaluators,
                settings=config.train,
                new_state=new_state,
                supervisor=supervisor,
                checkpoints=checkpoints,
                log=log,
            )
            if config.init_larger and begun.resumed_from is None:
                _log_initial_loss(evaluators, begun.state, supervisor, log)
            say('Compiling the step …')
            fitted = fit(run, begun.state, dataclasses.replace(begun.record, skipped_batches=skipped))
            log.end(fitted.step, fitted.stopped_by)
            return Outcome(fitted.step, fitted.step == num_steps, begun.resumed_from, log.metrics)


def _open_streams(config: Config, workdir: str) -> Streams:
    """Opens the data of the run, and reports how much of each source it uses where sources are mixed."""
    streams = open_streams(config, progress=jax.process_index() == 0).of_workdir(workdir)
    for line in describe_sources(config, streams.train):
        say(line)
    return streams


def _log_initial_loss(evaluators: Sequence[Evaluator], state: TrainState, supervisor: Supervisor, log: RunLog) -> None:
    """Evaluates the weights that a run starts from on held-out text, and logs the result as that of step 0."""
    for evaluator in evaluators:
        if isinstance(evaluator, HeldOut) and evaluator.is_due(0, is_final=True):
            supervisor.enter_long_stage(evaluator.activity)
            result = evaluator(state.params, 0, lambda: False)
            assert result is not None  # None means interrupted
            log.log_evaluation(0, result.metrics, result.description)


def _evaluators(
    config: Config,
    programs: Sequence[TrainProgram],
    streams: Streams,
    probe_sets: list[ProbeSet],
    start: Provenance | None,
) -> list[Evaluator]:
    """Returns the evaluators of a run, in the order in which they run."""
    train, tokenizer, max_positions = config.train, streams.tokenizer, config.model.max_positions
    if None in streams.validation:
        say('Too little held-out text for the objective: nothing will be evaluated (data.validation_fraction)')

    def phase_of(step: int) -> int:
        return phase_at(config, step)

    def pretrained_at(params: nnx.State, step: int) -> Pretrained:
        model, objective = model_at(config, step), config.in_phases[0].objective
        params = to_family(params, objective, model, tokenizer.vocab_size)
        return from_params(params, model, tokenizer, step, of_run(config, step, start))

    examples = Examples(train.examples, tokenizer, programs, of_run(config, 1, start).max_length(max_positions))
    evaluators: list[Evaluator] = [
        HeldOut(programs, streams.validation, phase_of, train.evaluate_every, train.evaluate_rows)
    ]
    if probe_sets:
        evaluators.append(Probe(probe_sets, train.probe_every, pretrained_at))
    filling = [index for index, phase in enumerate(config.in_phases) if phase.objective.fills_masks]
    return [*evaluators, FillIn(examples, phase_of, train.evaluate_every, filling)]


def _describe(
    config: Config,
    mesh: Mesh,
    vocab_size: int,
    streams: tuple[Stream, ...],
    start: Provenance | None,
    resumed_from: int | None,
) -> str:
    """Describes what is trained on which devices and data; for a new run also with warnings and suggestions."""
    is_new, devices, build = resumed_from is None, jax.devices(), build_of(config.in_phases[0].objective)
    hosts = [processes.describe_hosts()] if jax.process_count() > 1 or devices[0].platform != 'cpu' else []
    axes = ', '.join(f'{axis}={size}' for axis, size in mesh.shape.items())
    lines = [
        *hosts,
        f'Devices:    {len(devices)} x {devices[0].device_kind} ({devices[0].platform}); mesh {axes}',
        f'Model:      {config.model.family}, {num_parameters(config.model, vocab_size, build):,} parameters, '
        f'vocabulary {vocab_size:,}; {config.model.dtype}',
        f'Attention:  {describe_attention(config, mesh.devices.flat[0].platform, mesh.shape["tensor"])}',
    ]
    epochs = epochs_of_phases(config, streams)
    for phase, stream, passes in zip(config.in_phases, streams, epochs, strict=True):
        lines.append(
            f'{"Data:":11} {stream.num_rows:,} rows of {_describe_lengths(phase, stream)} positions per epoch (up to '
            f'{stream.num_rows * phase.data.sequence_length:,} tokens)'
        )
        if not config.phases:
            lines.append(
                f'{"":11} {phase.train.steps:,} steps of {describe_batch(phase.train)} rows are {passes:,.2f} epochs'
            )
    if isinstance(streams[0], CorpusStream | MixtureStream):
        fills = fill_of_phases(config, streams[0].split)
        lines += [f'{"":11} {fill if is_new else dataclasses.replace(fill, better={})}' for fill in fills]
    if config.phases:
        flops = [full_batch_flops(phase, vocab_size) * num_full_steps(phase.train) for phase in config.in_phases]
        costs = [PhaseCost(*known) for known in zip(epochs, flops, strict=True)]
        lines += ['Phases:     FLOPs are those of full rows', *describe_phases(config, costs).splitlines()]
    max_positions = config.model.max_positions
    trained = of_run(config, config.train.steps, start).max_length(max_positions)
    if trained < max_positions:
        lines.append(
            f'Positions:  only the first {trained:,} of {max_positions:,} are trained; longer texts will be cut there. '
            f'A last phase with sequence_length={max_positions} trains them all'
        )
    if is_new and (total := sum(epochs)) > MOST_EPOCHS:
        lines.append(
            f'warning: the run trains for {total:,.0f} epochs; beyond about {MOST_EPOCHS} it learns little more. '
            f'Use more text, or {flags_of_shorter(config, MOST_EPOCHS / total)}; '
            f'`{as_started("bert-jax advise --config=…")}` chooses size and epochs for a text'
        )
    return '\n'.join(lines)


def _describe_lengths(phase: Config, stream: Stream) -> str:
    """Returns the lengths of the rows: `512`, or with buckets `64 (20%), 128 (30%) or 512 (50%)`."""
    *shorter, longest = row_lengths(phase.data)
    if not shorter:
        return str(longest)
    assert isinstance(stream, CorpusStream)  # records have no buckets
    shares = stream.windows.bucket_sizes / stream.num_rows
    *shorter, longest = (f'{length} ({share:.0%})' for length, share in zip((*shorter, longest), shares, strict=True))
    return f'{", ".join(shorter)} or {longest}'


def _describe_step(metrics: dict[str, float]) -> str:
    accuracies = [(name.removesuffix('_accuracy'), value) for name, value in metrics.items() if '_accuracy' in name]
    measured = [f'{name.upper()} {value:.1%}' for name, value in accuracies if math.isfinite(value)]
    return '  '.join([f'loss {metrics["loss"]:.3f}', *measured])
