"""Plans as text for a terminal."""

import math

from bert_jax import console
from bert_jax.plan.phased import RunPlan
from bert_jax.plan.planning import Plan, overrides, smallest_changes
from bert_jax.plan.scaling import SIZES, Scale, rows_of_a_device
from bert_jax.plan.search import NUM_SHOWN, Ranking
from bert_jax.plan.targets import Target


def describe_plan(plan: Plan, price: float | None = None) -> str:
    """The plan in a dozen lines; what is compiled and what is counted is said."""
    config, target, time, required = plan.config, plan.target, plan.time, plan.required_bytes
    device, hosts = target.device, target.num_hosts
    axes = ', '.join(f'{axis}={size}' for axis, size in plan.mesh.items())
    source = 'compiled' if plan.program is not None else 'estimate'
    spare = device.usable_bytes - required['total']
    verdict = f'Fits, {console.size(spare)} to spare' if plan.fits else 'Does NOT fit'
    if not plan.fits and math.isfinite(spare):
        verdict += f', {console.size(-spare)} too much'
    lines = [
        f'{target.name}: {target.num_devices} x {device.name}, {hosts} host{"s" * (hosts > 1)}; mesh {axes}; '
        f'microbatches {config.train.microbatches}, remat {config.model.remat}, {config.model.dtype}',
        f'{verdict}: {console.size(required["total"])} of the {console.size(device.usable_bytes)} that a program may '
        f"take of each device's {console.size(device.memory_bytes)} ({source})",
    ]
    if plan.program is not None and plan.program.refused:
        lines.append(f'  the compiler: {plan.program.refused}')
    lines += [f'  {name:12} {console.size(needed):>11}' for name, needed in required.items() if name != 'total']
    lines += [f'  would fit: {change}' for change in ([] if plan.fits else smallest_changes(plan))]
    lines += [
        f'Model: {plan.estimate.parameters:,} parameters; {plan.estimate.flops_per_step:.4g} FLOPs a step',
        f'Step: {console.duration(time.total)} '
        f'(roofline of {"the compiled program" if plan.is_compiled else "an estimate"}): '
        f'matmuls {console.duration(time.matrix)}, memory {console.duration(time.memory)}, '
        f'waiting for collectives {console.duration(time.exposed)}, '
        f'collectives beside computation {console.duration(time.hidden)}',
        *_measured(plan),
        f'Speed: {plan.tokens_per_second:,.0f} tokens/s, MFU {plan.mfu:.1%}; each host must be fed '
        f'{plan.tokens_per_second / hosts:,.0f} tokens/s',
    ]
    collectives = plan.collectives()
    lines += [f'Collectives of a device in a step ({"compiled" if plan.is_compiled else "estimate"}):'] * bool(
        collectives
    )
    lines += [
        f'  {found["kind"]:18} over {found["axis"]:16} {found["bytes"] / 1e6:10,.1f} MB in {found["count"]} calls, '
        + ('beside computation' if found['overlapped'] else 'nothing runs beside them')
        for found in collectives
    ]
    keep = config.train.keep_checkpoints + 1
    checkpoint = plan.estimate.checkpoint_bytes
    lines += [
        f'Run: {config.train.steps:,} steps take ' + describe_cost(plan.run_seconds, target.num_devices, price),
        f'Disk: {console.size(checkpoint)} a checkpoint, {console.size(keep * checkpoint)} for up to {keep} of them',
        f'Assumed: full rows of {config.data.sequence_length}, a vocabulary of {config.tokenizer.vocab_size:,}'
        + _efficiencies(target),
    ]
    if plan.is_compiled and plan.work.unknown_loops:
        lines.append(f'  {plan.work.unknown_loops} loops of unknown length are counted once')
    if plan.program is None:
        lines.append(f'Not compiled: {plan.why_not}')
    return '\n'.join(lines)


def describe_cost(seconds: float, num_devices: int, price: float | None) -> str:
    """How long, how many device-hours, and for a price of one how many dollars."""
    hours = seconds / 3600 * num_devices
    dollars = f', {hours * price:,.0f} dollars' if price is not None else ''
    return f'{console.duration(seconds)}, {hours:,.1f} device-hours{dollars} (steps alone)'


