"""The fine-tune of one seed, from top to bottom."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from bert_jax import hosts, run
from bert_jax.data.batches import prefetch
from bert_jax.files import write_whole
from bert_jax.finetune import heads
from bert_jax.finetune.config import num_steps, optimizer_of
from bert_jax.finetune.rows import Rows, TaskBatch, TaskStream
from bert_jax.finetune.splits import Split
from bert_jax.finetune.start import Start
from bert_jax.finetune.tasks import TaskData
from bert_jax.finetune.workdirs import fingerprint, read_results, write_results
from bert_jax.hosts import say
from bert_jax.stopping import StopRequest
from bert_jax.train.checkpoint import Checkpoints
from bert_jax.train.loop import Progress
from bert_jax.train.metrics import MetricsWriter, Speedometer
from bert_jax.train.optimizer import make_optimizer, make_schedule
from bert_jax.train.sharding import local_rows, make_global, replicated
from bert_jax.train.state import init_state, model_graph, state_shardings
from bert_jax.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a seed's run came to: `metrics` of the last step, {} when it was stopped before."""

    seed: int
    step: int
    finished: bool
    resumed_from: int | None
    metrics: dict[str, float]


def run_seed(start: Start, data: TaskData, mesh: Mesh, workdir: str, seed: int, stop: StopRequest) -> Outcome:
    """Trains a seed's run to its last step, or goes on with it; then judges it and writes its predictions.

    Raises:
      BadInput: before anything is written, when the workdir holds another run.
    """
    # --- What it is. ---
    config = dataclasses.replace(start.config, train=dataclasses.replace(start.config.train, seed=seed))
    train, task, tokenizer = config.train, config.task, start.tokenizer
    steps = num_steps(train, len(data.train))
    identity = fingerprint(config, data, tokenizer.hash, steps) | start.fingerprint
    hosts.check_agreement(identity)
    run.claim(workdir, config, tokenizer, identity)

    # --- The state: restored, or new. ---
    build, vocab_size = heads.builder(task.kind, data.num_outputs), tokenizer.vocab_size
    optimizer_settings = optimizer_of(config.optimizer, steps)
    optimizer, schedule = make_optimizer(optimizer_settings, steps), make_schedule(optimizer_settings, steps)
    shapes, shardings = state_shardings(config.model, vocab_size, optimizer, mesh, build)
    checkpoints = Checkpoints(workdir, keep=train.keep_checkpoints)
    resumed_from = checkpoints.set_aside_unsound()
    results = read_results(workdir)
    if resumed_from == steps and results is not None:
        checkpoints.close()
        say(f'{workdir} is finished: all {steps} steps are done.')
        return Outcome(seed, steps, True, resumed_from, results['metrics'])
    if resumed_from is not None:
        say(f'Going on with {workdir} from step {resumed_from} of {steps}.')
        state = checkpoints.restore(shapes, shardings, resumed_from)
    else:
        params = start.params(data.num_outputs, seed)
        state = init_state(config.model, vocab_size, optimizer, mesh, seed, params, build)
    say(f'{workdir}: {steps:,} steps of {train.global_batch_size} rows, {len(data.train):,} rows an epoch')
    wants_to_stop = hosts.AnyProcess(mesh)

    # --- The step, compiled at its first use. ---
    graph = model_graph(config.model, vocab_size, build)
    train_step = make_train_step(
        graph,
        optimizer,
        schedule,
        mesh,
        shardings,
        seed=seed,
        microbatches=train.microbatches,
        objective=heads.objective(task.kind),
    )
    predict_step = make_predict_step(graph, mesh)

    def judge(params: nnx.State) -> tuple[dict[str, float], dict[str, list]]:
        """(figures by name, predictions by split)."""
        figures, said = {}, {}
        for number, (name, split) in enumerate(data.validation.items()):
            said[name] = split.predictions(predict(params, predict_step, stream(split.rows, None), mesh))
            found = split.metrics(data.metrics, said[name])
            figures |= found if number == 0 else {f'{name}/{metric}': value for metric, value in found.items()}
        return figures, said

    def stream(rows: Rows, seed: int | None) -> TaskStream:
        return TaskStream(
            rows,
            batch_size=train.global_batch_size,
            seed=seed,
            sequence_length=task.sequence_length,
            pad_id=tokenizer.pad_id,
        )

    # --- The loop. At each step, in this order: 1. update  2. log  3. evaluate  4. save. ---
    begun = step = int(state.step)
    speed = Speedometer(config.model, vocab_size)
    writer, progress = MetricsWriter(workdir, begun), Progress(begun, steps, _describe)
    for step, batch in speed.waiting(_global_batches(stream(data.train, seed), mesh, begun, steps)):
        state, on_device = train_step(state, batch)
        speed.add(batch, on_device.pop('tokens'), on_device.pop('squared_lengths'))
        stopping = wants_to_stop(stop.asked(checkpoints.seconds_to_save))
        stop.has_something_to_save()
        is_last = step == steps or stopping
        if step % train.log_every == 0 or is_last:
            logged = {name: float(value) for name, value in jax.device_get(on_device).items()} | speed.read()
            writer.write(step, logged)
            progress.show(step, logged)
        if train.evaluate_every and step % train.evaluate_every == 0 and step < steps:
            with speed.paused():
                figures, _ = judge(state.params)
            writer.write(step, _as_validation(figures))
            say(f'step {step}: {describe_figures(figures)}')
        if step % train.checkpoint_every == 0 or is_last:
            with speed.paused():
                checkpoints.save(state)
        checkpoints.check()
        if stopping:
            break
    progress.close()
    checkpoints.close()
    if step < steps:
        writer.close()
        why = stop.received or 'another process'
        say(f'Stopped by {why}: saved step {step} of {steps}. The same command goes on from there.')
        return Outcome(seed, step, False, resumed_from, {})

    # --- What it is worth, at its last step. ---
    figures, said = judge(state.params)
    if data.predict is not None:
        said['predict'] = data.predict.predictions(
            predict(state.params, predict_step, stream(data.predict.rows, None), mesh)
        )
    writer.write(steps, _as_validation(figures))
    writer.close()
    if hosts.is_first():
        splits: dict[str, Split] = data.validation | ({'predict': data.predict} if data.predict else {})
        for name, split in splits.items():
            for ending, content in split.files(said[name]).items():
                write_whole(epath.Path(workdir) / f'predictions-{name}{ending}', content)
        write_results(workdir, {'seed': seed, 'step': steps, 'metrics': figures})
    say(f'seed {seed}: {describe_figures(figures)}')
    return Outcome(seed, steps, True, resumed_from, figures)


def make_predict_step(graph: nnx.GraphDef, mesh: Mesh) -> Callable[[nnx.State, TaskBatch], jax.Array]:
    """The model's outputs for a batch, without dropout, whole on every device; under `jax.jit`."""
    return jax.jit(lambda params, batch: nnx.merge(graph, params)(batch), out_shardings=replicated(mesh))


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


def _as_validation(figures: dict[str, float]) -> dict[str, float]:
    return {f'validation/{name}': value for name, value in figures.items()}


def _describe(metrics: dict[str, float]) -> str:
    return f'loss {metrics["loss"]:.3f}' + (f'  accuracy {metrics["accuracy"]:.1%}' if 'accuracy' in metrics else '')


def describe_figures(figures: dict[str, float]) -> str:
    """`accuracy 87.3%, f1 90.1%`."""
    return ', '.join(f'{name} {value:.1%}' for name, value in figures.items())
