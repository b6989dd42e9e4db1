"""Saving and restoring a `TrainState`: written by Orbax, sealed and verified here.

    WORKDIR/checkpoints/STEP/                what Orbax wrote, asynchronously, under a temporary name
    WORKDIR/checkpoints/STEP/record.json     what the run knew of its numbers (`guard.Record`)
    WORKDIR/checkpoints/STEP/manifest.json   size and SHA-256 of every file, part by part; renamed in last

A directory without its manifest is no checkpoint: a run killed at any moment leaves whole ones only. Orbax by itself
restores most flipped bits without a word, so every file is hashed before it is restored. Before an old checkpoint is
deleted, the new one is read back from the disk.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from bert_jax.config import Config, Train, digest
from bert_jax.config import Mesh as MeshConfig
from bert_jax.errors import BadInput
from bert_jax.files import forget_cached, sync, write_whole
from bert_jax.model.bert import BertForPreTraining, Build
from bert_jax.runtime.mesh import make_mesh
from bert_jax.runtime.processes import say
from bert_jax.train.divergence import Record
from bert_jax.train.program import build_program
from bert_jax.train.state import TrainState, is_finite

_MANIFEST, _RECORD = 'manifest.json', 'record.json'
_VERSION = 2  # of the manifest; the first had no number, and a digest for each file
_PART_BYTES = 16 << 20  # hashed by itself
_LARGEST_MANIFEST = 256 << 20  # bytes; the parts of a checkpoint of 50 TB
_HASHED_AT_ONCE = 8
_FAILURES = 3  # saves in a row that may fail
_WRITING_FAILS = (OSError, ValueError, RuntimeError)  # what Orbax and TensorStore raise when they cannot write
_NOTHING_KNOWN = Record()
_READ_AT_ONCE = 1 << 20  # bytes


class Checkpoints:
    """The checkpoints of a workdir."""

    def __init__(self, workdir: str, *, keep: int = 1, keep_every: int = 0):
        """Args: keep, how many of the newest to keep; keep_every, steps whose multiples are kept for good (0: none)."""
        self._directory = epath.Path(workdir).resolve() / 'checkpoints'
        self._keep, self._keep_every = keep, keep_every
        self._orbax = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._beside = concurrent.futures.ThreadPoolExecutor(1, 'seal')
        self._sealing: concurrent.futures.Future | None = None
        self._saving = 0  # the step that is being sealed
        self._failures, self._failure = 0, None  # saves that failed since the last that did not; why the newest did
        self.seconds_to_save: float | None = None  # the longest so far, from `save` to the manifest
        self.before_sealing: Callable[[], None] = lambda: None  # may raise BadInput
        self._began_to_save = 0.0

    def steps(self) -> list[int]:
        """Steps of the sealed checkpoints, ascending."""
        return [step for step in self._directories() if (self._path(step) / _MANIFEST).exists()]

    def latest_step(self) -> int | None:
        """The newest sealed checkpoint's step, or None."""
        return max(self.steps(), default=None)

    def set_aside_unsound(self) -> int | None:
        """Renames damaged and unfinished directories, newest first, down to the newest sound checkpoint.

        Only the process that owns the workdir may do this; the others get its answer.

        Returns:
          The step of the newest sound checkpoint, or None.
        """
        found = None
        if jax.process_index() == 0:
            for left_over in self._directory.glob('*.orbax-checkpoint-tmp*') if self._directory.exists() else ():
                left_over.rmtree()  # a save that was cut short
            for step in reversed(self._directories()):
                damage = self.damage(step)
                if not damage:
                    found = step
                    break
                aside = self._new_name(f'damaged-{step}')
                self._path(step).rename(aside)
                say(f'Checkpoint {step} is not sound ({damage}): set aside as {aside.name}')
        if jax.process_count() > 1:
            shared = int(multihost_utils.broadcast_one_to_all(np.array(-1 if found is None else found)))
            found = None if shared < 0 else shared
        return found

    def go_back(self, first: int) -> int | None:
        """Where a run goes back to whose numbers are wrong from step `first` on; what was saved later is deleted.

        Returns:
          The step of the newest sound checkpoint before `first`, else of the oldest; None when there is none.
        """
        self._settle()
        if jax.process_index() == 0:
            before = [step for step in self.steps() if step < first] or self.steps()[:1]
            for step in self.steps():
                if step > max(before, default=0):
                    self._delete(step)
        return self.set_aside_unsound()

    def damage(self, step: int) -> str:
        """What is wrong with a checkpoint, naming the file; '' when every byte is as it was written."""
        directory = self._path(step)
        try:
            expected, part_bytes = _read_manifest(directory / _MANIFEST)
        except FileNotFoundError:
            return f'no {_MANIFEST}: it was never finished'
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f'{_MANIFEST} is damaged'
        found = _files_of(directory)
        for name in sorted(expected.keys() ^ found.keys()):
            return f'{name} is {"missing" if name in expected else "not in its manifest"}'
        for name, (size, _) in expected.items():
            if (length := found[name].stat().length) != size:
                return f'{name} has {length} bytes, not {size}'
        for name, digests in _digests(found, part_bytes).items():
            if digests != expected[name][1]:
                return f'{name} has another checksum'
        return ''

    def record(self, step: int) -> Record:
        """What the run knew of its numbers when it saved a sound checkpoint."""
        path = self._path(step) / _RECORD
        if not path.exists():  # an imported model has none
            return Record()
        return Record.from_json(json.loads(path.read_text()), str(path))

    def save(self, state: TrainState, record: Record = _NOTHING_KNOWN, *, known_finite: bool = False) -> None:
        """Starts to save; the state may be donated as soon as this returns.

        A save that fails, here or beside the training, is told; what was saved before stays, and the next save is the
        next attempt.

        Args:
          known_finite: whether the values of the state were looked at already.

        Raises:
          BadInput: when the state holds a value that is not finite, or when saves failed time after time.
        """
        step = int(state.step)
        if step in self.steps():
            return
        if not known_finite and not is_finite(state):
            found = 'the parameters or the optimizer state are not finite: not saved'
            raise BadInput(f'step {step}', found + self._still_safe(), 'a state that can be gone on from')
        self._settle()  # the save before
        self._began_to_save = time.monotonic()
        try:
            self._check_room(state)
            self._orbax.save(self._path(step), args=ocp.args.StandardSave(state._asdict()), force=True)
        except _WRITING_FAILS as error:
            self._failed(step, error)
            return
        self._sealing = self._beside.submit(self._seal, step, record)
        self._saving = step

    def check(self) -> None:
        """Tells what went wrong with a save that runs beside the training, as soon as that is known."""
        if self._sealing is not None and self._sealing.done():
            self._settle()

    def restore(self, shapes: TrainState, shardings: TrainState, step: int) -> TrainState:
        """The state of a sound checkpoint, placed as `shardings` say."""
        target = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding), shapes, shardings
        )
        restored = self._orbax.restore(self._path(step), args=ocp.args.StandardRestore(target._asdict()))
        return TrainState(**restored)

    def close(self) -> None:
        """Waits for what is still being written.

        Raises:
          BadInput: when the last save failed.
        """
        try:
            self._settle()
            if self._failure is not None:
                raise self._gave_up()
        finally:
            self._beside.shutdown()
            self._orbax.close()

    def _check_room(self, state: TrainState) -> None:
        """Raises OSError, in every process, when the disk has no room: Orbax would notice in the middle of it."""
        if _is_remote(self._directory):
            return
        problem = None
        if jax.process_index() == 0:
            before = self.latest_step()
            files = [] if before is None else _files_of(self._path(before)).values()
            needed = sum(path.stat().length for path in files) or sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                free = shutil.disk_usage(self._directory).free
                if free < needed:
                    told = f'{os.strerror(errno.ENOSPC)} ({free:,} bytes of some {needed:,})'
                    problem = OSError(errno.ENOSPC, told)
            except OSError as error:
                problem = error
        if jax.process_count() > 1:  # they save together or not at all
            number = problem.errno or errno.EIO if problem else 0
            number = int(multihost_utils.broadcast_one_to_all(np.array(number, np.int32)))
            problem = problem or (OSError(number, os.strerror(number)) if number else None)
        if problem:
            raise problem

    def _settle(self) -> None:
        """Waits for the save that is under way, if there is one, and tells how it ended."""
        sealing, self._sealing = self._sealing, None
        if sealing is None:
            return
        try:
            sealing.result()
        except _WRITING_FAILS as error:
            self._failed(self._saving, error)
        else:
            self._failures, self._failure = 0, None

    def _failed(self, step: int, error: Exception) -> None:
        self._failures, self._failure = self._failures + 1, error
        if jax.process_index() == 0 and self._directory.exists():
            for left_over in (*self._directory.glob(f'{step}.orbax-checkpoint-tmp*'), self._path(step)):
                if left_over.exists() and step not in self.steps():  # it takes room that the next attempt needs
                    # Orbax may have given up while its threads still write there; the next start takes the rest.
                    with contextlib.suppress(OSError):
                        left_over.rmtree()
        if self._failures >= _FAILURES:
            raise self._gave_up()
        say(f'Step {step} could not be saved: {_why(error)}{self._still_safe()}. The next save tries again.')

    def _gave_up(self) -> BadInput:
        times = f', {self._failures} times in a row' if self._failures > 1 else ''
        error = BadInput(
            str(self._directory),
            f'a checkpoint could not be written{times}: {_why(self._failure)}{self._still_safe()}',
            'room and permission to write',
            'the same command goes on from the last checkpoint',
        )
        error.__cause__ = self._failure
        return error

    def _still_safe(self) -> str:
        last = self.latest_step()
        return f'; step {last} is safe' if last is not None else '; nothing was saved before'

    def _seal(self, step: int, record: Record) -> None:
        """Beside the training: waits until all files have their names, then syncs, hashes and reads them back."""
        self._orbax.wait_until_finished()
        if jax.process_index() == 0:
            self._write_manifest(step, record)
        self.seconds_to_save = max(self.seconds_to_save or 0.0, time.monotonic() - self._began_to_save)

    def _write_manifest(self, step: int, record: Record) -> None:
        directory = self._path(step)
        write_whole(directory / _RECORD, json.dumps(record.to_json()) + '\n')
        files = _files_of(directory)
        if not _is_remote(directory):
            for path in {*files.values(), *(path.parent for path in files.values()), self._directory}:
                sync(path)
        digests = _digests(files, _PART_BYTES)
        listed = {name: {'bytes': path.stat().length, 'sha256': digests[name]} for name, path in files.items()}
        content = {'version': _VERSION, 'step': step, 'part_bytes': _PART_BYTES, 'files': listed}
        content['checksum'] = digest(content)  # damage to it must not be laid at a file's door
        self.before_sealing()
        write_whole(directory / _MANIFEST, json.dumps(content, indent=2) + '\n')
        if not _is_remote(directory):
            sync(directory)
            for path in files.values():
                forget_cached(path)
        if damage := self.damage(step):
            aside = self._new_name(f'damaged-{step}')
            self._path(step).rename(aside)
            raise OSError(f'read back, {damage}; set aside as {aside.name}')
        self._delete_old()

    def _delete_old(self) -> None:
        steps = self.steps()
        for step in steps[: -self._keep]:
            if not self._keep_every or step % self._keep_every:
                self._delete(step)

    def _delete(self, step: int) -> None:
        (self._path(step) / _MANIFEST).unlink()  # from here on it is no checkpoint
        self._path(step).rmtree()

    def _directories(self) -> list[int]:
        if not self._directory.exists():
            return []
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())

    def _path(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _new_name(self, name: str) -> epath.Path:
        candidates = (self._directory / (f'{name}-{number}' if number else name) for number in range(10_000))
        return next(path for path in candidates if not path.exists())


def _files_of(directory: epath.Path) -> dict[str, epath.Path]:
    """Name -> path of all files below a checkpoint's directory, but for its manifest."""
    found, open_directories = {}, [directory]
    while open_directories:
        for path in open_directories.pop().iterdir():
            if path.is_dir():
                open_directories.append(path)
            elif path != directory / _MANIFEST:
                found[path.relative_to(directory).as_posix()] = path
    return found


def _read_manifest(path: epath.Path) -> tuple[dict[str, tuple[int, list[str]]], int]:
    """({name: (bytes, digests of its parts)}, bytes of a part); raises what a damaged one raises."""
    if path.stat().length > _LARGEST_MANIFEST:
        raise ValueError
    content = json.loads(path.read_text())
    if content.keys() == {'step', 'files'}:  # of the first version: a digest for each file
        return {name: (file['bytes'], [file['sha256']]) for name, file in content['files'].items()}, 1 << 62
    if content['version'] != _VERSION or content['part_bytes'] != _PART_BYTES:
        raise ValueError
    if content.pop('checksum') != digest(content):
        raise ValueError
    return {name: (file['bytes'], file['sha256']) for name, file in content['files'].items()}, _PART_BYTES


def _digests(files: dict[str, epath.Path], part_bytes: int) -> dict[str, list[str]]:
    """The SHA-256 of each part of each file; parts are hashed side by side, so that a large file is no bottleneck."""
    parts = [
        (name, start) for name, path in files.items() for start in range(0, max(path.stat().length, 1), part_bytes)
    ]
    with concurrent.futures.ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        digests = pool.map(lambda part: _digest(files[part[0]], part[1], part_bytes), parts)
        found: dict[str, list[str]] = {name: [] for name in files}
        for (name, _), of_part in zip(parts, digests, strict=True):
            found[name].append(of_part)
    return found


def _digest(path: epath.Path, start: int, length: int) -> str:
    found = hashlib.sha256()
    with path.open('rb') as file:
        file.seek(start)
        while length and (block := file.read(min(_READ_AT_ONCE, length))):
            found.update(block)
            length -= len(block)
    return found.hexdigest()


def _why(error: Exception) -> str:
    """What went wrong, in the system's words where TensorStore's hold its number, else in a line."""
    if number := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(number[1]))
    return getattr(error, 'strerror', None) or (str(error).splitlines() or [type(error).__name__])[0]


