"""The fine-tune of one seed, from top to bottom."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from bert_jax import config as pretraining
from bert_jax.config.finetuning import FinetuneConfig, num_steps, optimizer_of
from bert_jax.data.batches import prefetch
from bert_jax.errors import BadInput
from bert_jax.files import write_whole
from bert_jax.finetune import heads
from bert_jax.finetune.rows import Rows, TaskBatch, TaskStream
from bert_jax.finetune.splits import Split
from bert_jax.finetune.start import Start
from bert_jax.finetune.tasks import TaskData
from bert_jax.finetune.workdirs import fingerprint, read_results, write_results
from bert_jax.model.bert import Build
from bert_jax.pretrain import Progress
from bert_jax.runtime import processes
from bert_jax.runtime.lease import Lease
from bert_jax.runtime.processes import say
from bert_jax.runtime.stopping import StopRequest
from bert_jax.runtime.watchdog import Watchdog
from bert_jax.train.divergence import Guard, Record, Trouble
from bert_jax.train.optimizer import make_optimizer, make_schedule
from bert_jax.train.sharding import local_rows, make_global, replicated
from bert_jax.train.speed import Speedometer
from bert_jax.train.state import TrainState, init_state, model_graph, state_shardings
from bert_jax.train.step import make_train_step
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import Checkpoints
from bert_jax.workdir.history import History, hardware
from bert_jax.workdir.metrics import MetricsWriter


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a seed's run came to: `metrics` of the last step, {} when it was stopped before."""

    seed: int
    step: int
    finished: bool
    resumed_from: int | None
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Programs:
    """What all seeds of a fine-tune have in common: the optimiser, the shapes, and the step, compiled once.

    train_step: (state, batch, seed) -> (state, metrics).  shapes, shardings: of the state.
    """

    steps: int
    optimizer: optax.GradientTransformation
    build: Build
    shapes: TrainState
    shardings: TrainState
    train_step: Callable[[TrainState, TaskBatch, np.uint32], tuple[TrainState, dict[str, jax.Array]]]
    predict_step: Callable[[nnx.State, TaskBatch], jax.Array]


def make_programs(start: Start, data: TaskData, mesh: Mesh) -> Programs:
    """Those of a task; each is compiled at its first use."""
    config, vocab_size = start.config, start.tokenizer.vocab_size
    steps, build = num_steps(config.train, len(data.train)), heads.builder(config.task.kind, data.num_outputs)
    settings = optimizer_of(config.optimizer, steps)
    optimizer, schedule = make_optimizer(settings, steps), make_schedule(settings, steps)
    shapes, shardings = state_shardings(config.model, vocab_size, optimizer, mesh, build)
    graph = model_graph(config.model, vocab_size, build)
    batch, goal = {'microbatches': config.train.microbatches}, heads.objective(config.task.kind)
    train_step = make_train_step(graph, optimizer, schedule, mesh, shardings, seed=0, objective=goal, **batch)
    return Programs(steps, optimizer, build, shapes, shardings, train_step, make_predict_step(graph, mesh))


