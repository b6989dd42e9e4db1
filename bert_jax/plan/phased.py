"""The plan of a whole run: each of its phases has a step of its own, on the same devices."""

import dataclasses
from typing import Any

from bert_jax.config import Config
from bert_jax.plan import planning
from bert_jax.plan.planning import Plan


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """A plan for each phase, in order; of a run without phases, one."""

    plans: tuple[Plan, ...]

    @property
    def run_seconds(self) -> float:
        """Of all phases: steps alone."""
        return sum(plan.run_seconds for plan in self.plans)

    @property
    def largest(self) -> Plan:
        """The phase that needs the most memory: where it fits, all do."""
        return max(self.plans, key=lambda plan: plan.required_bytes['total'])

    def to_json(self, price: float | None = None) -> dict[str, Any]:
        """What `--json` holds: memory is the largest phase's, time the run's, speed and FLOPs the mean of a step."""
        if len(self.plans) == 1:
            return self.plans[0].to_json(price)
        steps = [plan.config.train.steps for plan in self.plans]
        tokens = sum(plan.estimate.tokens * count for plan, count in zip(self.plans, steps, strict=True))
        flops = sum(plan.estimate.flops_per_step * count for plan, count in zip(self.plans, steps, strict=True))
        target, parts = self.plans[0].target, [plan.to_json(price) for plan in self.plans]
        per_second = tokens / self.run_seconds
        return self.largest.to_json(price) | {
            'fits': all(plan.fits for plan in self.plans),
            'compiled': all(plan.is_compiled for plan in self.plans),
            'flops_per_step': flops / sum(steps),
            'step_seconds': self.run_seconds / sum(steps),
            'tokens_per_second': per_second,
            'mfu': flops / self.run_seconds / (target.device.peak_flops * target.num_devices),
            'run_seconds': self.run_seconds,
            'cost': None if price is None else self.run_seconds / 3600 * target.num_devices * price,
            'input_tokens_per_second_per_host': max(part['input_tokens_per_second_per_host'] for part in parts),
            'phases': parts,
        }


def make_run_plan(config: Config, target_name: str) -> RunPlan:
    """The plans of a run's phases on a target by name.

    Raises:
      BadInput: as `planning.find_target` and `planning.make_plan`.
    """
    phases = config.in_phases
    return RunPlan(tuple(planning.make_plan(phase, planning.find_target(target_name, phase)) for phase in phases))
