"""Describes plans as text for a terminal."""

import math

from bert_jax import console
from bert_jax.plan.phased import RunPlan
from bert_jax.plan.planning import Plan, as_flags, smallest_changes
from bert_jax.plan.scaling import DEVICE_COUNTS, Scaling, rows_per_device
from bert_jax.plan.search import NUM_LISTED, Ranking
from bert_jax.plan.targets import Target
from bert_jax.train.phase_table import describe_phases


def describe_plan(plan: Plan, price: float | None = None) -> str:
    """Describes a plan in about a dozen lines, which say what was compiled and what is an estimate.

    Args:
      price: dollars per device-hour.
    """
    config, target = plan.config, plan.target
    axes = ', '.join(f'{axis}={size}' for axis, size in plan.mesh.items())
    num_hosts = f'{target.num_hosts} host{"s" * (target.num_hosts > 1)}'
    num_checkpoints = config.train.keep_checkpoints + 1
    checkpoint = plan.estimate.checkpoint_bytes
    lines = [
        f'{target.name}: {target.num_devices} x {target.device.name}, {num_hosts}; mesh {axes}; '
        f'microbatches {config.train.microbatches}, remat {config.model.remat}, {config.model.dtype}',
        f'Attention: {plan.attention}',
        *_memory_lines(plan),
        f'Model: {plan.estimate.parameters:,} parameters; {plan.estimate.flops_per_step:.4g} FLOPs per step',
        *_time_lines(plan),
        *_collective_lines(plan),
        f'Run: {config.train.steps:,} steps take ' + describe_cost(plan.run_seconds, target.num_devices, price),
        f'Disk: {console.size(checkpoint)} per checkpoint, {console.size(num_checkpoints * checkpoint)} for up to '
        f'{num_checkpoints} of them',
        f'Assumed: full rows of {config.data.sequence_length}, a vocabulary of {config.tokenizer.vocab_size:,}'
        + _efficiencies(target),
    ]
    if plan.is_compiled and plan.work.unknown_loops:
        lines.append(f'  {plan.work.unknown_loops} loops of unknown length are counted once')
    if plan.program is None:
        lines.append(f'Not compiled: {plan.not_compiled_reason}')
    return '\n'.join(lines)


def _memory_lines(plan: Plan) -> list[str]:
    """Returns whether the step fits, its memory by purpose, and changes that would make it fit."""
    device, required = plan.target.device, plan.required_bytes
    spare = device.usable_bytes - required['total']
    verdict = f'Fits, {console.size(spare)} to spare' if plan.fits else 'Does NOT fit'
    if not plan.fits and math.isfinite(spare):
        verdict += f', {console.size(-spare)} too much'
    lines = [
        f'{verdict}: {console.size(required["total"])} of the {console.size(device.usable_bytes)} that a program may '
        f"allocate of each device's {console.size(device.memory_bytes)} "
        f'({"estimate" if plan.program is None else "compiled"})'
    ]
    if plan.program is not None and plan.program.rejection:
        lines.append(f'  the compiler: {plan.program.rejection}')
    lines += [f'  {name:12} {console.size(needed):>11}' for name, needed in required.items() if name != 'total']
    if not plan.fits:
        lines += [f'  would fit: {change}' for change in smallest_changes(plan)]
    return lines


def _time_lines(plan: Plan) -> list[str]:
    """Returns the time of a step and its parts, the measurement if there is one, and the speed."""
    time, speed = plan.time, plan.tokens_per_second
    source = 'the compiled program' if plan.is_compiled else 'an estimate'
    return [
        f'Step: {console.duration(time.total)} (roofline of {source}): matmuls {console.duration(time.matmul)}, '
        f'memory {console.duration(time.memory)}, waiting for collectives {console.duration(time.exposed)}, '
        f'overlapped collectives {console.duration(time.overlapped)}',
        *_measurement_lines(plan),
        f'Speed: {speed:,.0f} tokens/s, MFU {plan.mfu:.1%}; each host has to supply '
        f'{speed / plan.target.num_hosts:,.0f} tokens/s',
    ]


def _collective_lines(plan: Plan) -> list[str]:
    collectives = plan.collectives()
    if not collectives:
        return []
    return [
        f'Collectives per device and step ({"compiled" if plan.is_compiled else "estimate"}):',
        *(
            f'  {each["kind"]:18} over {each["axis"]:16} {each["bytes"] / 1e6:10,.1f} MB in {each["count"]} calls, '
            + ('overlapped with computation' if each['overlapped'] else 'not overlapped')
            for each in collectives
        ),
    ]


