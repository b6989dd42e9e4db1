"""The plan of a whole run, which has a step for each of its phases, on the same devices."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from bert_jax.config import Config, num_full_steps
from bert_jax.plan import planning
from bert_jax.plan.planning import Plan
from bert_jax.runtime.mesh import mesh_sizes
from bert_jax.train.phase_table import PhaseCost, total


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """The plans of the phases in order; a run without phases has one.

    Attributes:
      epochs: of each phase; None where the corpus is unknown.
    """

    config: Config
    plans: tuple[Plan, ...]
    epochs: tuple[float | None, ...]

    @property
    def costs(self) -> list[PhaseCost]:
        """What each phase costs."""
        return [
            PhaseCost(epochs, plan.estimate.flops_per_step * num_full_steps(plan.config.train), plan.run_seconds)
            for epochs, plan in zip(self.epochs, self.plans, strict=True)
        ]

    @property
    def run_seconds(self) -> float:
        """Seconds of the steps of all phases, without evaluation, saving and waiting for input."""
        return sum(plan.run_seconds for plan in self.plans)

    @property
    def peak_memory_plan(self) -> Plan:
        """The phase that needs the most memory."""
        return max(self.plans, key=lambda plan: plan.required_bytes['total'])

    def to_json(self, price: float | None = None) -> dict[str, Any]:
        """Returns the object that `--json` prints.

        Memory is that of the phase that needs most, time that of the run; speed and FLOPs are means per step.
        """
        num_steps = [plan.config.train.steps for plan in self.plans]
        tokens = [round(plan.estimate.tokens * num_full_steps(plan.config.train)) for plan in self.plans]
        lengths: list[dict[str, Any]] = [
            {'steps': steps, 'tokens': number, 'epochs': epochs}
            for steps, number, epochs in zip(num_steps, tokens, self.epochs, strict=True)
        ]
        if len(self.plans) == 1:
            return self.plans[0].to_json(price) | lengths[0]
        flops = sum(plan.estimate.flops_per_step * num_full_steps(plan.config.train) for plan in self.plans)
        target = self.plans[0].target
        phases = [plan.to_json(price) | length for plan, length in zip(self.plans, lengths, strict=True)]
        return self.peak_memory_plan.to_json(price) | {
            'fits': all(plan.fits for plan in self.plans),
            'compiled': all(plan.is_compiled for plan in self.plans),
            'steps': sum(num_steps),
            'tokens': sum(tokens),
            'epochs': total(self.costs).epochs,
            'flops_per_step': flops / sum(num_steps),
            'step_seconds': self.run_seconds / sum(num_steps),
            'tokens_per_second': sum(tokens) / self.run_seconds,
            'mfu': flops / self.run_seconds / (target.device.peak_flops * target.num_devices),
            'run_seconds': self.run_seconds,
            'cost': None if price is None else self.run_seconds / 3600 * target.num_devices * price,
            'input_tokens_per_second_per_host': max(phase['input_tokens_per_second_per_host'] for phase in phases),
            'phases': phases,
        }


def make_run_plan(config: Config, target_name: str, epochs: Sequence[float] = ()) -> RunPlan:
    """Plans every phase of a run on a target, with as few microbatches as fit if `train.microbatches` is -1.

    Args:
      epochs: of each phase; () where the corpus is unknown.

    Raises:
      BadInput: as `planning.find_target` and `planning.make_plan`.
    """
    targets = [planning.find_target(target_name, phase) for phase in config.in_phases]
    config = planning.with_dtype_of(config, targets[0])
    for index, (phase, target) in enumerate(zip(config.in_phases, targets, strict=True)):
        where = f'config.phases[{index}]' if config.phases else 'config.train'
        mesh_sizes(phase.mesh, phase.model, phase.train, target.num_devices, where)  # names the phase in its error
    phases = map(planning.choose_microbatches, config.in_phases, targets)
    plans = tuple(map(planning.make_plan, phases, targets))
    return RunPlan(config, plans, tuple(epochs) or (None,) * len(plans))
