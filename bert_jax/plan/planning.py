"""A plan: does a run fit a target, how long does it take, what does it cost, what would make it fit."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax

from bert_jax.config import Config
from bert_jax.errors import BadInput
from bert_jax.plan import program as programs
from bert_jax.plan.analytic import Estimate, estimate
from bert_jax.plan.calibrate import here
from bert_jax.plan.hlo import Work
from bert_jax.plan.hlo_collectives import Collective
from bert_jax.plan.measure import Measured, measure
from bert_jax.plan.program import FULL, Program
from bert_jax.plan.roofline import StepTime, step_time
from bert_jax.plan.targets import Target, larger, parse
from bert_jax.runtime.mesh import AXES, mesh_sizes


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config on a target. program: None where nothing was compiled; `why_not` says why. measured: for `here`."""

    config: Config
    target: Target
    mesh: dict[str, int]
    estimate: Estimate
    program: Program | None
    why_not: str
    time: StepTime
    measured: Measured | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether time and collectives are the compiled program's."""
        return self.program is not None and not self.program.refused

    @property
    def work(self) -> Work:
        """Of one device in a step: the compiled program's, else the estimate's."""
        if self.program is not None and self.is_compiled:
            return self.program.work
        return self.estimate.work

    @property
    def required_bytes(self) -> dict[str, float]:
        """Of one device; the state and the batch are exact, the rest the compiler's or an estimate."""
        known = {
            'parameters': self.estimate.parameter_bytes,
            'optimizer': self.estimate.optimizer_bytes,
            'batch': self.estimate.batch_bytes,
        }
        total, activations = self.estimate.total_bytes, self.estimate.activation_bytes
        if self.program is not None:
            total = self.program.total_bytes
            activations = self.program.activations or min(activations, total - sum(known.values()))
        rest = total - sum(known.values()) - activations
        return {'total': total} | known | {'activations': activations, 'temporaries': max(rest, 0)}

    @property
    def fits(self) -> bool:
        """In what a program may take of a device's memory."""
        refused = self.program is not None and bool(self.program.refused)
        return not refused and self.required_bytes['total'] <= self.target.device.usable_bytes

    @property
    def tokens_per_second(self) -> float:
        """Of all devices together."""
        return self.estimate.tokens / self.time.total

    @property
    def mfu(self) -> float:
        """Model FLOPs against the dense bfloat16 peak."""
        peak = self.target.device.peak_flops * self.target.num_devices
        return self.estimate.flops_per_step / self.time.total / peak

    @property
    def run_seconds(self) -> float:
        """Steps alone: evaluation, saving and waiting for input left out."""
        return self.time.total * self.config.train.steps

    def collectives(self) -> list[dict[str, Any]]:
        """By kind, axis and overlap: bytes and calls of one device in a step."""
        found: dict[tuple, list[int]] = {}
        for collective in self.work.collectives:
            axis = axis_of(collective, self.mesh)
            if axis:
                sums = found.setdefault((collective.kind, axis, collective.overlapped), [0, 0])
                sums[0] += collective.bytes * collective.count
                sums[1] += collective.count
        return [
            {'kind': kind, 'axis': axis, 'bytes': size, 'count': count, 'overlapped': overlapped}
            for (kind, axis, overlapped), (size, count) in sorted(found.items(), key=lambda item: -item[1][0])
        ]

    def to_json(self, price: float | None = None) -> dict[str, Any]:
        """What `--json` holds. price: dollars of a device's hour."""
        hours = self.run_seconds / 3600 * self.target.num_devices
        return {
            'fits': self.fits,
            'target': self.target.name,
            'num_devices': self.target.num_devices,
            'compiled': self.is_compiled,
            'parameters': self.estimate.parameters,
            'device_memory_bytes': round(self.target.device.memory_bytes),
            'usable_memory_bytes': round(self.target.device.usable_bytes),
            'required_bytes': {name: _finite(size) for name, size in self.required_bytes.items()},
            'flops_per_step': self.estimate.flops_per_step,
            'step_seconds': self.time.total,
            'tokens_per_second': self.tokens_per_second,
            'mfu': self.mfu,
            'run_seconds': self.run_seconds,
            'cost': None if price is None else hours * price,
            'checkpoint_bytes': self.estimate.checkpoint_bytes,
            'input_tokens_per_second_per_host': self.tokens_per_second / self.target.num_hosts,
            'mesh': self.mesh,
            'collectives': self.collectives(),
            'measured': self.measured and dataclasses.asdict(self.measured),
            'changes': [] if self.fits else list(smallest_changes(self)),
        }


def _finite(size: float) -> int | None:
    return round(size) if math.isfinite(size) else None


