"""Reads the collectives of an HLO module: which devices exchange how much, and whether computation overlaps with it."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator

import numpy as np

from bert_jax.plan.hlo_parse import Instruction, Module

COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute', 'ragged-all-to-all')


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange of data between devices.

    Attributes:
      kind: one of `COLLECTIVES`.
      groups: [G, n] indices of the devices that exchange with each other; empty if the text was not understood.
      bytes: of one device's data per call, before a scatter or after a gather.
      count: calls per step.
      beside: indices of the operations in `hlo.Work` that run between its start and its end.
    """

    kind: str
    groups: tuple[tuple[int, ...], ...]
    bytes: int
    count: int
    beside: tuple[int, ...] = ()

    @property
    def overlapped(self) -> bool:
        """Whether the device computes something else at the same time."""
        return bool(self.beside)


def fused_collectives(module: Module, instruction: Instruction, count: int) -> Iterator[Collective]:
    """Yields the collectives inside a fusion."""
    called = instruction.attribute(r'calls=%?([\w.-]+)')
    for inner in module.computations.get(called, {}).values() if called else ():
        collective = collective_of(module, inner, count)
        if collective:
            yield collective
        else:
            yield from fused_collectives(module, inner, count)


def collective_of(module: Module, instruction: Instruction, count: int) -> Collective | None:
    """Returns the collective that an instruction starts or performs, or None for other instructions.

    Args:
      count: how often the instruction runs.
    """
    kind = instruction.opcode.removesuffix('-start')
    if kind not in COLLECTIVES:
        return None
    groups = _groups(instruction.rest)
    size = sum(array.bytes for array in module.operand_arrays(instruction))
    if kind == 'all-gather':
        size *= len(groups[0]) if groups else 1
    return Collective(kind, groups, size, count)


def names_beside(module: Module, start: Instruction) -> Iterator[str]:
    """Yields the names of the instructions that run between the start of a collective and its end, in loops too."""
    if not start.opcode.endswith('-start') or '"is_sync":true' in start.rest:
        return
    computation = module.computations[module.home[start.name]].values()
    from_start = itertools.dropwhile(lambda instruction: instruction.name != start.name, computation)
    for instruction in itertools.islice(from_start, 1, None):
        if instruction.opcode.endswith('-done') and start.name in instruction.operands:
            return
        if instruction.opcode in ('while', 'call', 'conditional'):
            yield from (inner.name for inner, _ in module.executed_by(instruction, 1))
        else:
            yield instruction.name


def _groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """Returns the device groups of a collective; XLA has four notations for them. Empty for any other notation."""
    axes = re.search(r'replica_groups=mesh\[([^\]]*)\](?:, *device_ids=\((.*?)\))? *\{([^}]*)\}', attributes)
    if axes and ':' not in axes.group(3):
        sizes = {name: int(size) for name, size in re.findall(r"'([\w.-]+)'=(\d+)", axes.group(1))}
        names, grouped = list(sizes), re.findall(r"'([\w.-]+)'", axes.group(3))
        ids = _iota(axes.group(2) or f'[{math.prod(sizes.values())}]').reshape(list(sizes.values()))
        others = [names.index(name) for name in names if name not in grouped]
        ids = ids.transpose(others + [names.index(name) for name in grouped])
        return _as_tuples(ids.reshape(-1, math.prod(sizes[name] for name in grouped)))
    iota = re.search(r'replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)', attributes)
    if iota:
        return _as_tuples(_iota(iota.group(2)).reshape([int(size) for size in iota.group(1).split(',')]))
    listed = re.search(r'(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}', attributes)
    if listed:
        return tuple(tuple(int(n) for n in row.split(',')) for row in re.findall(r'\{([\d, ]+)\}', listed.group(1)))
    return ()


def _iota(text: str) -> np.ndarray:
    """Returns the array that `[8,2]T(1,0)` denotes: 0 … 15 in the shape [8, 2], transposed."""
    found = re.fullmatch(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text.replace(' ', ''))
    if found is None:
        raise ValueError(f'{text!r} is not a list of devices')
    sizes, order = found.groups()
    ids = np.arange(math.prod(map(int, sizes.split(',')))).reshape([int(size) for size in sizes.split(',')])
    return ids.transpose([int(dim) for dim in order.split(',')]) if order else ids


def _as_tuples(ids: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in ids.tolist())
