"""A training run, from top to bottom."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from bert_jax.config import Config, in_phases, positions_trained, row_lengths
from bert_jax.data.batches import Stream
from bert_jax.data.device_batches import Feed
from bert_jax.data.skips import merged
from bert_jax.data.streams import open_streams
from bert_jax.evaluation import probe
from bert_jax.evaluation.evaluate import evaluate_params
from bert_jax.evaluation.fill_in import Examples
from bert_jax.model.bert import num_parameters
from bert_jax.pretrained.initialize import starting_point
from bert_jax.pretrained.load import from_params
from bert_jax.runtime import processes
from bert_jax.runtime.lease import Lease, lease_of_run
from bert_jax.runtime.processes import say
from bert_jax.runtime.stopping import StopRequest
from bert_jax.runtime.watchdog import Watchdog
from bert_jax.train.divergence import Guard, Record, check_may_go_back
from bert_jax.train.exact import make_exact_step
from bert_jax.train.memory import run_within_memory, settle
from bert_jax.train.optimizer import make_optimizer, make_schedule
from bert_jax.train.replicas import Replicas
from bert_jax.train.sharding import mesh_of_run
from bert_jax.train.speed import Speedometer
from bert_jax.train.state import TrainState, init_state, model_graph, state_shardings
from bert_jax.train.step import make_evaluation_step, make_train_step
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import Checkpoints
from bert_jax.workdir.history import History, hardware
from bert_jax.workdir.metrics import MetricsWriter


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What `train` reports: the step reached, whether that is the last, the step it went on from, last metrics."""

    step: int
    finished: bool
    resumed_from: int | None
    metrics: dict[str, float]


def train(config: Config, workdir: str, stop: StopRequest | None = None, allow_change: Sequence[str] = ()) -> Outcome:
    """Trains the run of a workdir to its last step, or goes on with it.

    Args:
      stop: what listens for signals already; without it they are listened for from here on.
      allow_change: fields of the fingerprint that may differ from those of the workdir's run (`run.claim`).

    Raises:
      BadInput: before anything is written, when the run cannot work or the workdir holds another.
    """
    with contextlib.ExitStack() as around:
        stop = stop or around.enter_context(StopRequest())
        stop.set_time(config.train.stop_at)
        watchdog = around.enter_context(Watchdog(config.train.watchdog_seconds, config.train.watchdog_long_seconds))
        lease = around.enter_context(lease_of_run(workdir, stop, watchdog))
        stop.before_ending.append(watchdog.stopped)
        parts = (config, workdir, allow_change, stop, watchdog, lease, around)
        return run_within_memory(lambda: _train(*parts), config)