def describe_cost(seconds: float, num_devices: int, price: float | None) -> str:
    """Describes the duration of all steps, their device-hours, and their cost if a price per device-hour is given."""
    hours = seconds / 3600 * num_devices
    dollars = f', {hours * price:,.0f} dollars' if price is not None else ''
    return f'{console.duration(seconds)}, {hours:,.1f} device-hours{dollars} (steps alone)'


def _measurement_lines(plan: Plan) -> list[str]:
    """Returns the time and memory of a few real steps, compared with the prediction."""
    if plan.measured is None:
        return []
    seconds, peak = plan.measured.step_seconds, plan.measured.peak_bytes
    total = plan.required_bytes['total']
    memory = f'{console.size(peak)} per device, predicted {total / peak - 1:+.0%}'
    if plan.measured.is_resident_size:
        memory = f'peak of the process {console.size(peak)}, including Python and the compiler'
        if (grown := plan.measured.grown_bytes) is not None:
            memory = f'{console.size(grown)} for state and a step, predicted {total / grown - 1:+.0%}; {memory}'
    return [
        f'Measured: {console.duration(seconds)} per step (predicted {plan.time.total / seconds - 1:+.0%}); {memory}'
    ]


def _efficiencies(target: Target) -> str:
    device = target.device
    if target.name == 'here':
        flops, bandwidth = device.peak_flops / 1e9, device.memory_bandwidth / 1e9
        return f'; measured {flops:,.0f} GFLOP/s, {bandwidth:,.1f} GB/s per device'
    return (
        f'; {device.matmul_efficiency:.0%} of peak FLOPs, {device.memory_efficiency:.0%} of memory bandwidth, '
        f'{device.link_efficiency:.0%} of the links'
    )


def describe_run(run: RunPlan, price: float | None = None) -> str:
    """Describes the plan of every phase, and of the whole run if it has several."""
    if len(run.plans) == 1:
        return describe_plan(run.plans[0], price)
    lines = []
    for phase, plan in enumerate(run.plans, start=1):
        lines += [f'--- Phase {phase} of {len(run.plans)} ---', describe_plan(plan, price)]
    verdict = 'every phase fits' if all(plan.fits for plan in run.plans) else 'NOT every phase fits'
    cost = describe_cost(run.run_seconds, run.plans[0].target.num_devices, price)
    table = describe_phases(run.config, run.costs)
    return '\n'.join([*lines, '--- The run ---', table, f'All phases, {verdict}: {cost}'])


def describe_ranking(ranking: Ranking, price: float | None) -> str:
    """Describes the best candidates in one line each, then the best one in full."""
    lines = [f'{ranking.tried} candidates, {ranking.too_large} do not fit. Compiled ones first, then estimates:']
    for rank, (changes, plan) in enumerate(ranking.plans[:NUM_LISTED], start=1):
        lines.append(
            f'{rank:3}. {plan.time.total * 1e3:8.1f} ms  {console.size(plan.required_bytes["total"]):>11}  '
            f'{"compiled" if plan.is_compiled else "estimate"}  {as_flags(changes)}'
        )
    return '\n'.join([*lines, '', describe_plan(ranking.plans[0][1], price)])


def describe_scaling(plan: Plan, predictions: list[Scaling]) -> str:
    """Describes predicted scaling efficiencies as a table."""
    rows = rows_per_device(plan.config, plan.target)
    source = 'compiled' if plan.is_compiled else 'estimated'
    lines = [
        f'Predicted, not measured: {rows} rows of {plan.config.data.sequence_length} on each device, data parallel; '
        f'collectives {source} for {plan.target.name}, computation {plan.time.computation * 1e3:,.1f} ms',
        f'{"target":18} {"devices":>8} {"efficiency":>11} {"exchange":>12} {"rows/device at 90%":>18} {"batch":>10}',
    ]
    for prediction in predictions:
        rows_needed, batch_needed = prediction.rows_needed, prediction.global_batch_needed
        lines.append(
            f'{prediction.target:18} {prediction.num_devices:8,} {prediction.efficiency:11.1%} '
            f'{prediction.exchange_seconds * 1e3:9,.1f} ms '
            f'{"-" if rows_needed is None else f"{rows_needed:,}":>18} '
            f'{"-" if batch_needed is None else f"{batch_needed:,}":>10}'
        )
    if predictions and predictions[-1].num_devices < DEVICE_COUNTS[-1]:
        largest = predictions[-1].num_devices
        lines.append(f'{plan.target.device.name} is not offered in larger slices than {largest} chips')
    return '\n'.join(lines)
