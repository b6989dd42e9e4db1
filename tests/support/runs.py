"""What a run has written: its metrics without what depends on the clock, and the state that it ended in."""

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

BY_THE_CLOCK = ('tokens_per_second', 'input_wait_fraction', 'mfu')


def metric_lines(workdir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, without what depends on the clock."""
    path = workdir / 'metrics.jsonl'
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else ())
    return [{name: value for name, value in line.items() if name not in BY_THE_CLOCK} for line in lines]


def metrics(workdir: Path) -> dict[int, dict[str, float]]:
    """`metric_lines` by step; a value that a step has twice is an error."""
    found: dict[int, dict[str, float]] = {}
    for values in metric_lines(workdir):
        step = values.pop('step')
        assert not found.get(step, {}).keys() & values.keys(), f'step {step} appears twice'
        found.setdefault(step, {}).update(values)
    return found


def final_state(workdir: Path) -> dict[str, bytes]:
    """Every array of the newest checkpoint (step, parameters, optimizer state), as its bytes."""
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


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Two runs logged the same metrics and ended in the same state, bit for bit."""
    assert metric_lines(ours) == metric_lines(theirs)
    first, second = final_state(ours), final_state(theirs)
    assert first.keys() == second.keys()
    assert not [name for name in first if first[name] != second[name]]
