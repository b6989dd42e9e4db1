"""Device batches equal those of the stream, and come with the step that trains on them."""

import jax
import numpy as np

from bert_jax import config
from bert_jax.data.device_batches import device_batches
from bert_jax.data.random_rows import RandomRows
from bert_jax.runtime.mesh import batch_sharding, make_mesh

MODEL, TRAIN = config.Bert(), config.Train(global_batch_size=8)
STREAM = RandomRows(config.Data(sequence_length=16), 60, batch_size=8, seed=0)


def test_batches_start_at_any_step_and_are_sharded() -> None:
    mesh = make_mesh(config.Mesh(data=2, fsdp=2), MODEL, TRAIN, jax.devices()[:4])
    found = list(device_batches(STREAM, mesh, 3, 5, position=lambda index: index + 10))
    assert [step for step, _ in found] == [4, 5]
    for index, (_, batch) in zip((13, 14), found, strict=True):
        for ours, expected in zip(batch, STREAM.batch(index), strict=True):
            assert ours.sharding == batch_sharding(mesh)
            np.testing.assert_array_equal(ours, expected)


def test_finished_run_reads_no_batch() -> None:
    mesh = make_mesh(config.Mesh(), MODEL, TRAIN, jax.devices()[:1])
    assert list(device_batches(STREAM, mesh, 5, 5)) == []
