"""Which mesh, microbatches and remat policy are best on a target: counted for all, compiled for the most promising."""

import dataclasses
import time
from collections.abc import Iterator

from bert_jax import console
from bert_jax.config import Config
from bert_jax.errors import BadInput
from bert_jax.plan import program as programs
from bert_jax.plan.planning import Plan, analytic_plan, changed, make_plan, overrides
from bert_jax.plan.program import QUICK
from bert_jax.plan.targets import Target

BUDGET_S = 540.0  # for all compiles together
_COMPILED, NUM_SHOWN = 6, 10
_MOST_TENSOR = 8  # beyond the devices that lie closest, splitting each product costs more than it saves


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Best first; each with the changes to the config that make it. tried: how many were counted."""

    plans: tuple[tuple[dict[str, object], Plan], ...]
    tried: int
    too_large: int


def candidates(config: Config, target: Target) -> Iterator[dict[str, object]]:
    """Every mesh of the target, with every split into microbatches and every remat policy, that divides."""
    num_devices = target.num_devices
    sizes = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    for tensor in (n for n in sizes if n <= _MOST_TENSOR and config.model.num_heads % n == 0):
        for fsdp in (n for n in sizes if num_devices // tensor % n == 0):
            data = num_devices // tensor // fsdp
            rows, rest = divmod(config.train.global_batch_size, data * fsdp)
            for microbatches in (2**n for n in range(rows.bit_length()) if not rest and rows % 2**n == 0):
                for remat in ('none', 'dots', 'full'):
                    yield {
                        'mesh.data': data,
                        'mesh.fsdp': fsdp,
                        'mesh.tensor': tensor,
                        'train.microbatches': microbatches,
                        'model.remat': remat,
                    }


def search(config: Config, target: Target, budget_s: float = BUDGET_S) -> Ranking:
    """Args: budget_s, for compiling; what is not compiled by then stays an estimate, and says so.

    Raises:
      BadInput: when no candidate divides or fits.
    """
    counted = [(changes, analytic_plan(changed(config, changes), target)) for changes in candidates(config, target)]
    if not counted:
        raise BadInput(
            'config.train.global_batch_size',
            f'is {config.train.global_batch_size}: no mesh of {target.num_devices} devices divides it',
            f'a multiple of {target.num_devices}',
        )
    fitting = [(changes, plan) for changes, plan in counted if plan.fits]
    if not fitting:
        least = min((plan for _, plan in counted), key=lambda plan: plan.required_bytes['total'])
        raise BadInput(
            '--target',
            f'none of {len(counted)} candidates fits; the smallest takes {console.size(least.required_bytes["total"])} '
            f'of {console.size(target.device.usable_bytes)} by the estimate',
            'a larger target, a smaller model or batch',
        )
    fitting.sort(key=lambda found: (found[1].time.total, found[1].config.train.microbatches))
    best_of_mesh = {tuple(plan.mesh.values()): (changes, plan) for changes, plan in reversed(fitting)}
    promising = sorted(
        best_of_mesh.values(), key=lambda found: (found[1].mesh['data'] < target.num_devices, found[1].time.total)
    )
    promising = promising[:_COMPILED]  # the plain mesh, data alone, among them wherever it fits
    compiled, refused = _compile(config, target, promising, budget_s)
    done = [plan.config for _, plan in compiled] + refused
    rest = [found for found in fitting if found[1].config not in done]
    ranked = sorted(compiled, key=lambda found: found[1].time.total) + rest
    return Ranking(tuple(ranked), len(counted), len(counted) - len(fitting) + len(refused))


def _compile(config: Config, target: Target, promising: list, budget_s: float) -> tuple[list, list[Config]]:
    """(those compiled that fit, those that turned out too large)."""
    compiled, refused = [], []
    if missing := programs.missing(target):
        console.say(f'Estimates only: the compiler is not installed ({missing})')
        return compiled, refused
    end = time.monotonic() + budget_s
    for number, (changes, _) in enumerate(promising, start=1):
        left = end - time.monotonic()
        if left < 1:
            console.say(f'{budget_s:.0f} s are spent: {len(promising) - number + 1} not compiled')
            break
        plan = make_plan(changed(config, changes), target, QUICK, left)
        if plan.program is None:
            verdict = plan.why_not
        else:
            (compiled if plan.fits else refused).append((changes, plan) if plan.fits else plan.config)
            verdict = f'{plan.time.total * 1e3:.1f} ms' if plan.fits else 'does not fit'
        console.say(f'{number} of {len(promising)}: {overrides(changes)}: {verdict}')
    return compiled, refused


def to_json(ranking: Ranking, price: float | None) -> dict[str, object]:
    """The best plan's keys, and the whole ranking under `ranking`."""
    listed = [{'overrides': overrides(changes)} | plan.to_json(price) for changes, plan in ranking.plans[:NUM_SHOWN]]
    return listed[0] | {'ranking': listed, 'tried': ranking.tried, 'too_large': ranking.too_large}