def _is_remote(path: epath.Path) -> bool:
    return '://' in str(path)


def restore_whole(
    workdir: str, config: Config, vocab_size: int, step: int | None = None, build: Build = BertForPreTraining
) -> TrainState:
    """The state of a run's checkpoint (the newest without `step`), whole on the first device of each process.

    Raises:
      BadInput: see `restore_on`.
    """
    firsts = {device.process_index: device for device in reversed(jax.devices())}
    mesh = make_mesh(MeshConfig(), config.model, Train(global_batch_size=len(firsts)), [*firsts.values()])
    return restore_on(mesh, workdir, config, vocab_size, step, build)


def restore_on(
    mesh: Mesh,
    workdir: str,
    config: Config,
    vocab_size: int,
    step: int | None = None,
    build: Build = BertForPreTraining,
) -> TrainState:
    """The state of a run's checkpoint (the newest without `step`), spread over a mesh.

    Raises:
      BadInput: when there is no such checkpoint, or when it is damaged.
    """
    checkpoints = Checkpoints(workdir)
    found, place = checkpoints.steps(), f'{workdir}/checkpoints'
    step = max(found, default=None) if step is None else step
    if step not in found:
        raise BadInput(
            place,
            f'holds no checkpoint of step {step}' if step is not None else 'holds no checkpoint',
            f'one of {", ".join(map(str, found))}' if found else 'a run that has saved at least once',
            '' if found else 'python -m bert_jax train --workdir=…',
        )
    if damage := checkpoints.damage(step):
        others = [other for other in found if other != step]
        raise BadInput(
            f'{place}/{step}', damage, 'the bytes that were written', f'--step={max(others)}' if others else ''
        )
    program = build_program(
        config.model, config.optimizer, config.train, vocab_size, mesh, phases=config.phases, build=build
    )
    state = checkpoints.restore(program.shapes, program.shardings, step)
    checkpoints.close()
    return state