def run_seed(
    start: Start,
    data: TaskData,
    mesh: Mesh,
    programs: Programs,
    workdir: str,
    seed: int,
    stop: StopRequest,
    watchdog: Watchdog,
    lease: Lease,
    claimed: Callable[[], None] = lambda: None,
) -> Outcome:
    """Trains a seed's run to its last step, or goes on with it; then judges it and writes its predictions.

    Args:
      lease: of the workdir, to be acquired here.
      claimed: called once the workdir is this run's.

    Raises:
      BadInput: when the workdir holds another run, or another process holds the workdir; when the loss or its gradient
        was not finite so many steps in a row.
    """
    # --- What it is. ---
    config = dataclasses.replace(start.config, train=dataclasses.replace(start.config.train, seed=seed))
    train, vocab_size, steps = config.train, start.tokenizer.vocab_size, programs.steps
    recorded = fingerprint(config, data, start.tokenizer.hash, steps) | start.fingerprint
    processes.check_agreement(recorded)
    processes.first_does(lambda: lease.acquire(say))
    identity.claim(workdir, config, start.tokenizer, recorded)
    claimed()

    # --- The state: restored, or new. ---
    watchdog.enter_long('reading checkpoints')
    checkpoints = Checkpoints(workdir, keep=train.keep_checkpoints)
    checkpoints.before_sealing = lease.check
    resumed_from = checkpoints.set_aside_unsound()
    results = read_results(workdir)
    if resumed_from == steps and results is not None:
        checkpoints.close()
        say(f'{workdir} is finished: all {steps} steps are done.')
        return Outcome(seed, steps, True, resumed_from, results['metrics'])
    if resumed_from is not None:
        say(f'Going on with {workdir} from step {resumed_from} of {steps}.')
        state = checkpoints.restore(programs.shapes, programs.shardings, resumed_from)
        record = checkpoints.record(resumed_from)
    else:
        params, record = start.params(data.num_outputs, seed), Record()
        state = init_state(config.model, vocab_size, programs.optimizer, mesh, seed, params, programs.build)
    say(f'{workdir}: {steps:,} steps of {train.global_batch_size} rows, {len(data.train):,} rows an epoch')
    wants_to_stop = processes.AnyProcess(mesh)

    # --- The loop. At each step, in this order: 1. update  2. end, if the numbers went wrong  3. log  4. evaluate
    #     5. save. ---
    judge = Judge(data, programs.predict_step, task_streams(config, start.tokenizer.pad_id), mesh)
    guard = Guard(pretraining.Train(max_bad_steps=train.max_bad_steps, spike_threshold=0.0), record)
    begun = step = int(state.step)
    speed = Speedometer(config.model, vocab_size)
    writer, progress = MetricsWriter(workdir, begun), Progress(begun, steps, _describe)
    history = History(workdir)
    history.add('start', begun, lost_steps=writer.lost_steps, **hardware(mesh))
    for step, batch in speed.waiting(_global_batches(judge.streams(data.train, seed), mesh, begun, steps)):
        watchdog.begin_step(step)
        if step == begun + 1:
            watchdog.enter_long('compiling the step')
        state, on_device = programs.train_step(state, batch, np.uint32(seed))
        speed.add(batch, on_device.pop('tokens'), on_device.pop('squared_lengths'))
        stopping = wants_to_stop(stop.asked(checkpoints.seconds_to_save))
        stop.has_something_to_save()
        is_last = step == steps or stopping
        logs, saves = (is_last or step % every == 0 for every in (train.log_every, train.checkpoint_every))
        guard.add(step, 0, on_device['loss'], on_device.pop('is_skipped'))
        trouble = guard.trouble(up_to_now=logs or saves, to_save=state if saves else None)
        if trouble:
            history.add('stop', step, why=str(trouble))
            for part in (progress, writer, checkpoints):
                part.close()
            raise _diverged(workdir, trouble)
        if logs:
            lease.check()
            logged = {name: float(value) for name, value in jax.device_get(on_device).items()} | speed.read()
            logged |= {'skipped_updates': guard.record.skipped_updates}
            writer.write(step, logged)
            progress.show(step, logged)
        watchdog.end_step(on_device['loss'])
        if train.evaluate_every and step % train.evaluate_every == 0 and not is_last:
            with speed.paused(), watchdog.aside('evaluating'):
                figures = judge(state.params)[0]
            writer.write(step, _as_validation(figures))
            say(f'step {step}: {describe_figures(figures)}')
        if saves:
            with speed.paused(), watchdog.aside('saving'):
                lease.check()
                checkpoints.save(state, guard.record, known_finite=True)
                watchdog.began_to_save(step)
        checkpoints.check()
        if stopping:
            break
    watchdog.enter_long('closing')
    progress.close()
    checkpoints.close()
    if step < steps:
        writer.close()
        why = stop.received or 'another process'
        say(f'Stopped by {why}: saved step {step} of {steps}. The same command goes on from there.')
        history.add('stop', step, why=why)
        return Outcome(seed, step, False, resumed_from, {})

    # --- What it is worth, at its last step. ---
    watchdog.enter_long('evaluating')
    figures, said = judge(state.params)
    lease.check()
    writer.write(steps, _as_validation(figures))
    writer.close()
    if processes.is_first():
        for (name, split), predictions in zip(judge.splits(), said, strict=True):
            for ending, content in split.files(predictions).items():
                write_whole(epath.Path(workdir) / f'predictions-{name}{ending}', content)
        write_results(workdir, {'seed': seed, 'step': steps, 'metrics': figures})
    history.add('finish', steps)
    say(f'seed {seed}: {describe_figures(figures)}')
    return Outcome(seed, steps, True, resumed_from, figures)


