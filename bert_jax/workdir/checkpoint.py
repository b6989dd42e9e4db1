"""Saves and restores a `TrainState`: Orbax writes it, this module seals and verifies it.

    WORKDIR/checkpoints/STEP/                files that Orbax wrote, asynchronously, under a temporary name
    WORKDIR/checkpoints/STEP/record.json     what the run knew about its divergence (`divergence.TrainingRecord`)
    WORKDIR/checkpoints/STEP/manifest.json   the seal (`seal.py`), renamed into place last

A directory without its manifest is not a checkpoint, so a run killed at any moment leaves only complete ones. Orbax
alone restores most flipped bits silently, so every file is hashed before it is restored. An old checkpoint is deleted
only after the new one has been read back from disk: all bytes, and through Orbax the step and the shapes of all arrays.
"""

import concurrent.futures
import contextlib
import errno
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from bert_jax.config import Config, Train
from bert_jax.config import Mesh as MeshConfig
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.files import is_local, matching, size_of, write_whole
from bert_jax.json_files import read_json
from bert_jax.model.family import Build, check_size
from bert_jax.model.replaced_tokens import build_of
from bert_jax.runtime import processes
from bert_jax.runtime.mesh import make_mesh
from bert_jax.runtime.paths import check_path
from bert_jax.train.divergence import TrainingRecord
from bert_jax.train.program import build_program
from bert_jax.train.state import TrainState, is_finite
from bert_jax.workdir import seal
from bert_jax.workdir.orbax_files import arrays_of, describe_error, literal_path, restore_error

_RECORD = 'record.json'
_MAX_FAILURES = 3  # failed saves in a row that end the run
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)  # raised by Orbax and TensorStore when they cannot write
_NO_RECORD = TrainingRecord()


