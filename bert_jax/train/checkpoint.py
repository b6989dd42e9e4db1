"""Saving and restoring a `TrainState`: written by Orbax, sealed and verified here.

    WORKDIR/checkpoints/STEP/                what Orbax wrote, asynchronously, under a temporary name
    WORKDIR/checkpoints/STEP/manifest.json   size and SHA-256 of every file; renamed in last

A directory without its manifest is no checkpoint: a run killed at any moment leaves whole ones only. Orbax by itself
restores most flipped bits without a word, so every file is hashed before it is restored.
"""

import concurrent.futures
import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from bert_jax.config import Config, Train
from bert_jax.config import Mesh as MeshConfig
from bert_jax.errors import BadInput
from bert_jax.files import sync, write_whole
from bert_jax.hosts import say
from bert_jax.model.bert import BertForPreTraining, Build
from bert_jax.train.optimizer import make_optimizer
from bert_jax.train.sharding import make_mesh
from bert_jax.train.state import TrainState, state_shardings

_MANIFEST = 'manifest.json'
_HASHED_AT_ONCE = 8
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

    def damage(self, step: int) -> str:
        """What is wrong with a checkpoint, naming the file; '' when every byte is as it was written."""
        directory = self._path(step)
        try:
            expected = json.loads((directory / _MANIFEST).read_text())['files']
            expected = {name: (file['bytes'], file['sha256']) for name, file in expected.items()}
        except FileNotFoundError:
            return f'no {_MANIFEST}: it was never finished'
        except (ValueError, KeyError, TypeError, AttributeError):
            return f'{_MANIFEST} is damaged'
        found = _files_of(directory)
        for name in sorted(expected.keys() ^ found.keys()):
            return f'{name} is {"missing" if name in expected else "not in its manifest"}'
        sizes = {name: path.stat().length for name, path in found.items()}
        for name, (size, _) in expected.items():
            if sizes[name] != size:
                return f'{name} has {sizes[name]} bytes, not {size}'
        for name, digest in _digests(found).items():
            if digest != expected[name][1]:
                return f'{name} has another checksum'
        return ''

    def save(self, state: TrainState) -> None:
        """Starts to save; the state may be donated as soon as this returns.

        Raises:
          BadInput: when the state holds a value that is not finite; what was saved before stays.
        """
        step = int(state.step)
        if step in self.steps():
            return
        if not _all_finite(state):
            last = self.latest_step()
            raise BadInput(
                f'step {step}',
                'the parameters or the optimizer state are no longer finite: not saved',
                'a run that converges' + (f'; step {last} is the last sound checkpoint' if last is not None else ''),
                'a lower optimizer.peak_learning_rate or more warmup_steps, in a new --workdir',
            )
        self._wait()  # for the save before
        self._began_to_save = time.monotonic()
        self._orbax.save(self._path(step), args=ocp.args.StandardSave(state._asdict()), force=True)
        self._sealing = self._beside.submit(self._seal, step)

    def check(self) -> None:
        """Raises what went wrong with a save that runs beside the training."""
        if self._sealing is not None and self._sealing.done():
            self._wait()

    def restore(self, shapes: TrainState, shardings: TrainState, step: int) -> TrainState:
        """The state of a sound checkpoint, placed as `shardings` say."""
        target = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding), shapes, shardings
        )
        restored = self._orbax.restore(self._path(step), args=ocp.args.StandardRestore(target._asdict()))
        return TrainState(**restored)

    def close(self) -> None:
        """Waits for what is still being written; raises what went wrong with it."""
        try:
            self._wait()
        finally:
            self._beside.shutdown()
            self._orbax.close()

    def _wait(self) -> None:
        sealing, self._sealing = self._sealing, None
        if sealing is None:
            return
        try:
            sealing.result()
        except OSError as error:
            last = self.latest_step()
            kept = f'; step {last} is safe' if last is not None else ''
            raise BadInput(
                str(self._directory),
                f'a checkpoint could not be written ({error.strerror or error}){kept}',
                'room and permission to write',
                'the same command goes on from the last checkpoint',
            ) from error

    def _seal(self, step: int) -> None:
        """Beside the training: waits until all files have their names, then syncs and hashes them."""
        self._orbax.wait_until_finished()
        if jax.process_index() == 0:
            self._write_manifest(step)
        self.seconds_to_save = max(self.seconds_to_save or 0.0, time.monotonic() - self._began_to_save)

    def _write_manifest(self, step: int) -> None:
        directory = self._path(step)
        files = _files_of(directory)
        if not _is_remote(directory):
            for path in {*files.values(), *(path.parent for path in files.values()), self._directory}:
                sync(path)
        digests = _digests(files)
        listed = {name: {'bytes': path.stat().length, 'sha256': digests[name]} for name, path in files.items()}
        self.before_sealing()
        write_whole(directory / _MANIFEST, json.dumps({'step': step, 'files': listed}, indent=2) + '\n')
        if not _is_remote(directory):
            sync(directory)
        self._delete_old()

    def _delete_old(self) -> None:
        steps = self.steps()
        for step in steps[: -self._keep]:
            if not self._keep_every or step % self._keep_every:
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


def _digests(files: dict[str, epath.Path]) -> dict[str, str]:
    with concurrent.futures.ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        return dict(zip(files, pool.map(_digest, files.values()), strict=True))


def _digest(path: epath.Path) -> str:
    found = hashlib.sha256()
    with path.open('rb') as file:
        while part := file.read(_READ_AT_ONCE):
            found.update(part)
    return found.hexdigest()


def _is_remote(path: epath.Path) -> bool:
    return '://' in str(path)


@jax.jit
def _finite(tree: Any) -> jax.Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def _all_finite(state: TrainState) -> bool:
    return bool(_finite((state.params, state.opt_state)))


def restore_on_one_device(
    workdir: str, config: Config, vocab_size: int, step: int | None = None, build: Build = BertForPreTraining
) -> tuple[TrainState, Mesh]:
    """The state of a run's checkpoint (the newest without `step`) on the first device, and the mesh of that device.

    Raises:
      BadInput: when there is no such checkpoint, or when it is damaged.
    """
    mesh = make_mesh(MeshConfig(), config.model, Train(), jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.phases)
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
    state = checkpoints.restore(*state_shardings(config.model, vocab_size, optimizer, mesh, build), step=step)
    checkpoints.close()
    return state, mesh
