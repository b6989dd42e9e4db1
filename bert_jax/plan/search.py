"""Finds the best mesh, microbatches and remat policy on a target: counts all candidates, compiles the most promising.

A candidate is a dict of changes to the config, by dotted field names.
"""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

from bert_jax import console
from bert_jax.activity import counted
from bert_jax.config import Config
from bert_jax.errors import BadInput
from bert_jax.plan import program as programs
from bert_jax.plan.planning import Plan, analytic_plan, apply_changes, as_flags, make_plan, with_dtype_of
from bert_jax.plan.program import QUICK
from bert_jax.plan.targets import Target

BUDGET_S = 540.0  # for all compilations together
_NUM_COMPILED = 6
NUM_LISTED = 10
_MAX_TENSOR = 8  # with more devices, splitting each matmul costs more than it saves

Candidate = tuple[dict[str, Any], Plan]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The result of a search.

    Attributes:
      plans: candidates that fit with their plans; compiled ones first, each group from the fastest.
      tried: how many candidates were counted.
      too_large: how many of them do not fit.
    """

    plans: tuple[Candidate, ...]
    tried: int
    too_large: int


def candidates(config: Config, target: Target) -> Iterator[dict[str, Any]]:
    """Yields every combination of mesh, microbatches and remat policy that divides the heads and the batch."""
    num_devices = target.num_devices
    sizes = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    for tensor in (n for n in sizes if n <= _MAX_TENSOR and config.model.num_kv_heads % n == 0):
        for fsdp in (n for n in sizes if num_devices // tensor % n == 0):
            data = num_devices // tensor // fsdp
            rows, remainder = divmod(config.train.global_batch_size, data * fsdp)
            for microbatches in (2**n for n in range(rows.bit_length()) if not remainder and rows % 2**n == 0):
                for remat in ('none', 'dots', 'full'):
                    yield {
                        'mesh.data': data,
                        'mesh.fsdp': fsdp,
                        'mesh.tensor': tensor,
                        'train.microbatches': microbatches,
                        'model.remat': remat,
                    }


def search(config: Config, target: Target, budget_s: float = BUDGET_S) -> Ranking:
    """Ranks the candidates that fit.

    Args:
      budget_s: seconds for compilation. Candidates that are not compiled by then remain labelled as estimates.

    Raises:
      BadInput: if no candidate divides the batch, or none fits.
    """
    config = with_dtype_of(config, target)
    counted = [
        (changes, analytic_plan(apply_changes(config, changes), target)) for changes in candidates(config, target)
    ]
    if not counted:
        raise BadInput(
            'config.train.global_batch_size',
            f'is {config.train.global_batch_size}: no mesh of {target.num_devices} devices divides it',
            f'a multiple of {target.num_devices}',
        )
    fitting = [(changes, plan) for changes, plan in counted if plan.fits]
    if not fitting:
        smallest = min((plan for _, plan in counted), key=lambda plan: plan.required_bytes['total'])
        needed = console.size(smallest.required_bytes['total'])
        raise BadInput(
            '--target',
            f'none of {len(counted)} candidates fits; the smallest needs an estimated {needed} '
            f'of {console.size(target.device.usable_bytes)}',
            'a larger target, a smaller model or batch',
        )
    fitting.sort(key=lambda candidate: (candidate[1].time.total, candidate[1].config.train.microbatches))
    compiled, too_large = _compile(config, target, _most_promising(fitting, target), budget_s)
    done = [plan.config for _, plan in compiled] + too_large
    estimated = [candidate for candidate in fitting if candidate[1].config not in done]
    ranked = sorted(compiled, key=lambda candidate: candidate[1].time.total) + estimated
    return Ranking(tuple(ranked), len(counted), len(counted) - len(fitting) + len(too_large))


def _most_promising(fitting: list[Candidate], target: Target) -> list[Candidate]:
    """Returns the fastest candidate of the fastest meshes; data alone is always among them if it fits."""
    best_of_mesh = {tuple(plan.mesh.values()): (changes, plan) for changes, plan in reversed(fitting)}

    def priority(candidate: Candidate) -> tuple[bool, float]:
        _, plan = candidate
        return plan.mesh['data'] < target.num_devices, plan.time.total

    return sorted(best_of_mesh.values(), key=priority)[:_NUM_COMPILED]


def _compile(
    config: Config, target: Target, promising: list[Candidate], budget_s: float
) -> tuple[list[Candidate], list[Config]]:
    """Returns (compiled candidates that fit, configs of those that do not fit after all)."""
    compiled, too_large = [], []
    if install := programs.missing_compiler(target):
        console.say(f'Estimates only: the compiler is not installed ({install})')
        return compiled, too_large
    end = time.monotonic() + budget_s
    for index, (changes, _) in enumerate(counted(promising, len(promising), 'compiling candidates', 'plans')):
        seconds_left = end - time.monotonic()
        if seconds_left < 1:
            console.say(f'The {budget_s:.0f} s for compilation are over: {len(promising) - index} not compiled')
            break
        plan = make_plan(apply_changes(config, changes), target, QUICK, seconds_left)
        if plan.program is None:
            result = plan.not_compiled_reason
        elif plan.fits:
            compiled.append((changes, plan))
            result = f'{plan.time.total * 1e3:.1f} ms'
        else:
            too_large.append(plan.config)
            result = 'does not fit'
        console.say(f'{index + 1} of {len(promising)}: {as_flags(changes)}: {result}')
    return compiled, too_large


def to_json(ranking: Ranking, price: float | None) -> dict[str, object]:
    """Returns the object that `--json` prints: the keys of the best plan, and the list of plans as `ranking`."""
    listed = [{'overrides': as_flags(changes)} | plan.to_json(price) for changes, plan in ranking.plans[:NUM_LISTED]]
    return listed[0] | {'ranking': listed, 'tried': ranking.tried, 'too_large': ranking.too_large}
