"""Scaling on paper: the predictions follow from the closed form of a ring, and the batch they ask for is the least."""

import math

import pytest

from bert_jax.errors import BadInput
from bert_jax.plan import planning, scaling, targets
from tests.support.configs import planned_run


def _plan(name: str, rows: int, **fields: object) -> planning.Plan:
    target = targets.parse(name)
    chosen = planned_run(**{'train.global_batch_size': rows * target.num_devices, 'mesh.data': -1} | fields)
    return planning.analytic_plan(chosen, target)


def test_an_exposed_all_reduce_costs_what_a_ring_over_hosts_takes() -> None:
    plan = _plan('h100:1x8', 4)
    device, size = plan.target.device, plan.estimate.parameter_bytes
    alone = plan.time.matrix + plan.time.memory
    for scale in scaling.scaling(plan):
        hosts = scale.num_devices // 8
        inside = 2 * size * 7 / 8 / (device.link * device.link_efficiency)
        between = 2 * size / 8 * (hosts - 1) / hosts / (device.network * device.link_efficiency)
        ring = inside + between + device.latency * (1 + math.log2(hosts))
        assert scale.exchange_seconds == pytest.approx(ring)
        assert scale.efficiency == pytest.approx(alone / (alone + ring))
    assert [scale.num_devices for scale in scaling.scaling(plan)] == [8, 64, 512, 4096]


@pytest.mark.parametrize('name', ['h100:1x8', 'tpu-v5p:2x2x2', 'tpu-v5e:2x4'])
def test_the_batch_for_ninety_percent_is_the_least(name: str) -> None:
    plan = _plan(name, 4)
    scales = scaling.scaling(plan)
    assert [scale.efficiency for scale in scales] == sorted((s.efficiency for s in scales), reverse=True)
    for index, scale in enumerate(scales):
        enough = scaling.scaling(plan, scaled(plan, scale.rows_needed))[index]
        fewer = scaling.scaling(plan, scaled(plan, scale.rows_needed - 1))[index]
        assert enough.efficiency >= 0.9 > fewer.efficiency
        assert scale.global_batch_needed == scale.rows_needed * scale.num_devices


def scaled(plan: planning.Plan, rows: int) -> float:
    """Seconds of the computation at so many rows a device: the optimiser's share stays, the rest grows with them."""
    device, alone = plan.target.device, plan.time.matrix + plan.time.memory
    update = 9.0 * plan.estimate.parameter_bytes / (device.memory_bandwidth * device.memory_efficiency)
    update = min(update, alone)
    return update + (alone - update) * rows / scaling.rows_of_a_device(plan.config, plan.target)


def test_a_kind_that_comes_in_small_slices_ends_there() -> None:
    assert [scale.target for scale in scaling.scaling(_plan('tpu-v5e:2x4', 4))] == ['tpu-v5e:2x4', 'tpu-v5e:8x8']
    assert scaling.scaling(_plan('tpu-v5p:2x2x2', 4))[-1].target == 'tpu-v5p:16x16x16'


def test_only_splits_over_data_are_scaled() -> None:
    with pytest.raises(BadInput, match='data alone'):
        scaling.scaling(_plan('h100:1x8', 4, **{'mesh.fsdp': 2}))
