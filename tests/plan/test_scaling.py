"""Predicted scaling follows the closed form of a ring, and the suggested batch is the smallest that suffices."""

import math

import pytest

from bert_jax.errors import BadInput
from bert_jax.plan import planning, scaling, targets
from tests.support.configs import planned_run


def _plan(name: str, rows: int, **fields: object) -> planning.Plan:
    target = targets.parse_target(name)
    config = planned_run(**{'train.global_batch_size': rows * target.num_devices, 'mesh.data': -1} | fields)
    return planning.analytic_plan(config, target)


def test_exposed_all_reduce_takes_the_time_of_a_ring() -> None:
    plan = _plan('h100:1x8', 4)
    device, size = plan.target.device, plan.estimate.parameter_bytes
    alone = plan.time.computation
    predictions = scaling.predict_scaling(plan)
    for prediction in predictions:
        hosts = prediction.num_devices // 8
        within_host = 2 * size * 7 / 8 / (device.link_bandwidth * device.link_efficiency)
        between_hosts = 2 * size / 8 * (hosts - 1) / hosts / (device.network_bandwidth * device.link_efficiency)
        ring = within_host + between_hosts + device.latency_seconds * (1 + math.log2(hosts))
        assert prediction.exchange_seconds == pytest.approx(ring)
        assert prediction.efficiency == pytest.approx(alone / (alone + ring))
    assert [prediction.num_devices for prediction in predictions] == [8, 64, 512, 4096]


@pytest.mark.parametrize('name', ['h100:1x8', 'tpu-v5p:2x2x2', 'tpu-v5e:2x4'])
def test_suggested_batch_is_the_smallest_that_keeps_ninety_percent(name: str) -> None:
    plan = _plan(name, 4)
    predictions = scaling.predict_scaling(plan)
    efficiencies = [prediction.efficiency for prediction in predictions]
    assert efficiencies == sorted(efficiencies, reverse=True)
    for index, prediction in enumerate(predictions):
        rows = prediction.rows_needed
        enough = scaling.predict_scaling(plan, _computation_seconds(plan, rows))[index]
        fewer = scaling.predict_scaling(plan, _computation_seconds(plan, rows - 1))[index]
        assert enough.efficiency >= 0.9 > fewer.efficiency
        assert prediction.global_batch_needed == rows * prediction.num_devices


def _computation_seconds(plan: planning.Plan, rows: int) -> float:
    """Returns the seconds of computation at `rows` per device: all but the update grows with the rows."""
    device, alone = plan.target.device, plan.time.computation
    update = 9.0 * plan.estimate.parameter_bytes / (device.memory_bandwidth * device.memory_efficiency)
    update = min(update, alone)
    return update + (alone - update) * rows / scaling.rows_per_device(plan.config, plan.target)


def test_predictions_end_at_the_largest_slice_of_a_chip() -> None:
    predictions = scaling.predict_scaling(_plan('tpu-v5e:2x4', 4))
    assert [prediction.target for prediction in predictions] == ['tpu-v5e:2x4', 'tpu-v5e:8x8']
    assert scaling.predict_scaling(_plan('tpu-v5p:2x2x2', 4))[-1].target == 'tpu-v5p:16x16x16'


def test_meshes_with_other_axes_than_data_are_rejected() -> None:
    with pytest.raises(BadInput, match='data alone'):
        scaling.predict_scaling(_plan('h100:1x8', 4, **{'mesh.fsdp': 2}))
