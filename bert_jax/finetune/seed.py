"""Runs one seed of a fine-tune from start to finish; `loop.fit` is the training loop."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from flax import nnx

from bert_jax.config.finetuning import FinetuneConfig, batch_of, num_steps, optimizer_of
from bert_jax.console import say
from bert_jax.data.device_batches import Batches
from bert_jax.evaluation.evaluator import Evaluator
from bert_jax.evaluation.probe import Probe, ProbeSet, load_datasets
from bert_jax.files import write_whole
from bert_jax.finetune.evaluator import (
    TaskEvaluator,
    describe_metrics,
    model_outputs,
    task_streams,
    with_validation_prefix,
)
from bert_jax.finetune.model import build_of, objective_of
from bert_jax.finetune.start import FinetuningStart
from bert_jax.finetune.tasks import TaskData
from bert_jax.finetune.workdirs import fingerprint, read_results, write_results
from bert_jax.loop import TrainingRun, begin, fit
from bert_jax.pretrained.load import Pretrained, from_params
from bert_jax.pretrained.provenance import of_finetune
from bert_jax.pretrained.sentences import RetrievalSettings, SentenceSettings
from bert_jax.runtime import processes
from bert_jax.runtime.mesh import make_mesh
from bert_jax.runtime.supervisor import Supervisor
from bert_jax.train.program import TrainProgram, build_program
from bert_jax.train.state import TrainState
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import Checkpoints
from bert_jax.workdir.log import RunLog


@dataclasses.dataclass(frozen=True)
class SeedResult:
    """The result of one seed. metrics: of the last step; {} if it was stopped earlier."""

    seed: int
    step: int
    finished: bool
    resumed_from: int | None
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all seeds share: initial weights, task data and the training step, which is compiled once."""

    start: FinetuningStart
    data: TaskData
    program: TrainProgram
    predict_step: Callable
    probe_sets: list[ProbeSet]

    @classmethod
    def create(cls, start: FinetuningStart, data: TaskData) -> 'Setup':
        """Builds the program and opens the probe sets.

        Raises:
          BadInput: if the mesh does not fit the devices, or a probe file cannot be used.
        """
        config = start.config
        mesh = make_mesh(config.mesh, config.model, batch_of(config.train))
        steps = num_steps(config.train, len(data.train))
        program = build_program(
            config.model,
            optimizer_of(config.optimizer, steps),
            dataclasses.replace(batch_of(config.train), steps=steps),
            start.tokenizer.vocab_size,
            mesh,
            build=build_of(config, data.num_outputs),
            objective=objective_of(config),
        )
        datasets = load_datasets(config.probe, config.train.probe_every)
        return cls(start, data, program, program.forward(model_outputs), datasets)

    def config_of(self, seed: int) -> FinetuneConfig:
        """Returns the config of one seed."""
        return dataclasses.replace(self.start.config, train=dataclasses.replace(self.start.config.train, seed=seed))


def claim_workdir(setup: Setup, workdir: str, seed: int, supervisor: Supervisor) -> None:
    """Acquires the workdir of a seed and records the run's identity in it.

    Raises:
      BadInput: if the workdir holds another run, or another process holds the workdir.
    """
    start, config = setup.start, setup.config_of(seed)
    recorded = fingerprint(config, setup.data, start.tokenizer.hash, setup.program.num_steps) | start.fingerprint
    processes.check_agreement(recorded)
    supervisor.acquire(workdir)
    identity.claim(workdir, config, start.tokenizer, recorded, start=start.provenance)


