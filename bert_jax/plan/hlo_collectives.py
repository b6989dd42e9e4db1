"""The collectives of an HLO module: which devices exchange how much, and whether anything is computed meanwhile."""

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
    """groups: [G, n] device numbers that exchange; empty if not understood. bytes: of one device's data in one call,
    before a scatter or after a gather.
    """

    kind: str
    groups: tuple[tuple[int, ...], ...]
    bytes: int
    count: int
    overlapped: bool


def fused_collectives(module: Module, instruction: Instruction, count: int) -> Iterator[Collective]:
    """Those that run inside a fusion, beside its computation."""
    called = instruction.attribute(r'calls=%?([\w.-]+)')
    for line in module.computations.get(called, {}).values() if called else ():
        collective = collective_of(module, line, count)
        if collective:
            yield dataclasses.replace(collective, overlapped=True)
        else:
            yield from fused_collectives(module, line, count)


def collective_of(module: Module, instruction: Instruction, count: int) -> Collective | None:
    """The collective that an instruction is, if it is one."""
    kind = instruction.opcode.removesuffix('-start')
    if kind not in COLLECTIVES:
        return None
    groups = _groups(instruction.rest)
    size = sum(array.bytes for array in module.operand_arrays(instruction))
    if kind == 'all-gather':
        size *= len(groups[0]) if groups else 1
    asynchronous = instruction.opcode.endswith('-start') and '"is_sync":true' not in instruction.rest
    return Collective(kind, groups, size, count, asynchronous and _work_follows(module, instruction))


def _work_follows(module: Module, start: Instruction) -> bool:
    """Whether something is computed between a start and its done."""
    after = itertools.dropwhile(
        lambda line: line.name != start.name, module.computations[module.home[start.name]].values()
    )
    for line in itertools.islice(after, 1, None):
        if line.opcode.endswith('-done') and start.name in line.operands:
            return False
        if line.opcode in ('fusion', 'dot', 'convolution', 'while', 'custom-call'):
            return True
    return False


def _groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """The device groups of a collective, as XLA writes them in one of four ways; empty for another."""
    axes = re.search(r'replica_groups=mesh\[([^\]]*)\](?:, *device_ids=\((.*?)\))? *\{([^}]*)\}', attributes)
    if axes and ':' not in axes.group(3):
        sizes = {name: int(size) for name, size in re.findall(r"'([\w.-]+)'=(\d+)", axes.group(1))}
        names, chosen = list(sizes), re.findall(r"'([\w.-]+)'", axes.group(3))
        ids = _iota(axes.group(2) or f'[{math.prod(sizes.values())}]').reshape(list(sizes.values()))
        kept = [names.index(name) for name in names if name not in chosen]
        moved = ids.transpose(kept + [names.index(name) for name in chosen])
        return _rows(moved.reshape(-1, math.prod(sizes[name] for name in chosen)))
    iota = re.search(r'replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)', attributes)
    if iota:
        return _rows(_iota(iota.group(2)).reshape([int(size) for size in iota.group(1).split(',')]))
    listed = re.search(r'(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}', attributes)
    if listed:
        return tuple(tuple(int(n) for n in row.split(',')) for row in re.findall(r'\{([\d, ]+)\}', listed.group(1)))
    return ()


def _iota(text: str) -> np.ndarray:
    """`[8,2]T(1,0)`: 0 … 15 in that shape, its dims in that order."""
    found = re.fullmatch(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text.replace(' ', ''))
    if found is None:
        raise ValueError(f'{text!r} is no list of devices')
    sizes, order = found.groups()
    ids = np.arange(math.prod(map(int, sizes.split(',')))).reshape([int(size) for size in sizes.split(',')])
    return ids.transpose([int(dim) for dim in order.split(',')]) if order else ids


def _rows(ids: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in ids.tolist())
