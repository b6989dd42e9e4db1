"""Saving and restoring a `TrainState` with Orbax.

A checkpoint is written asynchronously to a temporary name and renamed when it is whole, so a killed run
leaves either a whole one or none.
"""

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from bert_jax.config import Config, Train
from bert_jax.config import Mesh as MeshConfig
from bert_jax.errors import BadInput
from bert_jax.train.optimizer import make_optimizer
from bert_jax.train.sharding import make_mesh
from bert_jax.train.state import TrainState, state_shardings


class Checkpoints:
    """The checkpoints of a workdir."""

    def __init__(self, workdir: str, keep: int = 1):
        """Args: keep, how many of the newest to keep."""
        self._directory = epath.Path(workdir).resolve() / 'checkpoints'
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Starts to save; the state may be donated as soon as this returns."""
        step = int(state.step)
        if step != self.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(state._asdict()))

    def restore(self, shapes: TrainState, shardings: TrainState, step: int | None = None) -> TrainState:
        """The state of a step (the newest without one), placed as `shardings` say.

        Raises:
          BadInput: when there is no such checkpoint.
        """
        found = self._manager.all_steps()
        step = self.latest_step() if step is None else step
        if step not in found:
            raise BadInput(
                str(self._directory),
                f'holds no checkpoint of step {step}' if step is not None else 'holds no checkpoint',
                f'one of {", ".join(map(str, found))}' if found else 'a run that has saved at least once',
                '' if found else 'python -m bert_jax train --workdir=…',
            )
        target = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding), shapes, shardings
        )
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(target._asdict()))
        return TrainState(**restored)

    def close(self) -> None:
        """Waits for what is still being written; raises what went wrong with it."""
        self._manager.wait_until_finished()
        self._manager.close()


def restore_on_one_device(
    workdir: str, config: Config, vocab_size: int, step: int | None = None
) -> tuple[TrainState, Mesh]:
    """The state of a run's checkpoint (the newest without `step`) on the first device, and the mesh of that device.

    Raises:
      BadInput: when there is no such checkpoint.
    """
    mesh = make_mesh(MeshConfig(), config.model, Train(), jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.phases)
    checkpoints = Checkpoints(workdir)
    state = checkpoints.restore(*state_shardings(config.model, vocab_size, optimizer, mesh), step=step)
    checkpoints.close()
    return state, mesh
