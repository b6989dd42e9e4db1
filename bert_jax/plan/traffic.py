"""Reports what the memory traffic of a compiled step is for, compared with the least that hand-written kernels need.

The unit u is tokens x hidden_size x 2 bytes per layer: what it takes to read or write one bfloat16 activation [B, L, D]
in every layer. It makes programs of different sizes comparable. Traffic outside of the layers is divided by their
number too.

`D` hidden, `F` intermediate, `V` vocabulary (padded), `T` tokens of a device.
"""

import collections
import dataclasses
import math
from typing import Any

from bert_jax.config import Config
from bert_jax.model.family import matmuls
from bert_jax.model.vocabulary import padded_vocab_size
from bert_jax.plan import hlo_categories as categories
from bert_jax.plan.hlo_categories import BACKWARD, CATEGORIES, FORWARD
from bert_jax.plan.planning import Plan

_NUM_LARGEST = 12
_COLLECTIVES = 'collectives, read and written'


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The memory traffic of one device in a step.

    Attributes:
      unit_bytes: of a u, for all layers.
      used: u of each category; empty if nothing was compiled.
      collectives: u; None if nothing was compiled. Not part of the total.
      floor: u of each category that is needed; empty where it is unknown.
      largest: of operations from one place in the source: (u, calls, category, source), the largest first.
    """

    unit_bytes: float
    used: dict[str, float]
    collectives: float | None
    floor: dict[str, float]
    largest: list[tuple[float, int, str, str]]

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `--json` prints."""
        return {
            'unit_bytes': self.unit_bytes,
            'total': sum(self.used.values()) if self.used else None,
            'floor': sum(self.floor.values()) if self.floor else None,
            'collectives': self.collectives,
            'categories': [
                {'category': name, 'used': self.used.get(name), 'floor': self.floor.get(name)} for name in CATEGORIES
            ],
            'largest': [
                {'used': used, 'calls': calls, 'category': category, 'source': source}
                for used, calls, category, source in self.largest
            ],
        }


def traffic_of(plan: Plan) -> Traffic:
    """Returns the traffic of a plan: by category if it was compiled, and the floor."""
    config, mesh = plan.config, plan.mesh
    tokens = config.train.global_batch_size * config.data.sequence_length // (mesh['data'] * mesh['fsdp'])
    unit = 2.0 * tokens * config.model.hidden_size * config.model.num_layers
    counted = plan.estimate
    floor = _floor(config, tokens, counted.parameter_bytes, counted.optimizer_bytes) if mesh['tensor'] == 1 else {}
    floor = {name: size / unit for name, size in floor.items()}
    if not plan.is_compiled:
        return Traffic(unit, {}, None, floor, [])
    used, places = collections.defaultdict[str, float](float), collections.defaultdict[tuple[str, str], float](float)
    calls = collections.Counter[tuple[str, str]]()
    for operation in plan.work.operations:
        moved, place = operation.bytes * operation.count / unit, (operation.category, operation.source)
        used[operation.category] += moved
        places[place] += moved
        calls[place] += operation.count
    by_size = sorted(places.items(), key=lambda item: -item[1])
    largest = [(moved, calls[place], *place) for place, moved in by_size[:_NUM_LARGEST]]
    exchanged = sum(2 * collective.bytes * collective.count for collective in plan.work.collectives) / unit
    return Traffic(unit, dict(used), exchanged, floor, largest)


def _floor(config: Config, tokens: int, parameter_bytes: int, optimizer_bytes: int) -> dict[str, float]:
    """Returns the bytes by category that a step moves if every operation that a kernel can fuse is fused.

    Counted by hand for bfloat16 activations without recomputation, every array read once and written once. Attention
    reads q, k, v and writes its output; backward it reads those, the output and its gradient, and writes three
    gradients. A norm with dropout and the residual sum reads two arrays and writes two; backward it reads three and
    writes two. Adam reads and writes 28 bytes per parameter.
    """
    model, array = config.model, 2.0 * tokens * config.model.hidden_size * config.model.num_layers
    inner, shared = model.intermediate_size / model.hidden_size, model.num_kv_heads / model.num_heads
    gates = 2 if _is_gated(config) else 1
    columns = (1 + 1 + 2 * shared) + 2 + (1 + gates * inner) + (inner + 1)  # read and written: q k v, output, up, down
    weights = model.hidden_size**2 * (2 + 2 * shared + (gates + 1) * inner) * model.num_layers
    predictions = tokens // config.data.sequence_length * config.objective.num_predictions(config.data)
    vocabulary = padded_vocab_size(model.num_embeddings(config.tokenizer.vocab_size))
    head = predictions * (model.hidden_size + vocabulary) + vocabulary * model.hidden_size  # elements of one matmul
    return {
        f'{categories.MATMULS} {FORWARD}': columns * array + 2 * weights,
        f'{categories.MATMULS} {BACKWARD}': 2 * columns * array + (2 + 4) * weights,
        categories.ATTENTION_KERNELS: 12 * array,
        f'{categories.NORM} {FORWARD}': 2 * 4 * array,
        f'{categories.NORM} {BACKWARD}': 2 * 5 * array,
        f'{categories.ACTIVATION} {FORWARD}': (gates + 1) * inner * array,
        f'{categories.ACTIVATION} {BACKWARD}': (2 * gates + 1) * inner * array,
        categories.MOVES: (4 + 2) * weights,  # to bfloat16
        categories.HEAD_MATMULS: 3 * 2 * head,
        categories.HEAD: 3 * 2 * predictions * vocabulary,
        categories.EMBEDDINGS: (4 + 2 + 2 + 4 + 4) * tokens * model.hidden_size + 4 * vocabulary * model.hidden_size,
        categories.OPTIMIZER: 3 * parameter_bytes + 2 * optimizer_bytes,
        categories.CLIP: parameter_bytes,
    }


def _is_gated(config: Config) -> bool:
    one = {'rows': 1, 'length': 1, 'visible_length': 1, 'predictions': 1, 'sequences': 1}
    return any(matmul.name.startswith('gate') for matmul in matmuls(config.model, 1, **one))


def describe_traffic(traffic: Traffic) -> str:
    """Describes the traffic as a table, followed by the largest places."""
    lines = [
        'Memory traffic per token and layer; '
        f'1 u = tokens x hidden_size x 2 bytes, {traffic.unit_bytes / 1e6:,.1f} MB for all layers',
        f'  {"category":34} {"u":>7} {"floor":>7}',
    ]
    for name in CATEGORIES:
        used, floor = traffic.used.get(name, 0.0), traffic.floor.get(name, 0.0)
        if used or floor:
            lines.append(f'  {name:34} {_number(used, traffic.used)} {_number(floor, traffic.floor)}')
    total, least = math.fsum(traffic.used.values()), math.fsum(traffic.floor.values())
    lines.append(f'  {"total":34} {_number(total, traffic.used)} {_number(least, traffic.floor)}')
    if traffic.collectives is not None:
        lines.append(f'  {_COLLECTIVES:34} {traffic.collectives:7.1f} {"-":>7}')
    if traffic.largest:
        lines.append('  largest places in the source:')
    lines += [
        f'  {used:8.1f} u {calls:6,} calls  {category}; {source or "unknown"}'
        for used, calls, category, source in traffic.largest
    ]
    return '\n'.join(lines)


def _number(value: float, known: dict[str, float]) -> str:
    return f'{value:7.1f}' if known else f'{"-":>7}'
