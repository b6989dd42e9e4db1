"""Scaling on paper: how much of one device's speed is left on each of many, split over `data` alone.

Every device keeps its rows, so its computation stays the same and only what they exchange grows. The collectives are
those of the compiled step; how long they take on more devices is what `roofline.py` says. `r` rows of one device.
"""

import dataclasses
from collections.abc import Callable

from bert_jax.config import Config
from bert_jax.errors import BadInput
from bert_jax.plan.hlo import Work
from bert_jax.plan.hlo_collectives import Collective
from bert_jax.plan.planning import Plan
from bert_jax.plan.roofline import collective_seconds
from bert_jax.plan.targets import Target, of_size

SIZES = (8, 64, 512, 4096)
_GOOD = 0.9
_BACKWARD = 2 / 3  # of the computation: gradients are exchanged beside it, where the program lets them
_UPDATE_BYTES = 9.0  # gradient, parameter, two moments: read and written, for each byte of parameters
_MOST_ROWS = 2**20


@dataclasses.dataclass(frozen=True)
class Scale:
    """A number of devices. efficiency: at the config's rows a device, against one device by itself.

    exchange_seconds: of all collectives of a step.  rows_needed: the fewest rows a device that keep 90%; None if none
    do.  global_batch_needed: those rows on all devices.
    """

    target: str
    num_devices: int
    efficiency: float
    exchange_seconds: float
    rows_needed: int | None
    global_batch_needed: int | None


def scaling(plan: Plan, seconds_alone: float | None = None) -> list[Scale]:
    """Predictions for 8, 64, 512 and 4096 devices of a plan's kind, as far as there are such.

    Args:
      plan: compiled for some devices split over `data`, or counted.
      seconds_alone: measured seconds of the computation of one device at the plan's rows; the plan's own without it.

    Raises:
      BadInput: for a mesh with other axes, or a plan for `here`.
    """
    if plan.target.name == 'here' or plan.mesh['fsdp'] * plan.mesh['tensor'] > 1:
        raise BadInput(
            '--scaling', 'is for a named target, split over data alone', '--target=h100:1x8 and mesh.data=-1'
        )
    work = plan.work
    rows = rows_of_a_device(plan.config, plan.target)
    alone = plan.time.matrix + plan.time.memory if seconds_alone is None else seconds_alone
    device = plan.target.device
    update = _UPDATE_BYTES * plan.estimate.parameter_bytes / (device.memory_bandwidth * device.memory_efficiency)
    update = min(update, alone)

    def computing(r: float) -> float:
        return update + (alone - update) * r / rows

    found = []
    for num_devices in SIZES:
        target = of_size(device, num_devices)
        if target is not None:
            exposed, hidden = _exchange(work, target)
            needed = _fewest(lambda r, e=exposed, h=hidden: _efficiency(computing(r), e, h) >= _GOOD)
            efficiency = _efficiency(alone, exposed, hidden)
            whole = needed and needed * num_devices
            found.append(Scale(target.name, num_devices, efficiency, exposed + hidden, needed, whole))
    return found


def rows_of_a_device(config: Config, target: Target) -> int:
    """r, of a step."""
    return config.train.global_batch_size // target.num_devices


def _exchange(work: Work, target: Target) -> tuple[float, float]:
    """Seconds of the collectives that nothing runs beside, and of the others, over all devices of a target."""
    everyone = (tuple(range(target.num_devices)),)
    exposed = hidden = 0.0
    for collective in work.collectives:
        if len(collective.groups[0] if collective.groups else ()) == 1:
            continue
        wide: Collective = dataclasses.replace(collective, groups=everyone)
        seconds = collective.count * collective_seconds(wide, target)
        exposed, hidden = (exposed, hidden + seconds) if collective.overlapped else (exposed + seconds, hidden)
    return exposed, hidden


def _efficiency(computing: float, exposed: float, hidden: float) -> float:
    return computing / (computing + exposed + max(0.0, hidden - _BACKWARD * computing))


def _fewest(is_enough: Callable[[int], bool]) -> int | None:
    """The first r that is; from there on all are."""
    most = 1
    while not is_enough(most):
        most *= 2
        if most > _MOST_ROWS:
            return None
    low = most // 2
    while most - low > 1:
        middle = (low + most) // 2
        low, most = (low, middle) if is_enough(middle) else (middle, most)
    return most


def to_json(scales: list[Scale]) -> dict[str, object]:
    """What `--json` holds."""
    return {'scaling': [dataclasses.asdict(scale) for scale in scales]}
