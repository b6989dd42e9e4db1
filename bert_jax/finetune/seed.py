"""The fine-tune of one seed, from top to bottom; `loop.fit` trains it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx

from bert_jax.config.finetuning import FinetuneConfig, batch_of, num_steps, optimizer_of
from bert_jax.console import say
from bert_jax.data.device_batches import Batches
from bert_jax.evaluation.evaluator import Evaluator
from bert_jax.evaluation.probe import LabelledSet, Probe, open_sets
from bert_jax.files import write_whole
from bert_jax.finetune import heads
from bert_jax.finetune.evaluator import TaskEvaluator, as_validation, describe_metrics, model_outputs, task_streams
from bert_jax.finetune.rows import TaskBatch
from bert_jax.finetune.start import Start
from bert_jax.finetune.tasks import TaskData
from bert_jax.finetune.workdirs import fingerprint, read_results, write_results
from bert_jax.loop import TrainingRun, fit
from bert_jax.pretrained.load import Pretrained
from bert_jax.runtime import processes
from bert_jax.runtime.mesh import make_mesh
from bert_jax.runtime.supervisor import Supervisor
from bert_jax.train.divergence import TrainingRecord
from bert_jax.train.program import TrainProgram, build_program
from bert_jax.train.state import TrainState
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import Checkpoints
from bert_jax.workdir.log import RunLog


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of one seed: `metrics` of the last step, {} when it was stopped before."""

    seed: int
    step: int
    finished: bool
    resumed_from: int | None
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all seeds of a fine-tune share: what they start from, the task, and the step, compiled once."""

    start: Start
    data: TaskData
    program: TrainProgram
    predict_step: Callable
    labelled_sets: list[LabelledSet]

    @classmethod
    def of(cls, start: Start, data: TaskData) -> 'Setup':
        """Raises BadInput when the mesh does not fit the devices, or a probe's file cannot be used."""
        config = start.config
        mesh = make_mesh(config.mesh, config.model, batch_of(config.train))
        steps = num_steps(config.train, len(data.train))
        program = build_program(
            config.model,
            optimizer_of(config.optimizer, steps),
            dataclasses.replace(batch_of(config.train), steps=steps),
            start.tokenizer.vocab_size,
            mesh,
            build=heads.builder(config.task.kind, data.num_outputs),
            objective=heads.objective(config.task.kind),
        )
        sets = open_sets(config.probe, config.train.probe_every)
        return cls(start, data, program, program.forward(model_outputs), sets)


def run_seed(
    setup: Setup, workdir: str, seed: int, supervisor: Supervisor, claimed: Callable[[], None] = lambda: None
) -> Outcome:
    """Trains one seed to its last step, or resumes it; then evaluates it and writes its predictions.

    Args:
      claimed: called once the workdir belongs to this run.

    Raises:
      BadInput: when the workdir holds another run, another process holds the workdir, or the run keeps diverging.
    """
    # --- What it is. ---
    start, data, program = setup.start, setup.data, setup.program
    config = dataclasses.replace(start.config, train=dataclasses.replace(start.config.train, seed=seed))
    recorded = fingerprint(config, data, start.tokenizer.hash, program.num_steps) | start.fingerprint
    processes.check_agreement(recorded)
    supervisor.acquire(workdir)
    identity.claim(workdir, config, start.tokenizer, recorded)
    claimed()

    # --- The state: restored, or new. ---
    supervisor.enter_long('reading checkpoints')
    checkpoints = Checkpoints(workdir, keep=config.train.keep_checkpoints, check=supervisor.check_lease)
    resumed_from = checkpoints.set_aside_unsound()
    results = read_results(workdir)
    if resumed_from == program.num_steps and results is not None:
        checkpoints.close()
        say(f'{workdir} is finished: all {program.num_steps} steps are done.')
        return Outcome(seed, program.num_steps, True, resumed_from, results['metrics'])

    def restore(step: int | None) -> tuple[TrainState, TrainingRecord]:
        if step is not None:
            return checkpoints.restore(program.shapes, program.shardings, step), checkpoints.record(step)
        return program.init_state(seed, start.params(data.num_outputs, seed)), TrainingRecord()

    def update(state: TrainState, batch: TaskBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        return program.train_step(state, batch, np.uint32(seed))  # one compiled program for all seeds

    if resumed_from is not None:
        say(f'Resuming {workdir} from step {resumed_from} of {program.num_steps}.')
    state, record = restore(resumed_from)
    say(_describe(workdir, config, data, program))

    # --- Train. ---
    begun = int(state.step)
    streams = task_streams(config, start.tokenizer.pad_id)
    evaluator = TaskEvaluator(data, setup.predict_step, streams, program.mesh, config.train.evaluate_every)
    batches = Batches([streams(data.train, seed)], [program.num_steps], program.mesh, begun, record.skipped_batches)
    with RunLog(workdir, begun, program.num_steps, program.mesh, _describe_step) as log:
        evaluators = [evaluator, *_probes(setup, config)]
        parts = (batches, evaluators, config.train, restore, supervisor, checkpoints, log)
        fitted = fit(TrainingRun(program, update, *parts), state, record)
        if fitted.stopped_by:
            log.end(fitted.step, fitted.stopped_by)
            return Outcome(seed, fitted.step, False, resumed_from, {})

        # --- Evaluate the last step, which is saved by now. ---
        supervisor.enter_long('evaluating')
        metrics, predictions = evaluator.evaluate(fitted.state.params)
        supervisor.check_lease()
        log.evaluation(fitted.step, as_validation(metrics), f'seed {seed}: {describe_metrics(metrics)}')
        _write_results(workdir, evaluator, predictions, {'seed': seed, 'step': fitted.step, 'metrics': metrics})
        log.end(fitted.step)
    return Outcome(seed, fitted.step, True, resumed_from, metrics)


def _probes(setup: Setup, config: FinetuneConfig) -> list[Evaluator]:
    if not setup.labelled_sets:
        return []
    start, graph = setup.start, setup.program.graph

    def model_at(params: nnx.State, step: int) -> Pretrained:
        whole = jax.device_put(jax.device_get(params), jax.local_devices()[0])
        return Pretrained(nnx.merge(graph, whole), start.tokenizer, config.model, step)

    return [Probe(setup.labelled_sets, config.train.probe_every, model_at)]


def _write_results(
    workdir: str, evaluator: TaskEvaluator, predictions: list[list[Any]], results: dict[str, Any]
) -> None:
    """Writes the predictions for each split, then results.json, which marks the seed as finished; process 0 only."""
    if not processes.is_first():
        return
    for (name, split), of_split in zip(evaluator.splits(), predictions, strict=True):
        for ending, content in split.files(of_split).items():
            write_whole(epath.Path(workdir) / f'predictions-{name}{ending}', content)
    write_results(workdir, results)


def _describe(workdir: str, config: FinetuneConfig, data: TaskData, program: TrainProgram) -> str:
    batch_size = config.train.global_batch_size
    return f'{workdir}: {program.num_steps:,} steps of {batch_size} rows, {len(data.train):,} rows an epoch'


def _describe_step(metrics: dict[str, float]) -> str:
    return f'loss {metrics["loss"]:.3f}' + (f'  accuracy {metrics["accuracy"]:.1%}' if 'accuracy' in metrics else '')
