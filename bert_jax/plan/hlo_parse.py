"""XLA's HLO text as instructions and computations. The format is not stable: tests keep samples of it."""

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
    """One array: its type, sizes, and whether it lies in on-chip memory (a TPU's VMEM)."""

    dtype: str
    sizes: tuple[int, ...]
    on_chip: bool

    @property
    def bytes(self) -> int:
        """Of its elements, without padding."""
        bits = _BITS[self.dtype] if self.dtype in _BITS else int(re.sub(r'^[a-z]+(\d+).*$', r'\1', self.dtype))
        return math.prod(self.sizes) * bits // 8

    @property
    def traffic(self) -> int:
        """Bytes in the device's main memory."""
        return 0 if self.on_chip else self.bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation."""

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    def attribute(self, pattern: str) -> str | None:
        """What a regular expression's first group finds among the attributes."""
        found = re.search(pattern, self.rest)
        return found and found.group(1)

    def required(self, pattern: str) -> str:
        """The same, for an attribute that every instruction of this opcode has; a ValueError where it is missing."""
        value = self.attribute(pattern)
        if value is None:
            raise ValueError(f'{self.opcode} {self.name} has no {pattern}')
        return value


class Module:
    """The computations of a module by name.

    Attributes:
      computations: name -> its instructions by name, in order.  home: instruction -> its computation.
      unknown_loops: loops met so far whose trip count is not in the text; they are counted once.
    """

    def __init__(self, text: str):
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
        self.home = {
            name: computation for computation, lines in self.computations.items() for name in lines
        }  # names are unique in a module

    def executed(self, computation: str, count: int) -> Iterator[tuple[Instruction, int]]:
        """The instructions that run by themselves, and how often."""
        for instruction in self.computations[computation].values():
            if instruction.opcode == 'while':
                body = instruction.required(r'body=%?([\w.-]+)')
                yield from self.executed(body, count * self._trips(instruction))
            elif instruction.opcode == 'call':
                yield from self.executed(instruction.required(r'to_apply=%?([\w.-]+)'), count)
            elif instruction.opcode == 'conditional':
                branches = re.findall(r'%?([\w.-]+)', instruction.attribute(r'branch_computations=\{([^}]*)\}') or '')
                for branch in branches[-1:]:
                    yield from self.executed(branch, count)
            elif instruction.opcode not in _FREE and not instruction.opcode.endswith('-done'):
                yield instruction, count

    def _trips(self, loop: Instruction) -> int:
        known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        if known:
            return int(known)
        lines = self.computations[loop.required(r'condition=%?([\w.-]+)')]
        root = next(line for line in lines.values() if line.is_root)
        limits = [lines[name] for name in root.operands if name in lines and lines[name].opcode == 'constant']
        if root.opcode == 'compare' and 'direction=LT' in root.rest and len(limits) == 1:
            return int(limits[0].rest.strip('()').split(')')[0])
        self.unknown_loops += 1
        return 1

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        name = instruction.operands[index]
        return self.computations[self.home[name]][name]

    def operand_arrays(self, instruction: Instruction) -> list[Array]:
        found = (self.operand(instruction, index) for index in range(len(instruction.operands)))
        return [array for operand in found for array in operand.arrays]


def parse_instruction(line: str) -> Instruction | None:
    """The instruction on a line, or None for a line of another kind."""
    head = re.match(r'^\s+(ROOT )?%?([\w.-]+) = ', line)
    if not head:
        return None
    shape_end = _end_of_shape(line, head.end())
    shape, after = line[head.end() : shape_end], line[shape_end + 1 :]
    opcode, _, body = after.partition('(')
    end = _closing(body)
    if opcode in ('constant', 'parameter'):
        return Instruction(head.group(2), _arrays(shape), opcode, (), f'({body[:end]})', bool(head.group(1)))
    operands = tuple(re.findall(r'%([\w.-]+)', body[:end]))
    return Instruction(head.group(2), _arrays(shape), opcode, operands, body[end + 1 :], bool(head.group(1)))


def _end_of_shape(line: str, start: int) -> int:
    """The place of the blank after a shape: an array, or a tuple in brackets."""
    if line[start] != '(':
        return line.index(' ', start)
    return start + 2 + _closing(line[start + 1 :])


def _closing(text: str) -> int:
    """Where the bracket closes that was open before the text."""
    depth = 1
    for found in re.finditer(r'[()]', text):
        depth += 1 if found.group() == '(' else -1
        if not depth:
            return found.start()
    return len(text)


@functools.cache
def _arrays(shape: str) -> tuple[Array, ...]:
    return tuple(
        Array(dtype, tuple(int(size.lstrip('<=')) for size in sizes.split(',') if size), 'S(1)' in (layout or ''))
        for dtype, sizes, layout in re.findall(r'([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?', shape)
    )
