"""The training loop, shared by pretraining and fine-tuning."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from bert_jax.console import say
from bert_jax.data.device_batches import Batches
from bert_jax.evaluation.evaluator import Evaluator
from bert_jax.runtime.processes import AnyProcessFlag
from bert_jax.runtime.supervisor import Supervisor
from bert_jax.train.divergence import (
    Anomaly,
    DivergenceMonitor,
    DivergenceSettings,
    TrainingRecord,
    check_may_roll_back,
)
from bert_jax.train.program import TrainProgram
from bert_jax.train.replicas import Replicas
from bert_jax.train.speed import Speedometer
from bert_jax.train.state import TrainState
from bert_jax.workdir.checkpoint import Checkpoints
from bert_jax.workdir.log import RunLog


class LoopSettings(DivergenceSettings, Protocol):
    """The fields of `config.train` (of pretraining or of fine-tuning) that the loop reads; intervals are in steps."""

    @property
    def log_every(self) -> int: ...

    @property
    def checkpoint_every(self) -> int: ...

    @property
    def replica_check_every(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Due:
    """What to do after a step: a pure function of the step, the settings, and whether the run is stopping.

    Attributes:
      is_final: this is the last step of the run.
      is_last: no step follows, because the run ends or stops here.
    """

    is_final: bool
    is_last: bool
    log: bool
    evaluators: tuple[Evaluator, ...]
    compare_replicas: bool
    save: bool

    @classmethod
    def at(
        cls, step: int, num_steps: int, settings: LoopSettings, evaluators: Sequence[Evaluator], *, stopping: bool
    ) -> 'Due':
        """Returns what is due after `step` of `num_steps`. A run that stops logs and saves, but does not evaluate."""
        is_final = step == num_steps
        is_last = is_final or stopping
        save = is_last or step % settings.checkpoint_every == 0
        return cls(
            is_final=is_final,
            is_last=is_last,
            log=is_last or step % settings.log_every == 0,
            evaluators=tuple(
                each for each in evaluators if each.is_due(step, is_final=is_final) and (is_final or not stopping)
            ),
            compare_replicas=save or bool(settings.replica_check_every and step % settings.replica_check_every == 0),
            save=save,
        )

    @property
    def needs_losses(self) -> bool:
        """Whether the losses of all steps so far must be known now."""
        return self.log or self.save or bool(self.evaluators)

    def stopped(self) -> 'Due':
        """Returns what is due at the same step after a request to stop: a save."""
        return dataclasses.replace(self, is_last=True, save=True, compare_replicas=True)


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """What `fit` trains, and what it uses. The caller closes it.

    Attributes:
      programs: of each phase; a run without phases has one.
      updates: of each phase, (state, batch) -> (state, metrics), the train step of its program; donates the state.
      batches: from the step after the one resumed from.
      evaluators: called in this order.
      new_state: returns the state that the run starts from.
    """

    workdir: str
    programs: Sequence[TrainProgram]
    updates: Sequence[Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]]
    batches: Batches
    evaluators: Sequence[Evaluator]
    settings: LoopSettings
    new_state: Callable[[], TrainState]
    supervisor: Supervisor
    checkpoints: Checkpoints
    log: RunLog

    @property
    def program(self) -> TrainProgram:
        """The program of the first phase; all phases have the same state."""
        return self.programs[0]


class Begun(NamedTuple):
    """The state and the training record that a run begins with.

    Attributes:
      resumed_from: step of their checkpoint; None if they are new.
    """

    resumed_from: int | None
    state: TrainState
    record: TrainingRecord


def begin(
    workdir: str,
    program: TrainProgram,
    checkpoints: Checkpoints,
    new_state: Callable[[], TrainState],
    supervisor: Supervisor,
    *,
    needs_last_step: bool = False,
) -> Begun | None:
    """Restores the newest intact checkpoint of a run, or creates a new state; returns None if the run is finished.

    Args:
      needs_last_step: restore the last step as well, because work is left to do after it.
    """
    supervisor.enter_long_stage('reading checkpoints')
    step, num_steps = checkpoints.set_aside_damaged(), program.num_steps
    if step == num_steps and not needs_last_step:
        say(f'{workdir} is finished: all {num_steps} steps are done. Nothing to do.')
        return None
    if step is not None:
        say(f'Resuming {workdir} from step {step} of {num_steps}.')
    return Begun(step, *_restore(program, checkpoints, new_state, step))


class Fitted(NamedTuple):
    """The state after training, at the last step unless `stopped_by` a signal, a time limit or another process."""

    state: TrainState
    step: int
    stopped_by: str | None


def fit(run: TrainingRun, state: TrainState, record: TrainingRecord) -> Fitted:
    """Trains from `state` to the last step, or until asked to stop; saves the run before it returns.

    Raises:
      BadInput: if the run keeps diverging, saves keep failing, or the lease of the workdir is lost.
      DeviceFault: if replicas of the state differ.
    """
    program, supervisor, checkpoints = run.program, run.supervisor, run.checkpoints
    num_steps, step = program.num_steps, int(state.step)
    monitor, replicas = DivergenceMonitor(run.settings, record), Replicas(program.shardings)
    speed, any_process = (
        Speedometer(
            [each.model for each in run.programs], program.vocab_size, [each.objective_matmuls for each in run.programs]
        ),
        AnyProcessFlag(program.device_mesh),
    )
    long_stage = functools.partial(_long_stage, speed, supervisor)

    def stop_now() -> bool:
        return any_process(supervisor.should_stop(checkpoints.seconds_to_save))

    # The order matters: an anomaly is rolled back before its step is logged, evaluated or saved.
    for step, phase, batch in speed.waiting(run.batches):
        # 1. Update. This dispatches the step to the devices and does not wait for it.
        with supervisor.step(step, is_first_of_shape=speed.is_new(batch, phase)):
            state, metrics = run.updates[phase](state, batch)
        speed.add(batch, metrics.pop('tokens'), metrics.pop('squared_lengths'), phase)
        monitor.observe(step, phase, metrics['loss'], metrics.pop('is_skipped'))
        due = Due.at(step, num_steps, run.settings, run.evaluators, stopping=stop_now())
        checked = state if due.save else None

        # 2. Roll back after an anomaly.
        if anomaly := monitor.anomaly(wait=due.needs_losses, to_save=checked):
            with long_stage('rolling back'):
                state, monitor = _roll_back(run, anomaly, monitor)
            continue

        # 3. Log.
        if due.log:
            run.log.log_step(step, _as_floats(metrics) | speed.read() | monitor.counters)
        elif monitor.newest is not None:  # one or two steps earlier
            run.log.update_progress(*monitor.newest)
        supervisor.end_step(metrics['loss'])

        # 4. Evaluate. A request to stop cuts short any evaluation but the final one, after which the run ends anyway.
        if not _evaluate(run, due.evaluators, state, step, long_stage, _never if due.is_final else stop_now):
            due = due.stopped()

        # 5. Compare replicas, always before a save.
        if due.compare_replicas:
            with long_stage('comparing replicas'):
                replicas.check(state, step)

        # 6. Save, but not during a series of bad steps, unless this is the last chance.
        if due.save and (due.is_last or not monitor.record.bad_in_a_row):
            with long_stage('saving'):
                checkpoints.save(state, monitor.record, known_finite=checked is not None)
                supervisor.save_started(step)
        checkpoints.report_failures()
        if due.is_last:
            break

    supervisor.enter_long_stage('saving')
    checkpoints.wait()
    return Fitted(state, step, (supervisor.received or 'another process') if step < num_steps else None)


def _evaluate(
    run: TrainingRun,
    evaluators: Sequence[Evaluator],
    state: TrainState,
    step: int,
    long_stage: Callable[[str], contextlib.AbstractContextManager],
    stop_now: Callable[[], bool],
) -> bool:
    """Runs the evaluators and logs their results; returns False if `stop_now` cut one short, which logs nothing."""
    for evaluator in evaluators:
        with long_stage(evaluator.activity):
            result = evaluator(state.weights, step, stop_now)
        if result is None:
            say(f'step {step}: evaluation cut short')
            return False
        run.log.log_evaluation(step, result.metrics, result.description, result.examples)
    return True


def _never() -> bool:
    return False


def _roll_back(run: TrainingRun, anomaly: Anomaly, monitor: DivergenceMonitor) -> tuple[TrainState, DivergenceMonitor]:
    """Restores the newest intact checkpoint before an anomaly, and rewinds log and batches to its step."""
    check_may_roll_back(run.settings, monitor.record, anomaly, run.workdir)
    restored_step = run.checkpoints.roll_back(anomaly.first)
    state, record = _restore(run.program, run.checkpoints, run.new_state, restored_step)
    step = int(state.step)
    record = record.skipping(anomaly, monitor.record, run.batches.phase_steps, step)
    run.log.roll_back(step, anomaly.last, str(anomaly))
    run.batches.rewind(step, record.skipped_batches)
    return state, DivergenceMonitor(run.settings, record)


def _restore(
    program: TrainProgram, checkpoints: Checkpoints, new_state: Callable[[], TrainState], step: int | None
) -> tuple[TrainState, TrainingRecord]:
    """Returns the state and the record of a checkpoint, or new ones if `step` is None."""
    if step is None:
        return new_state(), TrainingRecord()
    return checkpoints.restore(program.shapes, program.shardings, step), checkpoints.record(step)


@contextlib.contextmanager
def _long_stage(speed: Speedometer, supervisor: Supervisor, activity: str) -> Iterator[None]:
    """Marks the block as an activity other than training: pauses the speedometer and relaxes the watchdog."""
    with speed.paused(), supervisor.long_stage(activity):
        yield


def _as_floats(metrics: dict[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(metrics).items()}