def _train(
    config: Config,
    workdir: str,
    allow_change: Sequence[str],
    stop: StopRequest,
    watchdog: Watchdog,
    lease: Lease,
    around: contextlib.ExitStack,
) -> Outcome:
    # --- What it starts from: random weights, or a model that is there (config.init), whose sizes it takes over. ---
    start_from = starting_point(config, workdir)

    # --- What there is: devices, streams. Nothing is written before all of it is sound. ---
    mesh = mesh_of_run(start_from.config)
    streams = open_streams(start_from.config, progress=jax.process_index() == 0)
    config, num_steps = streams.config, streams.config.train.steps
    if None in streams.validation:
        say('Held-out text: too little for the objective, so nothing is evaluated (data.validation_fraction)')
    start_from.check(streams.tokenizer)
    labelled_sets = probe.open_sets(config)
    microbatches = settle(config, mesh, streams.tokenizer.vocab_size).train.microbatches
    fingerprint = identity.fingerprint(config, streams) | start_from.fingerprint
    processes.check_agreement(fingerprint)
    checkpoints = Checkpoints(workdir, keep=config.train.keep_checkpoints, keep_every=config.train.keep_every)
    checkpoints.before_sealing = lease.check
    processes.first_does(lambda: lease.acquire(say))
    last = checkpoints.latest_step()
    identity.claim(workdir, config, streams.tokenizer, fingerprint, allow_change=allow_change, step=last)

    # --- The state: restored, or new. ---
    vocab_size = streams.tokenizer.vocab_size
    optimizer = make_optimizer(config.optimizer, num_steps, config.phases)
    shapes, shardings = state_shardings(config.model, vocab_size, optimizer, mesh)
    watchdog.enter_long('reading checkpoints')
    resumed_from = checkpoints.set_aside_unsound()
    if resumed_from == num_steps:
        checkpoints.close()
        say(f'{workdir} is finished: all {num_steps} steps are done. Nothing to do.')
        return Outcome(resumed_from, True, resumed_from, {})

    def state_at(step: int | None) -> tuple[TrainState, Record]:
        """The state of a checkpoint, or a new one, and what is known of its numbers."""
        if step is not None:
            return checkpoints.restore(shapes, shardings, step), checkpoints.record(step)
        params = start_from.params(streams.tokenizer)
        state = init_state(config.model, vocab_size, optimizer, mesh, config.train.seed, params)
        return start_from.with_moments(state, shardings), Record()

    if resumed_from is not None:
        say(f'Going on with {workdir} from step {resumed_from} of {num_steps}.')
    state, record = state_at(resumed_from)
    record = dataclasses.replace(record, passed_over=merged((*record.passed_over, *config.train.skip)))
    say(_describe(config, mesh, vocab_size, streams.train))
    wants_to_stop = processes.AnyProcess(mesh)

    # --- The step, compiled at its first use. ---
    graph, schedule = model_graph(config.model, vocab_size), make_schedule(config.optimizer, num_steps, config.phases)
    parts = (graph, optimizer, schedule, mesh, shardings)
    if config.train.reduction == 'exact':
        train_step = make_exact_step(*parts, seed=config.train.seed, num_shards=config.train.exact_shards)
    else:
        train_step = make_train_step(*parts, seed=config.train.seed, microbatches=microbatches)
    evaluation_step = make_evaluation_step(graph, mesh, shardings.params)
    positions = config.model.max_positions
    examples = Examples(config.train.examples, streams.tokenizer, positions, graph, mesh, shardings.params)

    # --- The loop. At each step, in this order: 1. update  2. go back, if the numbers went wrong  3. log
    #     4. evaluate, probe  5. compare the replicas  6. save. ---
    start, speed = int(state.step), Speedometer(config.model, vocab_size)
    writer = around.enter_context(contextlib.closing(MetricsWriter(workdir, start)))
    history, progress = History(workdir), Progress(start, num_steps, _describe_step)
    history.add('start', start, lost_steps=writer.lost_steps, **hardware(mesh))
    metrics: dict[str, float] = {}
    guard, replicas = Guard(config.train, record), Replicas(shardings)
    feed = Feed(in_phases(config), streams.train, mesh, start, record.passed_over)
    say('Compiling the step …')
    compiled = set()  # what differs from batch to batch: the phase, and the length of its bucket

    def stop_now() -> bool:
        return wants_to_stop(stop.asked(checkpoints.seconds_to_save))

    for step, number, batch in speed.waiting(feed):
        watchdog.begin_step(step)
        shape = (number, batch.input_ids.shape)
        if shape not in compiled:
            watchdog.enter_long('compiling the step')
        state, on_device = train_step(state, batch)
        if shape not in compiled:
            watchdog.enter_long('the first step of its shape')
            compiled.add(shape)
        speed.add(batch, on_device.pop('tokens'), on_device.pop('squared_lengths'))
        stopping = stop_now()
        is_last = step == num_steps or stopping
        logs = is_last or step % config.train.log_every == 0
        saves = is_last or step % config.train.checkpoint_every == 0
        every, validation = config.train.evaluate_every, streams.validation[number]
        looks = step == num_steps or (every and step % every == 0)
        evaluates = validation and looks
        guard.add(step, number, on_device['loss'], on_device.pop('is_skipped'))
        looked_at = saves
        trouble = guard.trouble(up_to_now=logs or saves or looks, to_save=state if saves else None)
        if trouble:
            check_may_go_back(config.train, guard.record, trouble)
            with speed.paused(), watchdog.aside('going back'):
                state, record = state_at(checkpoints.go_back(trouble.first))
            step = int(state.step)
            say(f'Step {trouble.last}: {trouble}. Back to step {step}, without the batches read since.')
            history.add('back', step, **{'from': trouble.last}, why=str(trouble))
            record = record.passing_over(trouble, guard.record, in_phases(config), step)
            guard = Guard(config.train, record)
            writer.rewind(step), progress.rewind(step), feed.rewind(step, record.passed_over)
            continue
        if logs:
            lease.check()
            metrics = {name: float(value) for name, value in jax.device_get(on_device).items()} | speed.read()
            metrics |= {'skipped_updates': guard.record.skipped_updates}
            writer.write(step, metrics)
            progress.show(step, metrics)
        watchdog.end_step(on_device['loss'])
        stop.has_something_to_save()
        if evaluates:
            with speed.paused(), watchdog.aside('evaluating'):
                rows = config.train.evaluate_rows
                found = evaluate_params(state.params, evaluation_step, validation, mesh, rows, stop_now)
            if found is None:
                stopping = True
                say(f'step {step}: not evaluated to the end')
            else:
                found = {f'validation/{name}': value for name, value in found.items()}
                writer.write(step, found)
                metrics |= found
                say(_describe_validation(step, found))
        if labelled_sets and (step == num_steps or step % config.train.probe_every == 0):
            with speed.paused(), watchdog.aside('probing'):
                positions = positions_trained(config, step)
                encoder = from_params(state.params, config.model, streams.tokenizer, step, positions)
                found = probe.accuracies(encoder, labelled_sets)
            writer.write(step, found)
            metrics |= found
            say(f'step {step}: probe {probe.describe(found)}')
        if looks and examples:
            with speed.paused(), watchdog.aside('filling in the examples'):
                writer.write_examples(step, examples(state.params))
        is_last = step == num_steps or stopping
        saves = is_last or step % config.train.checkpoint_every == 0
        every = config.train.replica_check_every
        if saves or (every and step % every == 0):
            with speed.paused(), watchdog.aside('comparing replicas'):
                replicas.check(state, step)
        if saves and (is_last or not guard.record.bad_in_a_row):
            with speed.paused(), watchdog.aside('saving'):
                lease.check()
                checkpoints.save(state, guard.record, known_finite=looked_at)
                watchdog.began_to_save(step)
        checkpoints.check()
        if stopping:
            break
    watchdog.enter_long('closing')
    progress.close()
    checkpoints.close()
    if step < num_steps:
        why = stop.received or 'another process'
        say(f'Stopped by {why}: saved step {step} of {num_steps}. The same command goes on from there.')
        history.add('stop', step, why=why)
    else:
        history.add('finish', step)
    return Outcome(step, step == num_steps, resumed_from, metrics)