def axis_of(collective: Collective, mesh: dict[str, int]) -> str:
    """The axes that the members of a group differ along, joined by `+`; '' for a group of one device."""
    if not collective.groups:
        return 'unknown'
    strides = {'tensor': 1, 'fsdp': mesh['tensor'], 'data': mesh['tensor'] * mesh['fsdp']}
    first = collective.groups[0][0]
    differ = {
        axis
        for member in collective.groups[0]
        for axis in AXES
        if (member // strides[axis]) % mesh[axis] != (first // strides[axis]) % mesh[axis]
    }
    return '+'.join(axis for axis in AXES if axis in differ)


def find_target(name: str, config: Config) -> Target:
    """A target by name; `here` is measured.

    Raises:
      BadInput: as `targets.parse`; for a config whose step is not one program of a known size.
    """
    if config.train.microbatches == -1:
        raise BadInput('config.train.microbatches', 'is -1, which asks the devices', 'a number', '--search tries all')
    if config.train.reduction == 'exact':
        raise BadInput('config.train.reduction', "is 'exact', which is several programs", "'fast'")
    if name != 'here':
        return parse(name)
    return here(config)


def make_plan(config: Config, target: Target, effort: str = FULL, limit_s: float | None = None) -> Plan:
    """The plan of a config as it stands, compiled where the compiler is installed.

    Raises:
      BadInput: when the mesh does not cover the target, or does not divide the heads or the batch.
    """
    plan = analytic_plan(config, target)
    if why_not := programs.missing(target):
        return dataclasses.replace(plan, why_not=f'the compiler is not installed; {why_not}')
    if target.name == 'here':
        program, compiled = programs.compile_step(config, jax.devices())
        plan = dataclasses.replace(plan, measured=measure(config, compiled) if compiled else None)
    else:
        try:
            program = programs.compile_for(config, target, effort, limit_s)
        except programs.TooLong as error:
            return dataclasses.replace(plan, why_not=f'the compiler was {error}')
    time = plan.time if program.refused else step_time(program.work, target, config.model.dtype)
    return dataclasses.replace(plan, program=program, why_not='', time=time)


def analytic_plan(config: Config, target: Target) -> Plan:
    """The plan by counting alone."""
    mesh = mesh_sizes(config.mesh, config.model, config.train, target.num_devices)
    counted = estimate(config, mesh, target.device.kind)
    time = step_time(counted.work, target, config.model.dtype)
    return Plan(config, target, mesh, counted, None, 'only counted', time)


# --- What would make it fit. ---


def changed(config: Config, changes: dict[str, Any]) -> Config:
    """A config with dotted fields replaced."""
    for name, value in changes.items():
        section, field = name.split('.')
        config = dataclasses.replace(
            config, **{section: dataclasses.replace(getattr(config, section), **{field: value})}
        )
    return config


def overrides(changes: dict[str, Any]) -> str:
    """As the command line takes them."""
    return ' '.join(f'--config.{name}={value}' for name, value in changes.items())


def smallest_changes(plan: Plan) -> Iterator[str]:
    """Each a change of one kind, as small as it can be, after which the run would fit by the analytic count."""
    config, target = plan.config, plan.target
    # What the compiler asked for beyond the estimate would be asked for again.
    total = plan.required_bytes['total']
    beyond = max(total / plan.estimate.total_bytes, 1.0) if math.isfinite(total) else 1.1

    def fits(config: Config, target: Target = target) -> bool:
        try:
            return analytic_plan(config, target).required_bytes['total'] * beyond <= target.device.usable_bytes
        except BadInput:
            return False

    def first(candidates: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        return next((changes for changes in candidates if fits(changed(config, changes))), None)

    rows = config.train.global_batch_size // (plan.mesh['data'] * plan.mesh['fsdp'])
    splits = [n for n in range(config.train.microbatches + 1, rows + 1) if rows % n == 0]
    kinds: list[Iterator[dict[str, Any]]] = [
        ({'train.microbatches': n} for n in splits),
        ({'model.remat': remat} for remat in ('dots', 'full') if config.model.remat != 'full'),
        ({'mesh.data': -1, 'mesh.fsdp': n} for n in _powers(plan.mesh['fsdp'], target.num_devices)),
        ({'model.remat': 'full', 'train.microbatches': n} for n in splits),
    ]
    if config.model.dtype == 'float32':
        kinds.insert(0, iter([{'model.dtype': 'bfloat16'}]))
    found = [changes for kind in kinds[:-1] if (changes := first(kind))]
    found = found or [changes for kind in kinds[-1:] if (changes := first(kind))]
    yield from map(overrides, found)
    name = None if target.name == 'here' else larger(target, 0)
    while name and not fits(changed(config, {'mesh.data': -1}), parse(name)):
        name = larger(parse(name), 0)
    if name:
        yield f'--target={name}'
    if not found and not name:
        yield 'none of microbatches, remat, fsdp or a larger target of this chip: a smaller model or sequence_length'


def _powers(above: int, most: int) -> list[int]:
    return [2**n for n in range(1, most.bit_length()) if above < 2**n <= most and most % 2**n == 0]
