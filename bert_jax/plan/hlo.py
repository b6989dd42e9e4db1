"""Reads what a compiled program does in one step from its text (XLA's HLO).

The result is the matmul FLOPs, memory traffic and collectives of one device. The body of a loop counts as often as the
loop runs.
"""

import dataclasses

from bert_jax.plan.hlo_categories import Categories
from bert_jax.plan.hlo_collectives import Collective, collective_of, fused_collectives, names_beside
from bert_jax.plan.hlo_cost import Costs
from bert_jax.plan.hlo_parse import Module


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation that takes time on a device.

    Attributes:
      flops: of matmuls, per call.
      bytes: read and written in main memory, per call.
      count: calls per step.
      simple: elementwise operations such as additions, per call.
      transcendental: elementwise operations such as exponentials, per call.
      integer: elementwise operations on integers, per call: hashes of dropout and indices.
      category: what it is for, one of `hlo_categories.CATEGORIES`; '' in an estimate.
      source: the function that it comes from, `file.py:Function`; '' if unknown.
    """

    flops: float
    bytes: float
    count: int
    simple: float = 0.0
    transcendental: float = 0.0
    integer: float = 0.0
    category: str = ''
    source: str = ''


@dataclasses.dataclass(frozen=True)
class Work:
    """What one device does in a step.

    Attributes:
      unknown_loops: how many loops have a trip count that is not in the program; their bodies count once.
    """

    operations: tuple[Operation, ...]
    collectives: tuple[Collective, ...]
    unknown_loops: int

    @property
    def matmul_flops(self) -> float:
        """FLOPs of all matmuls."""
        return sum(operation.flops * operation.count for operation in self.operations)

    @property
    def memory_bytes(self) -> float:
        """Bytes read and written in main memory."""
        return sum(operation.bytes * operation.count for operation in self.operations)


def read_work(module: Module, *, kernels_drop: bool = False) -> Work:
    """Returns the work of an optimized module.

    Args:
      kernels_drop: whether attention kernels drop weights, which is not in the text.

    Raises:
      ValueError: if an instruction does not have the expected format.
    """
    costs, categories = Costs(module, kernels_drop=kernels_drop), Categories(module)
    operations: list[Operation] = []
    index_of: dict[str, int] = {}
    collectives: list[tuple[Collective, list[str]]] = []
    for instruction, count in module.executed(module.entry, 1):
        collective = collective_of(module, instruction, count)
        if collective:
            collectives.append((collective, [*names_beside(module, instruction)]))
            continue
        flops, traffic = costs.flops(instruction), costs.traffic(instruction)
        if flops or traffic:
            index_of[instruction.name] = len(operations)
            elementwise, named = costs.elementwise(instruction), categories.of(instruction)
            operations.append(Operation(flops, traffic, count, *elementwise, *named))
        collectives += [(inner, [instruction.name]) for inner in fused_collectives(module, instruction, count)]
    placed = [
        dataclasses.replace(collective, beside=tuple(index_of[name] for name in names if name in index_of))
        for collective, names in collectives
    ]
    return Work(tuple(operations), tuple(placed), module.unknown_loops)


def kept_bytes(module: Module, rows: int) -> int:
    """Returns the bytes that the loop over the layers keeps for the backward pass; 0 if the layers are unrolled.

    These are the loop's arrays of shape [trip count, rows, …]. A loop over a pattern of layers leaves out the layers
    after its last repetition, whose activations are ordinary temporaries.
    """
    loops = [
        instruction
        for computation in module.computations.values()
        for instruction in computation.values()
        if instruction.opcode == 'while'
    ]
    sizes = (
        sum(array.bytes for array in loop.arrays if array.sizes[:2] == (module.trip_count(loop), rows))
        for loop in loops
    )
    return max(sizes, default=0)