def run_seed(setup: Setup, workdir: str, seed: int, supervisor: Supervisor) -> SeedResult:
    """Trains or resumes one seed to its last step, evaluates it and writes its predictions.

    Args:
      workdir: acquired by `claim_workdir`.

    Raises:
      BadInput: if the run keeps diverging, or another process takes over the workdir.
    """
    start, data, program, config = setup.start, setup.data, setup.program, setup.config_of(seed)
    num_steps, check = program.num_steps, supervisor.check_lease

    # --- Restore or initialize the state. ---
    def new_state() -> TrainState:
        return program.init_state(seed, start.params(data.num_outputs, seed))

    with Checkpoints(workdir, keep=config.train.keep_checkpoints, check=check) as checkpoints:
        results = read_results(workdir)
        begun = begin(workdir, program, checkpoints, new_state, supervisor, needs_last_step=results is None)
        if begun is None:
            return SeedResult(seed, num_steps, True, num_steps, results['metrics'] if results else {})
        say(_describe(workdir, config, data, program))

        # --- Train. ---
        first, skipped = int(begun.state.step), begun.record.skipped_batches
        streams = task_streams(config, start.tokenizer.pad_id, program.device_mesh)
        evaluator = TaskEvaluator(data, setup.predict_step, streams, program.device_mesh, config.train.evaluate_every)
        shorter_run = functools.partial(_flags_for_shorter_run, config)
        with RunLog(workdir, first, num_steps, program.device_mesh, _describe_step, supervisor, shorter_run) as log:
            run = TrainingRun(
                workdir=workdir,
                programs=[program],
                updates=[functools.partial(program.train_step, seed=np.uint32(seed))],  # one program for all seeds
                batches=Batches([streams(data.train, seed)], [num_steps], program.device_mesh, first, skipped),
                evaluators=[evaluator, *_probes(setup, config)],
                settings=config.train,
                new_state=new_state,
                supervisor=supervisor,
                checkpoints=checkpoints,
                log=log,
            )
            fitted = fit(run, begun.state, begun.record)
            if fitted.stopped_by:
                log.end(fitted.step, fitted.stopped_by)
                return SeedResult(seed, fitted.step, False, begun.resumed_from, {})

            # --- Evaluate the last step, which has been saved. ---
            supervisor.enter_long_stage('evaluating')
            metrics, predictions = evaluator.evaluate(fitted.state.params)
            log.log_evaluation(fitted.step, with_validation_prefix(metrics), describe_metrics(metrics))
            check()
            _write_results(workdir, evaluator, predictions, {'seed': seed, 'step': fitted.step, 'metrics': metrics})
            log.end(fitted.step)
    return SeedResult(seed, fitted.step, True, begun.resumed_from, metrics)


def _probes(setup: Setup, config: FinetuneConfig) -> list[Evaluator]:
    if not setup.probe_sets:
        return []

    provenance = of_finetune(config, setup.start.provenance)

    def model_at(params: nnx.State, step: int) -> Pretrained:
        return from_params(params, config.model, setup.start.tokenizer, step, provenance, setup.program.build)

    return [Probe(setup.probe_sets, config.train.probe_every, model_at, _retrieval_settings(config))]


def _retrieval_settings(config: FinetuneConfig) -> RetrievalSettings:
    """Returns how queries and passages become vectors; they are compared by cosine similarity."""
    if config.task.kind != 'embedding':
        return RetrievalSettings(SentenceSettings(''), SentenceSettings(''))
    embedding = config.embedding
    queries = SentenceSettings('', modes=(embedding.pooling,), prompt=embedding.query_prompt)
    return RetrievalSettings(queries, dataclasses.replace(queries, prompt=embedding.passage_prompt))


def _write_results(
    workdir: str, evaluator: TaskEvaluator, predictions: list[list[Any]], results: dict[str, Any]
) -> None:
    """Writes the predictions for each split, then results.json, which marks the seed as finished; process 0 only."""
    if not processes.is_process_zero():
        return
    for (name, split), split_predictions in zip(evaluator.splits(), predictions, strict=True):
        for suffix, content in split.files(split_predictions).items():
            write_whole(epath.Path(workdir) / f'predictions-{name}{suffix}', content)
    write_results(workdir, results)


def _describe(workdir: str, config: FinetuneConfig, data: TaskData, program: TrainProgram) -> str:
    batch_size = config.train.global_batch_size
    # An example with several windows (a long context or sentence) counts once per window.
    return f'{workdir}: {program.num_steps:,} steps of {batch_size} examples, {len(data.train):,} examples per epoch'


def _flags_for_shorter_run(config: FinetuneConfig, share: float) -> str:
    return f'--config.train.epochs={config.train.epochs * share:.3g}'


def _describe_step(metrics: dict[str, float]) -> str:
    accuracy = metrics.get('accuracy', math.nan)  # absent for scores, NaN for a batch without labels
    return f'loss {metrics["loss"]:.3f}' + (f'  accuracy {accuracy:.1%}' if math.isfinite(accuracy) else '')