class Checkpoints:
    """The checkpoints of a workdir; as a context it waits for the save in progress, then closes.

    Attributes:
      seconds_to_save: duration of the slowest save so far, from `save` to the seal; None before the first.
    """

    def __init__(
        self, workdir: str, *, keep: int = 1, keep_every: int = 0, check: Callable[[], None] = lambda: None
    ) -> None:
        """Opens the checkpoints of a workdir, which need not exist.

        Args:
          keep: number of newest checkpoints to keep.
          keep_every: checkpoints at multiples of this many steps are never deleted; 0 for none.
          check: called before every change to the directory, also from a thread; raises BadInput if the run may no
            longer write.

        Raises:
          BadInput: for a path that Orbax would misread.
        """
        check_path('workdir', workdir)
        self._directory = checkpoint_directory(workdir)
        self._keep, self._keep_every, self._check = keep, keep_every, check
        self._orbax = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._thread = concurrent.futures.ThreadPoolExecutor(1, 'seal')
        self._sealing: concurrent.futures.Future | None = None
        self._step, self._began_to_save = 0, 0.0  # of the newest save
        self._num_failures, self._failure = 0, None  # failures since the last successful save; the newest error
        self.seconds_to_save: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type | None, error: BaseException | None, __: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
            return  # another process may be gone, and a save needs all of them
        try:
            self.close()
        except Exception as failure:  # the error that ends the run is the one to raise
            say(f'The last save also failed: {failure}')

    # --- Reading. ---

    def steps(self) -> list[int]:
        """Returns the steps of the sealed checkpoints, ascending."""
        return seal.sealed_steps(self._directory)

    def latest_step(self) -> int | None:
        """Returns the step of the newest sealed checkpoint, or None."""
        return max(self.steps(), default=None)

    def damage(self, step: int) -> str:
        """Describes what is wrong with a checkpoint; '' if every byte is unchanged and Orbax finds all arrays."""
        return seal.damage(self._path(step)) or restore_error(self._path(step), step)

    def record(self, step: int) -> TrainingRecord:
        """Returns the divergence record that was saved with an intact checkpoint."""
        path = self._path(step) / _RECORD
        if not path.exists():  # an imported model has none
            return TrainingRecord()
        return TrainingRecord.from_json(read_json(path), str(path))

    def num_elements(self, step: int) -> int:
        """Returns the number of array elements in an intact checkpoint, from its metadata."""
        return sum(array.num_elements for array in arrays_of(self._path(step)).values())

    def set_aside_damaged(self) -> int | None:
        """Renames damaged and unfinished checkpoints, newest first, until it finds an intact one.

        Process 0, which holds the workdir, does this; the others receive its result.

        Returns:
          The step of the newest intact checkpoint, or None.
        """
        return processes.run_on_process_zero(self._find_intact)

    def _find_intact(self) -> int | None:
        """Implements `set_aside_damaged` in process 0."""
        self._check()
        for interrupted in matching(self._directory, '*.orbax-checkpoint-tmp*'):
            interrupted.rmtree()
        for step in reversed(seal.step_directories(self._directory)):
            damage = self.damage(step)
            if not damage:
                return step
            say(f'Checkpoint {step} is damaged ({damage}); renamed to {self._set_aside(step).name}.')
        return None

    def roll_back(self, first: int) -> int | None:
        """Finds the checkpoint to roll back to if step `first` is the first bad one, and deletes later checkpoints.

        Returns:
          The step of the newest intact checkpoint before `first`, or of the oldest if all are later; None if there is
          no checkpoint.
        """
        self._wait_for_save()
        if jax.process_index() == 0:
            self._check()
            before = [step for step in self.steps() if step < first] or self.steps()[:1]
            for step in self.steps():
                if step > max(before, default=0):
                    seal.delete(self._path(step))
        return self.set_aside_damaged()

    def restore(self, shapes: TrainState, shardings: TrainState, step: int) -> TrainState:
        """Returns the state of an intact checkpoint, placed according to `shardings`."""
        target = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding), shapes, shardings
        )
        restored = self._orbax.restore(self._path(step), args=ocp.args.StandardRestore(target.to_save()))
        return TrainState(**restored)

    # --- Saving. ---

    def save(self, state: TrainState, record: TrainingRecord = _NO_RECORD, *, known_finite: bool = False) -> None:
        """Starts a save; the state may be donated as soon as this returns.

        A save that fails, here or in the background, is reported. Earlier checkpoints are kept, and the next save tries
        again.

        Args:
          known_finite: the values of the state have already been checked.

        Raises:
          BadInput: if the state holds a non-finite value, if several saves in a row failed, or as `check`.
        """
        step = int(state.step)
        if step in self.steps():
            return
        if not known_finite and not is_finite(state):
            found = 'the parameters or the optimizer state are not finite, so they were not saved'
            raise BadInput(f'step {step}', found + self._last_saved(), 'a state that training can resume from')
        self._check()
        self._wait_for_save()  # the previous one
        self._step, self._began_to_save = step, time.monotonic()
        try:
            self._check_room(state)
            self._orbax.save(self._path(step), args=ocp.args.StandardSave(state.to_save()), force=True)
        except _WRITE_ERRORS as error:
            self._failed(step, error)
            return
        self._sealing = self._thread.submit(self._finish, step, record)

    def report_failures(self) -> None:
        """Reports a save that failed in the background; call this at every step.

        Raises:
          BadInput: if several saves in a row failed.
        """
        if self._sealing is not None and self._sealing.done():
            self._wait_for_save()

    def wait(self) -> None:
        """Waits for the save in progress.

        Raises:
          BadInput: if the last save failed.
        """
        self._wait_for_save()
        if self._failure is not None:
            raise self._save_error(self._failure)

    def close(self) -> None:
        """Waits for the save in progress and ends its thread.

        Raises:
          BadInput: if the last save failed.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def _wait_for_save(self) -> None:
        """Waits for the save in progress, if any, and reports how it ended."""
        sealing, self._sealing = self._sealing, None
        if sealing is None:
            return
        try:
            sealing.result()
        except _WRITE_ERRORS as error:
            self._failed(self._step, error)
        else:
            self._num_failures, self._failure = 0, None

    def _finish(self, step: int, record: TrainingRecord) -> None:
        """Runs in the background: waits until all files are written, then syncs, seals and reads them back."""
        self._orbax.wait_until_finished()
        if jax.process_index() == 0:
            directory = self._path(step)
            write_whole(directory / _RECORD, json.dumps(record.to_json()) + '\n')
            manifest = seal.make_manifest(directory, step)
            self._check()
            seal.seal(directory, manifest)
            if damage := self.damage(step):
                raise OSError(f'when read back, {damage}; renamed to {self._set_aside(step).name}')
            self._delete_old()
        self.seconds_to_save = max(self.seconds_to_save or 0.0, time.monotonic() - self._began_to_save)

    def _delete_old(self) -> None:
        for step in self.steps()[: -self._keep]:
            if not self._keep_every or step % self._keep_every:
                seal.delete(self._path(step))

    # --- Failures. ---

    def _check_room(self, state: TrainState) -> None:
        """Raises OSError, in every process, if the disk is too full; Orbax would notice only halfway through."""
        if not is_local(self._directory):  # object stores do not fill up
            return
        if problem := processes.run_on_process_zero(lambda: self._find_disk_problem(state)):  # all save, or none does
            raise OSError(*problem)

    def _find_disk_problem(self, state: TrainState) -> tuple[int, str] | None:
        """Returns why another checkpoint as large as the newest, or the state, would not fit: (error code, message)."""
        before = self.latest_step()
        files = [] if before is None else seal.files_of(self._path(before)).values()
        needed = sum(map(size_of, files)) or sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._directory).free
        except OSError as error:
            return error.errno or errno.EIO, error.strerror or str(error)
        if free >= needed:
            return None
        return errno.ENOSPC, f'{os.strerror(errno.ENOSPC)} ({free:,} bytes are free, about {needed:,} are needed)'

    def _failed(self, step: int, error: Exception) -> None:
        self._num_failures, self._failure = self._num_failures + 1, error
        if jax.process_index() == 0 and self._directory.exists():
            for incomplete in (*matching(self._directory, f'{step}.orbax-checkpoint-tmp*'), self._path(step)):
                if incomplete.exists() and step not in self.steps():  # it takes space that the next attempt needs
                    # Orbax may fail while its threads still write there; the next start deletes what is left.
                    with contextlib.suppress(OSError):
                        incomplete.rmtree()
        if self._num_failures >= _MAX_FAILURES:
            raise self._save_error(error)
        say(f'Step {step} could not be saved: {describe_error(error)}{self._last_saved()}. The next save tries again.')

    def _save_error(self, failure: Exception) -> BadInput:
        times = f', {self._num_failures} times in a row' if self._num_failures > 1 else ''
        error = BadInput(
            str(self._directory),
            f'a checkpoint could not be written{times}: {describe_error(failure)}{self._last_saved()}',
            'enough disk space, and permission to write',
            'free some space, then rerun the same command: it resumes from the last checkpoint',
        )
        error.__cause__ = failure
        return error

    def _last_saved(self) -> str:
        last = self.latest_step()
        return f'; step {last} is saved' if last is not None else '; no earlier step is saved'

    # --- Paths. ---

    def _path(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _set_aside(self, step: int) -> epath.Path:
        """Renames a damaged checkpoint; returns its new path."""
        names = (f'damaged-{step}-{count}' if count else f'damaged-{step}' for count in itertools.count())
        renamed = next(path for name in names if not (path := self._directory / name).exists())
        self._path(step).rename(renamed)
        return renamed


def checkpoint_directory(workdir: str) -> epath.Path:
    """Returns the directory of a workdir's checkpoints, one subdirectory per step."""
    return literal_path(workdir).resolve() / 'checkpoints'


