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
    """What is due after a step: a pure function of the step, the settings, and whether the run is stopping.

    Attributes:
      is_final: the run is at its end.
      is_last: no step follows, because the run is at its end or stops here.
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
        """What is due after `step` of `num_steps`. A run that stops logs and saves; it does not evaluate."""
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
        """Whether the losses of all steps so far have to be known now."""
        return self.log or self.save or bool(self.evaluators)

    def stopped(self) -> 'Due':
        """The same step, after a request to stop: what is left to do is to save."""
        return dataclasses.replace(self, is_last=True, save=True, compare_replicas=True)


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """What `fit` trains, and what it works with. It closes none of it.

    Attributes:
      update: (state, batch) -> (state, metrics), the program's train step; the state is donated.
      batches: from the step after the one resumed from on.
      evaluators: asked in this order.
      new_state: the state that the run starts from.
    """

    workdir: str
    program: TrainProgram
    update: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    batches: Batches
    evaluators: Sequence[Evaluator]
    settings: LoopSettings
    new_state: Callable[[], TrainState]
    supervisor: Supervisor
    checkpoints: Checkpoints
    log: RunLog


class Begun(NamedTuple):
    """Where a run begins: with `state`, and `record` of its losses.

    Attributes:
      resumed_from: the step of the checkpoint that they come from, None where they are new.
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
    """The newest sound checkpoint of a run, or a new state; None when the run is finished.

    Args:
      needs_last_step: something is left to do after the last step, so a run whose last step is saved is not finished.
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
    """How training ended: at `step`, the last one unless a signal, a time limit or another process stopped it."""

    state: TrainState
    step: int
    stopped_by: str | None


def fit(run: TrainingRun, state: TrainState, record: TrainingRecord) -> Fitted:
    """Trains from `state` to the last step, or until asked to stop; the run is saved when this returns.

    Raises:
      BadInput: when the run keeps diverging, saves keep failing, or the workdir's lease is lost.
      DeviceFault: when copies of the state on several devices differ.
    """
    program, supervisor, checkpoints = run.program, run.supervisor, run.checkpoints
    num_steps, step = program.num_steps, int(state.step)
    monitor, replicas = DivergenceMonitor(run.settings, record), Replicas(program.shardings)
    speed, any_process = Speedometer(program.model, program.vocab_size), AnyProcessFlag(program.device_mesh)
    long_stage = functools.partial(_long_stage, speed, supervisor)

    def stop_now() -> bool:
        return any_process(supervisor.should_stop(checkpoints.seconds_to_save))

    # The order matters: a step that went wrong is rolled back before anything of it is logged, evaluated or saved.
    for step, phase, batch in speed.waiting(run.batches):
        # 1. Update. The step is dispatched to the devices, not awaited.
        with supervisor.step(step, is_first_of_shape=speed.is_new(batch)):
            state, metrics = run.update(state, batch)
        speed.add(batch, metrics.pop('tokens'), metrics.pop('squared_lengths'))
        monitor.observe(step, phase, metrics['loss'], metrics.pop('is_skipped'))
        due = Due.at(step, num_steps, run.settings, run.evaluators, stopping=stop_now())
        checked = state if due.save else None

        # 2. Roll back, if the loss or the state went wrong.
        if anomaly := monitor.anomaly(wait=due.needs_losses, to_save=checked):
            with long_stage('rolling back'):
                state, monitor = _roll_back(run, anomaly, monitor)
            continue

        # 3. Log.
        if due.log:
            run.log.log_step(step, _as_floats(metrics) | speed.read() | monitor.counters)
        elif monitor.newest is not None:  # a step or two earlier
            run.log.update_progress(*monitor.newest)
        supervisor.end_step(metrics['loss'])

        # 4. Evaluate. A request to stop cuts an evaluation short, except the final one: the run ends anyway.
        if not _evaluate(run, due.evaluators, state, step, long_stage, _never if due.is_final else stop_now):
            due = due.stopped()

        # 5. Compare replicas, always before a save.
        if due.compare_replicas:
            with long_stage('comparing replicas'):
                replicas.check(state, step)

        # 6. Save, though not in the middle of a bad stretch unless there is no later chance.
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
    """Asks the evaluators in turn and logs what each finds; False when `stop_now` cut one short, which logs nothing."""
    for evaluator in evaluators:
        with long_stage(evaluator.activity):
            found = evaluator(state.params, step, stop_now)
        if found is None:
            say(f'step {step}: evaluation cut short')
            return False
        run.log.log_evaluation(step, found.metrics, found.description, found.examples)
    return True


def _never() -> bool:
    return False


def _roll_back(run: TrainingRun, anomaly: Anomaly, monitor: DivergenceMonitor) -> tuple[TrainState, DivergenceMonitor]:
    """The state of the newest sound checkpoint before an anomaly; log and batches are set back to its step."""
    check_may_roll_back(run.settings, monitor.record, anomaly, run.workdir)
    found = run.checkpoints.roll_back(anomaly.first)
    state, record = _restore(run.program, run.checkpoints, run.new_state, found)
    step = int(state.step)
    record = record.skipping(anomaly, monitor.record, run.batches.phase_steps, step)
    run.log.roll_back(step, anomaly.last, str(anomaly))
    run.batches.rewind(step, record.skipped_batches)
    return state, DivergenceMonitor(run.settings, record)


def _restore(
    program: TrainProgram, checkpoints: Checkpoints, new_state: Callable[[], TrainState], step: int | None
) -> tuple[TrainState, TrainingRecord]:
    """The state and record of a checkpoint, or new ones for None."""
    if step is None:
        return new_state(), TrainingRecord()
    return checkpoints.restore(program.shapes, program.shardings, step), checkpoints.record(step)


@contextlib.contextmanager
def _long_stage(speed: Speedometer, supervisor: Supervisor, activity: str) -> Iterator[None]:
    """An activity that is not training: the speedometer is paused, and the watchdog allows more time."""
    with speed.paused(), supervisor.long_stage(activity):
        yield


def _as_floats(metrics: dict[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(metrics).items()}
