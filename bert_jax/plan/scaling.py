"""Predicts how efficiently a step scales to more devices, split over `data` alone.

Every device keeps its rows, so its computation stays the same and only the exchange grows. The collectives are those of
the compiled step; `roofline.py` says how long they take on more devices. `r` is the rows of one device.
"""

import dataclasses
from collections.abc import Callable

from bert_jax.config import Config
from bert_jax.errors import BadInput
from bert_jax.plan.analytic import UPDATE_BYTES
from bert_jax.plan.hlo import Work
from bert_jax.plan.hlo_collectives import Collective
from bert_jax.plan.planning import Plan
from bert_jax.plan.roofline import collective_seconds
from bert_jax.plan.targets import Target, target_of_size

DEVICE_COUNTS = (8, 64, 512, 4096)
_GOOD_EFFICIENCY = 0.9
_BACKWARD_SHARE = 2 / 3  # of the computation; the program can exchange gradients during the backward pass
_MAX_ROWS = 2**20


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The prediction for a number of devices.

    Attributes:
      target: name of the target.
      efficiency: at the config's rows per device, relative to one device without exchange.
      exchange_seconds: of all collectives of a step.
      rows_needed: the fewest rows per device that keep an efficiency of 90%; None if no number of rows does.
      global_batch_needed: those rows on all devices.
    """

    target: str
    num_devices: int
    efficiency: float
    exchange_seconds: float
    rows_needed: int | None
    global_batch_needed: int | None


def predict_scaling(plan: Plan, seconds_alone: float | None = None) -> list[Scaling]:
    """Returns predictions for 8, 64, 512 and 4096 devices of the plan's kind, as far as it comes in these numbers.

    Args:
      plan: for some devices split over `data`, compiled or counted.
      seconds_alone: measured seconds of one device's computation at the plan's rows, instead of the plan's prediction.

    Raises:
      BadInput: for a mesh with other axes, or a plan for `here`.
    """
    if plan.target.name == 'here' or plan.mesh['fsdp'] * plan.mesh['tensor'] > 1:
        raise BadInput(
            '--scaling', 'is for a named target, split over data alone', '--target=h100:1x8 and mesh.data=-1'
        )
    rows = rows_per_device(plan.config, plan.target)
    alone = plan.time.computation if seconds_alone is None else seconds_alone
    device = plan.target.device
    update = UPDATE_BYTES * plan.estimate.parameter_bytes / (device.memory_bandwidth * device.memory_efficiency)
    update = min(update, alone)

    def computation(r: float) -> float:
        return update + (alone - update) * r / rows

    predictions = []
    for num_devices in DEVICE_COUNTS:
        target = target_of_size(device, num_devices)
        if target is not None:
            exposed, overlapped = _exchange_seconds(plan.work, target)
            rows_needed = _fewest_rows(
                lambda r, e=exposed, o=overlapped: _efficiency(computation(r), e, o) >= _GOOD_EFFICIENCY
            )
            efficiency = _efficiency(alone, exposed, overlapped)
            batch_needed = rows_needed and rows_needed * num_devices
            exchange = exposed + overlapped
            predictions.append(Scaling(target.name, num_devices, efficiency, exchange, rows_needed, batch_needed))
    return predictions


def rows_per_device(config: Config, target: Target) -> int:
    """Returns r, the rows of one device in a step."""
    return config.train.global_batch_size // target.num_devices


def _exchange_seconds(work: Work, target: Target) -> tuple[float, float]:
    """Returns the seconds of (exposed, overlapped) collectives if each spans all devices of a target."""
    everyone = (tuple(range(target.num_devices)),)
    exposed = overlapped = 0.0
    for collective in work.collectives:
        if len(collective.groups[0] if collective.groups else ()) == 1:
            continue
        global_collective: Collective = dataclasses.replace(collective, groups=everyone)
        seconds = collective.count * collective_seconds(global_collective, target)
        if collective.overlapped:
            overlapped += seconds
        else:
            exposed += seconds
    return exposed, overlapped


def _efficiency(computation: float, exposed: float, overlapped: float) -> float:
    return computation / (computation + exposed + max(0.0, overlapped - _BACKWARD_SHARE * computation))


def _fewest_rows(is_enough: Callable[[int], bool]) -> int | None:
    """Returns the smallest r that is enough, if more rows are enough too; None above the maximum."""
    high = 1
    while not is_enough(high):
        high *= 2
        if high > _MAX_ROWS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def to_json(predictions: list[Scaling]) -> dict[str, object]:
    """Returns the object that `--json` prints."""
    return {'scaling': [dataclasses.asdict(prediction) for prediction in predictions]}