def restore_whole(
    workdir: str, config: Config, vocab_size: int, step: int | None = None, build: Build | None = None
) -> TrainState:
    """Returns the state of a checkpoint (by default the newest), in full on the first device of each process.

    Raises:
      BadInput: see `restore_on`.
    """
    first_devices = {device.process_index: device for device in reversed(jax.devices())}
    train = Train(global_batch_size=len(first_devices))
    mesh = make_mesh(MeshConfig(), config.model, train, [*first_devices.values()])
    return restore_on(mesh, workdir, config, vocab_size, step, build)


def restore_on(
    mesh: Mesh,
    workdir: str,
    config: Config,
    vocab_size: int,
    step: int | None = None,
    build: Build | None = None,
) -> TrainState:
    """Returns the state of a checkpoint (by default the newest), sharded over a mesh.

    The run may be training: if it deletes the checkpoint that is being read, a newer one is read instead.

    Args:
      build: makes the model; by default, that of a pretraining run.

    Raises:
      BadInput: if there is no such checkpoint, if it is damaged, or if the run deletes the one named by `step`.
    """
    with Checkpoints(workdir) as checkpoints:
        program = None
        while True:
            chosen = _choose_step(checkpoints, workdir, step)
            try:
                if damage := checkpoints.damage(chosen):
                    raise _damage_error(checkpoints, workdir, chosen, damage)
                size = checkpoints.num_elements(chosen)
                check_size(config.model, vocab_size, size, workdir, f'{workdir}/checkpoints/{chosen}')
                build = build or build_of(config.in_phases[0].objective)
                program = program or build_program(
                    config.model, config.optimizer, config.train, vocab_size, mesh, phases=config.phases, build=build
                )
                return checkpoints.restore(program.shapes, program.shardings, chosen)
            except Exception:  # Orbax raises various errors when files disappear
                if chosen in checkpoints.steps():
                    raise


def _choose_step(checkpoints: Checkpoints, workdir: str, step: int | None) -> int:
    """Returns `step`, or the newest; raises BadInput if there is no such checkpoint."""
    steps = checkpoints.steps()
    chosen = max(steps, default=None) if step is None else step
    if chosen is None or chosen not in steps:
        raise BadInput(
            f'{workdir}/checkpoints',
            f'holds no checkpoint of step {step}' if step is not None else 'holds no checkpoint',
            seal.describe_steps(steps),
            '' if steps else 'bert-jax train --workdir=…',
        )
    return chosen


def _damage_error(checkpoints: Checkpoints, workdir: str, step: int, damage: str) -> BadInput:
    others = [other for other in checkpoints.steps() if other != step]
    fix = f'--step={max(others)}' if others else ''
    return BadInput(f'{workdir}/checkpoints/{step}', damage, 'the bytes that were written', fix)
