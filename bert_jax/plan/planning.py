"""Plans one step on a target: whether it fits, how long it takes, what it costs, and what would make it fit."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax

from bert_jax.config import Config, num_full_steps
from bert_jax.errors import BadInput
from bert_jax.plan import program as programs
from bert_jax.plan.analytic import Estimate, estimate
from bert_jax.plan.calibrate import measure_local_target
from bert_jax.plan.hlo import Work
from bert_jax.plan.hlo_collectives import Collective
from bert_jax.plan.measure import Measurement, measure
from bert_jax.plan.program import FULL, Program
from bert_jax.plan.roofline import StepTime, step_time
from bert_jax.plan.targets import Target, next_larger, parse_target
from bert_jax.runtime.dtype import resolve_dtype
from bert_jax.runtime.mesh import AXES, mesh_sizes
from bert_jax.train.attention import describe_attention


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config on a target.

    Attributes:
      mesh: axis sizes.
      program: the compiled program; None if nothing was compiled.
      not_compiled_reason: why; '' for a compiled program.
      measured: a few real steps, for the target `here` only.
    """

    config: Config
    target: Target
    mesh: dict[str, int]
    estimate: Estimate
    program: Program | None
    not_compiled_reason: str
    time: StepTime
    measured: Measurement | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether time and collectives are those of a compiled program."""
        return self.program is not None and not self.program.rejection

    @property
    def work(self) -> Work:
        """What one device does in a step: read from the compiled program if there is one, else estimated."""
        if self.program is not None and self.is_compiled:
            return self.program.work
        return self.estimate.work

    @property
    def required_bytes(self) -> dict[str, float]:
        """Bytes of one device by purpose. State and batch are exact, the others the compiler's or estimates."""
        known = {
            'parameters': self.estimate.parameter_bytes,
            'optimizer': self.estimate.optimizer_bytes,
            'batch': self.estimate.batch_bytes,
        }
        total, activations = self.estimate.total_bytes, self.estimate.activation_bytes
        if self.program is not None:
            total = self.program.total_bytes
            activations = self.program.activations or min(activations, total - sum(known.values()))
        temporaries = max(total - sum(known.values()) - activations, 0)
        return {'total': total} | known | {'activations': activations, 'temporaries': temporaries}

    @property
    def fits(self) -> bool:
        """Whether the step fits the memory that a program may allocate on a device."""
        is_rejected = self.program is not None and bool(self.program.rejection)
        return not is_rejected and self.required_bytes['total'] <= self.target.device.usable_bytes

    @property
    def attention(self) -> str:
        """Which attention runs, and why."""
        return describe_attention(self.config, self.target.device.kind, self.mesh['tensor'])

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all devices together."""
        return self.estimate.tokens / self.time.total

    @property
    def mfu(self) -> float:
        """Model FLOPs relative to the dense bfloat16 peak."""
        peak = self.target.device.peak_flops * self.target.num_devices
        return self.estimate.flops_per_step / self.time.total / peak

    @property
    def run_seconds(self) -> float:
        """Seconds of all steps, without evaluation, saving and waiting for input."""
        return self.time.total * num_full_steps(self.config.train)

    def collectives(self) -> list[dict[str, Any]]:
        """Returns the bytes and calls of one device in a step, by kind, axis and overlap; most bytes first."""
        totals: dict[tuple, list[int]] = {}
        for collective in self.work.collectives:
            axis = axis_of(collective, self.mesh)
            if axis:
                total = totals.setdefault((collective.kind, axis, collective.overlapped), [0, 0])
                total[0] += collective.bytes * collective.count
                total[1] += collective.count
        return [
            {'kind': kind, 'axis': axis, 'bytes': size, 'count': count, 'overlapped': overlapped}
            for (kind, axis, overlapped), (size, count) in sorted(totals.items(), key=lambda item: -item[1][0])
        ]

    def to_json(self, price: float | None = None) -> dict[str, Any]:
        """Returns the object that `--json` prints.

        Args:
          price: dollars per device-hour.
        """
        hours = self.run_seconds / 3600 * self.target.num_devices
        return {
            'fits': self.fits,
            'target': self.target.name,
            'num_devices': self.target.num_devices,
            'compiled': self.is_compiled,
            'parameters': self.estimate.parameters,
            'dtype': self.config.model.dtype,
            'attention': self.attention,
            'device_memory_bytes': round(self.target.device.memory_bytes),
            'usable_memory_bytes': round(self.target.device.usable_bytes),
            'required_bytes': {name: _rounded(size) for name, size in self.required_bytes.items()},
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


def _rounded(size: float) -> int | None:
    """Returns an integer for JSON; None for infinity."""
    return round(size) if math.isfinite(size) else None


def axis_of(collective: Collective, mesh: dict[str, int]) -> str:
    """Returns the axes along which the members of a group differ, joined by `+`; '' for a group of one device."""
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
    """Returns the target with a name; for `here` it measures the local devices.

    Raises:
      BadInput: as `targets.parse_target`, and for a config whose step is not a single program.
    """
    if config.train.reduction == 'exact':
        raise BadInput('config.train.reduction', "is 'exact', which runs several programs per step", "'fast'")
    if name != 'here':
        return parse_target(name)
    if config.train.microbatches == -1:  # not known before the target
        config = apply_changes(config, {'train.microbatches': 1})
    return measure_local_target(resolve_dtype(config))


def with_dtype_of(config: Config, target: Target) -> Config:
    """Replaces a `model.dtype` of 'auto' by what a run on the target chooses."""
    if target.name == 'here':
        return resolve_dtype(config)
    return dataclasses.replace(config, model=config.model.with_dtype('bfloat16'))  # which all targets multiply fast


def choose_microbatches(config: Config, target: Target) -> Config:
    """Replaces `train.microbatches=-1` by the fewest microbatches with which the step fits by the analytic count.

    If no number of microbatches fits, each has one row per device.

    Args:
      config: of a run without phases, or of a phase.
    """
    if config.train.microbatches != -1:
        return config
    mesh = mesh_sizes(config.mesh, config.model, config.train, target.num_devices)
    rows = config.train.global_batch_size // (mesh['data'] * mesh['fsdp'])
    candidates = (apply_changes(config, {'train.microbatches': n}) for n in range(1, rows + 1) if rows % n == 0)
    fallback = apply_changes(config, {'train.microbatches': rows})
    return next((each for each in candidates if analytic_plan(each, target).fits), fallback)


def make_plan(config: Config, target: Target, effort: str = FULL, limit_s: float | None = None) -> Plan:
    """Plans a config without changing it; compiles the step if the compiler is installed.

    Args:
      effort: as of `program.compile_for`.
      limit_s: seconds for the compiler; after that the plan remains an estimate.

    Raises:
      BadInput: if the mesh does not cover the target, or does not divide the heads or the batch.
    """
    plan = analytic_plan(config, target)
    if install := programs.missing_compiler(target):
        return dataclasses.replace(plan, not_compiled_reason=f'the compiler is not installed; {install}')
    if target.name == 'here':
        program, compiled = programs.compile_step(config, jax.devices())
        plan = dataclasses.replace(plan, measured=measure(config, compiled) if compiled else None)
    else:
        try:
            program = programs.compile_for(config, target, effort, limit_s)
        except programs.CompileTimeout as error:
            return dataclasses.replace(plan, not_compiled_reason=str(error))
    time = plan.time if program.rejection else step_time(program.work, target, config.model.dtype)
    return dataclasses.replace(plan, program=program, not_compiled_reason='', time=time)


def analytic_plan(config: Config, target: Target) -> Plan:
    """Plans a config by counting alone, without a compiler."""
    mesh = mesh_sizes(config.mesh, config.model, config.train, target.num_devices)
    counted = estimate(config, mesh, target.device.kind)
    time = step_time(counted.work, target, config.model.dtype)
    return Plan(config, target, mesh, counted, None, 'only counted', time)


# --- Changes that would make a run fit. ---


def apply_changes(config: Config, changes: dict[str, Any]) -> Config:
    """Returns a config with fields replaced, given by their dotted names."""
    for name, value in changes.items():
        section, field = name.split('.')
        config = dataclasses.replace(
            config, **{section: dataclasses.replace(getattr(config, section), **{field: value})}
        )
    return config


def as_flags(changes: dict[str, Any]) -> str:
    """Returns changes as flags of a command."""
    return ' '.join(f'--config.{name}={value}' for name, value in changes.items())


def smallest_changes(plan: Plan) -> Iterator[str]:
    """Yields flags that would each make the run fit by the analytic count, every change as small as possible."""
    config, target = plan.config, plan.target
    # If the compiler needed more than the estimate, it would need more after a change too.
    total = plan.required_bytes['total']
    factor = max(total / plan.estimate.total_bytes, 1.0) if math.isfinite(total) else 1.1

    def fits(config: Config, target: Target = target) -> bool:
        try:
            return analytic_plan(config, target).required_bytes['total'] * factor <= target.device.usable_bytes
        except BadInput:
            return False

    def first_that_fits(candidates: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        return next((changes for changes in candidates if fits(apply_changes(config, changes))), None)

    rows = config.train.global_batch_size // (plan.mesh['data'] * plan.mesh['fsdp'])
    more_microbatches = [n for n in range(config.train.microbatches + 1, rows + 1) if rows % n == 0]
    single: list[Iterator[dict[str, Any]]] = [
        ({'train.microbatches': n} for n in more_microbatches),
        ({'model.remat': remat} for remat in ('dots', 'full') if config.model.remat != 'full'),
        ({'mesh.data': -1, 'mesh.fsdp': n} for n in _powers_of_two(plan.mesh['fsdp'], target.num_devices)),
    ]
    if config.model.dtype == 'float32':
        single.insert(0, iter([{'model.dtype': 'bfloat16'}]))
    combined = ({'model.remat': 'full', 'train.microbatches': n} for n in more_microbatches)
    found = [changes for candidates in single if (changes := first_that_fits(candidates))]
    found = found or [changes for changes in [first_that_fits(combined)] if changes]
    yield from map(as_flags, found)
    name = None if target.name == 'here' else next_larger(target)
    while name and not fits(apply_changes(config, {'mesh.data': -1}), parse_target(name)):
        name = next_larger(parse_target(name))
    if name:
        yield f'--target={name}'
    if not found and not name:
        yield 'none of microbatches, remat, fsdp or a larger target of this chip: a smaller model or sequence_length'


def _powers_of_two(above: int, most: int) -> list[int]:
    """Returns the powers of two above one number that divide another."""
    return [2**n for n in range(1, most.bit_length()) if above < 2**n <= most and most % 2**n == 0]