def _measured(plan: Plan) -> list[str]:
    """What a few real steps took and held, beside the prediction."""
    if plan.measured is None:
        return []
    seconds, peak = plan.measured.step_seconds, plan.measured.peak_bytes
    total = plan.required_bytes['total']
    memory = f'{console.size(peak)} of a device, predicted {total / peak - 1:+.0%}'
    if plan.measured.is_resident_size:
        memory = f'the process held {console.size(peak)} at most, with Python and the compiler'
        if (grown := plan.measured.grown_bytes) is not None:
            memory = f'{console.size(grown)} for state and a step, predicted {total / grown - 1:+.0%}; {memory}'
    return [f'Measured: {console.duration(seconds)} a step (predicted {plan.time.total / seconds - 1:+.0%}); {memory}']


def _efficiencies(target: Target) -> str:
    device = target.device
    if target.name == 'here':
        return f'; measured {device.peak_flops / 1e9:,.0f} GFLOP/s, {device.memory_bandwidth / 1e9:,.1f} GB/s a device'
    return (
        f'; {device.matmul_efficiency:.0%} of peak FLOPs, {device.memory_efficiency:.0%} of memory bandwidth, '
        f'{device.link_efficiency:.0%} of the links'
    )


def describe_run(run: RunPlan, price: float | None = None) -> str:
    """The plans of all phases, and of the whole run."""
    if len(run.plans) == 1:
        return describe_plan(run.plans[0], price)
    parts = []
    for number, plan in enumerate(run.plans, start=1):
        parts += [f'--- Phase {number} of {len(run.plans)} ---', describe_plan(plan, price)]
    seconds, num_devices = run.run_seconds, run.plans[0].target.num_devices
    verdict = 'every phase fits' if all(plan.fits for plan in run.plans) else 'NOT every phase fits'
    return '\n'.join(
        [*parts, '--- The run ---', f'All phases, {verdict}: ' + describe_cost(seconds, num_devices, price)]
    )


def describe_ranking(ranking: Ranking, price: float | None) -> str:
    """The best candidates, one per line, then the best one in full."""
    lines = [
        f'{ranking.tried} candidates, {ranking.too_large} do not fit. Compiled ones first, the rest are estimates:'
    ]
    for place, (changes, plan) in enumerate(ranking.plans[:NUM_SHOWN], start=1):
        lines.append(
            f'{place:3}. {plan.time.total * 1e3:8.1f} ms  {console.size(plan.required_bytes["total"]):>11}  '
            f'{"compiled" if plan.is_compiled else "estimate"}  {overrides(changes)}'
        )
    return '\n'.join([*lines, '', describe_plan(ranking.plans[0][1], price)])


def describe_scaling(plan: Plan, scales: list[Scale]) -> str:
    """A table of predicted scaling efficiencies."""
    rows = rows_of_a_device(plan.config, plan.target)
    source = 'compiled' if plan.is_compiled else 'an estimate'
    lines = [
        f'Predicted, not measured: {rows} rows of {plan.config.data.sequence_length} on each device, data parallel; '
        f'collectives {source} ({plan.target.name}), computation {(plan.time.matrix + plan.time.memory) * 1e3:,.1f} ms',
        f'{"target":18} {"devices":>8} {"efficiency":>11} {"exchange":>12} {"rows each for 90%":>18} {"in all":>10}',
    ]
    for scale in scales:
        needed = '-' if scale.rows_needed is None else f'{scale.rows_needed:,}'
        whole = '-' if scale.global_batch_needed is None else f'{scale.global_batch_needed:,}'
        lines.append(
            f'{scale.target:18} {scale.num_devices:8,} {scale.efficiency:11.1%} '
            f'{scale.exchange_seconds * 1e3:9,.1f} ms '
            f'{needed:>18} {whole:>10}'
        )
    if scales and scales[-1].num_devices < SIZES[-1]:
        lines.append(f'{plan.target.device.name} does not come in larger slices than {scales[-1].num_devices} chips')
    return '\n'.join(lines)
