"""Parses XLA's HLO text into computations and instructions. The format is not stable; the tests keep samples of it."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {'pred': 8, 'bf16': 16, 'token': 0, 'opaque': 0}
_FREE = {
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'replica-id',
    'opt-barrier', 'iota', 'copy-done', 'slice-done', 'async-update', 'async-done', 'domain', 'add-dependency',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Array:
    """The dtype and sizes of an array, and whether it is in on-chip memory (a TPU's VMEM)."""

    dtype: str
    sizes: tuple[int, ...]
    on_chip: bool

    @property
    def elements(self) -> int:
        """The number of its elements."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """Bytes of its elements, without padding."""
        bits = _BITS[self.dtype] if self.dtype in _BITS else int(re.sub(r'^[a-z]+(\d+).*$', r'\1', self.dtype))
        return self.elements * bits // 8

    @property
    def traffic(self) -> int:
        """Bytes in the device's main memory."""
        return 0 if self.on_chip else self.bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      arrays: of its result; several if that is a tuple.
      operands: names of instructions of the same computation.
      rest: the text after the operands; of a constant or parameter, its value or index.
    """

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    def attribute(self, pattern: str) -> str | None:
        """Returns the first group of a pattern in the attributes; None if it does not match."""
        found = re.search(pattern, self.rest)
        return found and found.group(1)

    def required(self, pattern: str) -> str:
        """Returns the first group of a pattern in the attributes.

        Raises:
          ValueError: if it does not match.
        """
        value = self.attribute(pattern)
        if value is None:
            raise ValueError(f'{self.opcode} {self.name} has no {pattern}')
        return value


class Module:
    """The computations of a program.

    Attributes:
      computations: name -> instructions by name, in order.
      home: name of an instruction -> name of its computation.
      entry: name of the computation that runs first.
      unknown_loops: how many loops without a trip count `executed` has met; their bodies count once.
      text: all of it.
    """

    def __init__(self, text: str):
        self.text = text
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, self.unknown_loops = '', 0
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            head = re.match(r'^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$', line)
            if head:
                current = self.computations.setdefault(head.group(2), {})
                self.entry = head.group(2) if head.group(1) else self.entry
            elif (instruction := parse_instruction(line)) is not None:
                current[instruction.name] = instruction
        if not self.entry:
            raise ValueError('no ENTRY computation in this program')
        # Names are unique in a module.
        self.home = {name: computation for computation, inner in self.computations.items() for name in inner}

    def executed(self, computation: str, count: int) -> Iterator[tuple[Instruction, int]]:
        """Yields the instructions that a computation runs and how often, following loops, calls and conditionals.

        Args:
          count: how often the computation runs.
        """
        for instruction in self.computations[computation].values():
            yield from self.executed_by(instruction, count)

    def executed_by(self, instruction: Instruction, count: int) -> Iterator[tuple[Instruction, int]]:
        """Yields the instructions that one instruction runs, as `executed`: usually itself."""
        if instruction.opcode == 'while':
            trip_count = self.trip_count(instruction)
            self.unknown_loops += trip_count is None
            yield from self.executed(instruction.required(r'body=%?([\w.-]+)'), count * (trip_count or 1))
        elif instruction.opcode == 'call':
            yield from self.executed(instruction.required(r'to_apply=%?([\w.-]+)'), count)
        elif instruction.opcode == 'conditional':
            yield from self.executed(_branch_taken(instruction), count)
        elif instruction.opcode not in _FREE and not instruction.opcode.endswith('-done'):
            yield instruction, count

    def trip_count(self, loop: Instruction) -> int | None:
        """Returns how often the body of a loop runs; None if the text does not say."""
        known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        if known:
            return int(known)
        condition = self.computations[loop.required(r'condition=%?([\w.-]+)')]
        root = next(instruction for instruction in condition.values() if instruction.is_root)
        operands = [condition[name] for name in root.operands if name in condition]
        limits = [operand for operand in operands if operand.opcode == 'constant']
        if root.opcode == 'compare' and 'direction=LT' in root.rest and len(limits) == 1:
            return int(limits[0].rest.strip('()').split(')')[0])
        return None

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        """Returns the instruction that computes an operand."""
        name = instruction.operands[index]
        return self.computations[self.home[name]][name]

    def operand_arrays(self, instruction: Instruction) -> list[Array]:
        """Returns the arrays of all operands; of an operand that occurs twice, once."""
        names = dict.fromkeys(instruction.operands)
        operands = (self.operand(instruction, instruction.operands.index(name)) for name in names)
        return [array for operand in operands for array in operand.arrays]


def is_allocation(instruction: Instruction) -> bool:
    """Returns whether an instruction only reserves memory, as a TPU does for the arrays that a loop fills."""
    return 'custom_call_target="AllocateBuffer"' in instruction.rest


def _branch_taken(conditional: Instruction) -> str:
    """Returns the computation that a conditional usually runs: that for True, or the last one."""
    return conditional.attribute(r'true_computation=%?([\w.-]+)') or conditional.required(
        r'branch_computations=\{(?:[^}]*[ ,])?%?([\w.-]+)\}'
    )


def parse_instruction(line: str) -> Instruction | None:
    """Returns the instruction on a line, or None if the line holds something else."""
    head = re.match(r'^\s+(ROOT )?%?([\w.-]+) = ', line)
    if not head:
        return None
    shape_end = _shape_end(line, head.end())
    shape = line[head.end() : shape_end]
    opcode, _, body = line[shape_end + 1 :].partition('(')
    end = _closing_index(body)
    if opcode in ('constant', 'parameter'):
        return Instruction(head.group(2), _arrays(shape), opcode, (), f'({body[:end]})', bool(head.group(1)))
    operands = tuple(re.findall(r'%([\w.-]+)', body[:end]))
    return Instruction(head.group(2), _arrays(shape), opcode, operands, body[end + 1 :], bool(head.group(1)))


def _shape_end(line: str, start: int) -> int:
    """Returns the index of the space after a shape, which is an array or a tuple in parentheses."""
    if line[start] != '(':
        return line.index(' ', start)
    return start + 2 + _closing_index(line[start + 1 :])


def _closing_index(text: str) -> int:
    """Returns the index of the parenthesis that closes one opened before the text."""
    depth = 1
    for found in re.finditer(r'[()]', text):
        depth += 1 if found.group() == '(' else -1
        if not depth:
            return found.start()
    return len(text)


@functools.cache
def _arrays(shape: str) -> tuple[Array, ...]:
    """Returns the arrays of a shape such as `f32[8,16]{1,0}`, or of a tuple of them."""
    return tuple(
        Array(dtype, tuple(int(size.lstrip('<=')) for size in sizes.split(',') if size), 'S(1)' in (layout or ''))
        for dtype, sizes, layout in re.findall(r'([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?', shape)
    )
