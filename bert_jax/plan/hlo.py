"""What a compiled program does in one step, read from its text (XLA's HLO).

Matmul FLOPs, memory traffic and collectives of one device, the bodies of loops multiplied by their trip counts.
"""

import dataclasses

from bert_jax.plan.hlo_collectives import Collective, collective_of, fused_collectives
from bert_jax.plan.hlo_cost import Costs
from bert_jax.plan.hlo_parse import Module, parse_instruction


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation that takes a device's time: of one call, and how often it is called.

    flops: of matrix products.  simple, transcendental: element by element, additions and the like, exponentials and the
    like.
    """

    flops: float
    bytes: float
    count: int
    simple: float = 0.0
    transcendental: float = 0.0


@dataclasses.dataclass(frozen=True)
class Work:
    """One device's step. unknown_loops: loops whose trip count does not stand in the program, counted once."""

    operations: tuple[Operation, ...]
    collectives: tuple[Collective, ...]
    unknown_loops: int

    @property
    def matrix_flops(self) -> float:
        """Of all matrix products."""
        return sum(operation.flops * operation.count for operation in self.operations)

    @property
    def memory_bytes(self) -> float:
        """Read and written in main memory."""
        return sum(operation.bytes * operation.count for operation in self.operations)


def read(text: str) -> Work:
    """Args: text, an optimised HLO module (`compiled.as_text()`)."""
    module = Module(text)
    costs = Costs(module)
    operations, collectives = [], []
    for instruction, count in module.executed(module.entry, 1):
        collective = collective_of(module, instruction, count)
        if collective:
            collectives.append(collective)
            continue
        flops, moved = costs.flops(instruction), costs.traffic(instruction)
        if flops or moved:
            operations.append(Operation(flops, moved, count, *costs.elementwise(instruction)))
        collectives += fused_collectives(module, instruction, count)
    return Work(tuple(operations), tuple(collectives), module.unknown_loops)


def loop_bytes(text: str, num_layers: int, rows: int) -> int:
    """Bytes that the loop over the layers stacks up for the backward pass: its arrays of [N, b, …]; 0 if unrolled."""
    stacked = (
        sum(array.bytes for array in instruction.arrays if array.sizes[:2] == (num_layers, rows))
        for line in text.splitlines()
        if ' while(' in line and (instruction := parse_instruction(line)) is not None
    )
    return max(stacked, default=0)
