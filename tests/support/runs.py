"""Reads what a run has written: its metrics, without those that depend on the clock, and its final state."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

BY_THE_CLOCK = ('tokens_per_second', 'input_wait_fraction', 'mfu')


def metric_lines(workdir: Path) -> list[dict[str, float]]:
    """Returns the lines of metrics.jsonl, without metrics that depend on the clock."""
    path = workdir / 'metrics.jsonl'
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else ())
    return [{name: value for name, value in line.items() if name not in BY_THE_CLOCK} for line in lines]


def metrics(workdir: Path) -> dict[int, dict[str, float]]:
    """Returns `metric_lines` by step; asserts that no step has a metric twice."""
    by_step: dict[int, dict[str, float]] = {}
    for values in metric_lines(workdir):
        step = values.pop('step')
        assert not by_step.get(step, {}).keys() & values.keys(), f'step {step} appears twice'
        by_step.setdefault(step, {}).update(values)
    return by_step


def final_state(workdir: Path) -> dict[str, bytes]:
    """Returns the bytes of every array of the newest checkpoint (step, parameters, optimizer state)."""
    newest = max(int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit())
    with ocp.StandardCheckpointer() as checkpointer:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        path = (workdir / 'checkpoints' / str(newest)).resolve()
        shapes = checkpointer.metadata(path).item_metadata.tree
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
        restored = checkpointer.restore(path, target)
    leaves, _ = jax.tree.flatten_with_path(restored)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}
    return {'step': str(newest).encode()} | arrays


def copy_stopped_at(step: int, finished: Path, to: Path) -> None:
    """Copies the workdir of a finished run without the checkpoints after a step, as if it had been stopped there."""
    shutil.copytree(finished, to)
    later = [path for path in (to / 'checkpoints').iterdir() if path.name.isdigit() and int(path.name) > step]
    assert later
    for path in later:
        shutil.rmtree(path)


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Asserts that two runs logged the same metrics and ended in the same state, bit for bit."""
    assert metric_lines(ours) == metric_lines(theirs)
    first, second = final_state(ours), final_state(theirs)
    assert first.keys() == second.keys()
    assert not [name for name in first if first[name] != second[name]]