@dataclasses.dataclass(frozen=True)
class Judge:
    """What a model is worth on the splits of a task. streams: (rows, seed or None for evaluation) -> their batches."""

    data: TaskData
    predict_step: Callable[[nnx.State, TaskBatch], jax.Array]
    streams: Callable[[Rows, int | None], TaskStream]
    mesh: Mesh

    def splits(self) -> list[tuple[str, Split]]:
        """All that predictions are made for: with labels, and last the one without, if there is one."""
        return [*self.data.validation.items(), *([('predict', self.data.predict)] if self.data.predict else [])]

    def __call__(self, params: nnx.State) -> tuple[dict[str, float], list[list[Any]]]:
        """(figures by name, those of the first split without its name; predictions of each of `splits`)."""
        figures: dict[str, float] = {}
        said = []
        for name, split in self.splits():
            outputs = predict(params, self.predict_step, self.streams(split.rows, None), self.mesh)
            said.append(split.predictions(outputs))
            if name in self.data.validation:
                found = split.metrics(self.data.metrics, said[-1])
                figures |= {f'{name}/{key}': value for key, value in found.items()} if figures else found
        return figures, said


def task_streams(config: FinetuneConfig, pad_id: int) -> Callable[[Rows, int | None], TaskStream]:
    """What makes the batches of rows: (rows, seed; None for evaluation) -> stream."""

    def stream(rows: Rows, seed: int | None) -> TaskStream:
        length, size = config.task.sequence_length, config.train.global_batch_size
        return TaskStream(rows, batch_size=size, seed=seed, sequence_length=length, pad_id=pad_id)

    return stream


def make_predict_step(graph: nnx.GraphDef, mesh: Mesh) -> Callable[[nnx.State, TaskBatch], jax.Array]:
    """The model's outputs for a batch, without dropout, whole on every device; under `jax.jit`."""

    def outputs(params: nnx.State, batch: TaskBatch) -> jax.Array:
        return nnx.merge(graph, params)(batch)

    return jax.jit(outputs, out_shardings=replicated(mesh))


def predict(params: nnx.State, predict_step: Callable, stream: TaskStream, mesh: Mesh) -> np.ndarray:
    """Outputs for all rows of an evaluation stream, float32 [N, …]."""
    batches = _global_batches(stream, mesh, 0, len(stream))
    found = [np.asarray(predict_step(params, batch), np.float32) for _, batch in batches]
    return np.concatenate(found)[: stream.num_rows]


def _global_batches(stream: TaskStream, mesh: Mesh, start: int, stop: int) -> Iterator[tuple[int, TaskBatch]]:
    """(step, its batch on the devices) from the step after `start` on."""
    if start >= stop:
        return
    rows = local_rows(mesh, stream.batch_size)
    for step, batch in enumerate(prefetch(stream, start, stop, rows), start + 1):
        yield step, make_global(batch, rows, mesh, stream.batch_size)


def _diverged(workdir: str, trouble: Trouble) -> BadInput:
    return BadInput(
        f'{workdir}: step {trouble.last}',
        str(trouble),
        'a run that converges',
        'a lower optimizer.peak_learning_rate or more warmup_fraction in a new --workdir',
    )


def _as_validation(figures: dict[str, float]) -> dict[str, float]:
    return {f'validation/{name}': value for name, value in figures.items()}


def _describe(metrics: dict[str, float]) -> str:
    return f'loss {metrics["loss"]:.3f}' + (f'  accuracy {metrics["accuracy"]:.1%}' if 'accuracy' in metrics else '')


def describe_figures(figures: dict[str, float]) -> str:
    """`accuracy 87.3%, f1 90.1%`."""
    return ', '.join(f'{name} {value:.1%}' for name, value in figures.items())