def _describe(config: Config, mesh: Mesh, vocab_size: int, streams: tuple[Stream, ...]) -> str:
    devices = jax.devices()
    several = [processes.describe_hosts()] if jax.process_count() > 1 or devices[0].platform != 'cpu' else []
    axes = ', '.join(f'{axis}={size}' for axis, size in mesh.shape.items())
    lines = [
        *several,
        f'Devices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform}); mesh {axes}',
        f'Model: {num_parameters(config.model, vocab_size):,} parameters, vocabulary {vocab_size:,}',
    ]
    for number, (phase, stream) in enumerate(zip(in_phases(config), streams, strict=True), start=1):
        epochs = phase.train.steps * stream.batch_size / stream.num_rows
        lines.append(
            (f'Phase {number}' if config.phases else 'Data')
            + f': {stream.num_rows:,} rows of {_describe_lengths(phase, stream)} positions an epoch; '
            f'{phase.train.steps:,} steps of {stream.batch_size} rows are {epochs:.2f} epochs'
        )
    return '\n'.join(lines)


def _describe_lengths(phase: Config, stream: Stream) -> str:
    """`512`, or with buckets `64 (20%), 128 (30%) or 512 (50%)`."""
    *shorter, longest = row_lengths(phase.data)
    if not shorter:
        return str(longest)
    shares = stream.plan.bucket_sizes / stream.num_rows
    *shorter, longest = (f'{length} ({share:.0%})' for length, share in zip((*shorter, longest), shares, strict=True))
    return f'{", ".join(shorter)} or {longest}'


def _describe_validation(step: int, found: dict[str, float]) -> str:
    return (
        f'step {step}: held-out MLM loss {found["validation/mlm_loss"]:.3f}, '
        f'MLM accuracy {found["validation/mlm_accuracy"]:.1%}'
        + (f', NSP accuracy {found["validation/nsp_accuracy"]:.1%}' if found['validation/nsp_loss'] else '')  # no pairs
    )


def _describe_step(metrics: dict[str, float]) -> str:
    shown = f'loss {metrics["loss"]:.3f}  MLM {metrics["mlm_accuracy"]:.1%}'
    return shown + (f'  NSP {metrics["nsp_accuracy"]:.1%}' if metrics['nsp_loss'] else '')


class Progress:
    """A bar on a terminal, plain lines elsewhere: loss, accuracies, real tokens per second, time left."""

    def __init__(self, start: int, num_steps: int, describe: Callable[[dict[str, float]], str]):
        """Args: describe, the losses and accuracies of a step in a few words."""
        hidden = not sys.stderr.isatty() or jax.process_index() != 0
        self._bar = tqdm(
            total=num_steps, initial=start, unit='step', disable=hidden, dynamic_ncols=True, smoothing=0.05
        )
        self._start, self._num_steps, self._since = start, num_steps, time.perf_counter()
        self._describe = describe

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """Shows the metrics of a step."""
        shown = self._describe(metrics)
        if 'tokens_per_second' in metrics:
            shown += f'  {metrics["tokens_per_second"]:,.0f} tokens/s'
        if metrics.get('input_wait_fraction', 0.0) >= 0.01:
            shown += f'  waiting for input {metrics["input_wait_fraction"]:.0%}'
        if self._bar.disable:
            seconds = (time.perf_counter() - self._since) / (step - self._start) * (self._num_steps - step)
            left = tqdm.format_interval(seconds)
            say(f'step {step}/{self._num_steps}  {shown}  {left} left')
        else:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(step - self._bar.n)

    def rewind(self, step: int) -> None:
        """Goes back to a step."""
        self._start, self._since = step, time.perf_counter()
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()
