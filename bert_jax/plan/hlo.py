"""What a compiled program does in one step, read from its text (XLA's HLO).

Matrix FLOPs, memory traffic and collectives of one device, the bodies of loops multiplied by their trip counts.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator

import numpy as np

from bert_jax.plan import kernels

_BITS = {'pred': 8, 'bf16': 16, 'token': 0, 'opaque': 0}
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute', 'ragged-all-to-all')
_FREE = {
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'replica-id',
    'opt-barrier', 'iota', 'copy-done', 'slice-done', 'async-update', 'async-done', 'domain', 'add-dependency',
}  # fmt: skip
_TRANSCENDENTAL = {
    'exponential', 'exponential-minus-one', 'log', 'log-plus-one', 'logistic', 'tanh', 'erf', 'power', 'sine', 'cosine',
}  # fmt: skip
_SIMPLE = {
    'add', 'subtract', 'multiply', 'divide', 'maximum', 'minimum', 'compare', 'select', 'and', 'or', 'xor', 'not',
    'negate', 'abs', 'sqrt', 'rsqrt', 'clamp', 'shift-left', 'shift-right-logical', 'shift-right-arithmetic', 'convert',
}  # fmt: skip
_SLICES = ('dynamic-slice', 'slice', 'gather')


@dataclasses.dataclass(frozen=True)
class Array:
    """One array: its type, sizes, and whether it lies in on-chip memory (a TPU's VMEM)."""

    dtype: str
    sizes: tuple[int, ...]
    on_chip: bool

    @property
    def bytes(self) -> int:
        """Of its elements, without padding."""
        bits = _BITS.get(self.dtype) if self.dtype in _BITS else int(re.sub(r'^[a-z]+(\d+).*$', r'\1', self.dtype))
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
    operations, collectives = [], []
    for instruction, count in module.executed(module.entry, 1):
        collective = module.collective(instruction, count)
        if collective:
            collectives.append(collective)
            continue
        flops, moved = module.flops(instruction), module.traffic(instruction)
        if flops or moved:
            operations.append(Operation(flops, moved, count, *module.elementwise(instruction)))
        collectives += module.fused_collectives(instruction, count)
    return Work(tuple(operations), tuple(collectives), module.unknown_loops)


def loop_bytes(text: str, num_layers: int, rows: int) -> int:
    """Bytes that the loop over the layers stacks up for the backward pass: its arrays of [N, b, …]; 0 if unrolled."""
    stacked = (
        sum(array.bytes for array in instruction.arrays if array.sizes[:2] == (num_layers, rows))
        for line in text.splitlines()
        if ' while(' in line and (instruction := _instruction(line)) is not None
    )
    return max(stacked, default=0)


class Module:
    """The computations of a module by name, and what its instructions cost."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, self.unknown_loops = '', 0
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            head = re.match(r'^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$', line)
            if head:
                current = self.computations.setdefault(head.group(2), {})
                self.entry = head.group(2) if head.group(1) else self.entry
            elif (instruction := _instruction(line)) is not None:
                current[instruction.name] = instruction
        if not self.entry:
            raise ValueError('no ENTRY computation in this program')
        self._home = {
            name: computation for computation, lines in self.computations.items() for name in lines
        }  # names are unique in a module

    def executed(self, computation: str, count: int) -> Iterator[tuple[Instruction, int]]:
        """The instructions that run by themselves, and how often."""
        for instruction in self.computations[computation].values():
            if instruction.opcode == 'while':
                body = instruction.attribute(r'body=%?([\w.-]+)')
                yield from self.executed(body, count * self._trips(instruction))
            elif instruction.opcode == 'call':
                yield from self.executed(instruction.attribute(r'to_apply=%?([\w.-]+)'), count)
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
        lines = self.computations[loop.attribute(r'condition=%?([\w.-]+)')]
        root = next(line for line in lines.values() if line.is_root)
        limits = [lines[name] for name in root.operands if name in lines and lines[name].opcode == 'constant']
        if root.opcode == 'compare' and 'direction=LT' in root.rest and len(limits) == 1:
            return int(limits[0].rest.strip('()').split(')')[0])
        self.unknown_loops += 1
        return 1

    def _operand(self, instruction: Instruction, index: int) -> Instruction:
        name = instruction.operands[index]
        return self.computations[self._home[name]][name]

    def _operand_arrays(self, instruction: Instruction) -> list[Array]:
        found = (self._operand(instruction, index) for index in range(len(instruction.operands)))
        return [array for operand in found for array in operand.arrays]

    # --- FLOPs of matrix products. ---

    @functools.cache  # noqa: B019  a module lives as long as its reading
    def flops(self, instruction: Instruction) -> float:
        """Of one call, what it calls included."""
        if instruction.opcode == 'dot':
            dims = instruction.attribute(r'lhs_contracting_dims=\{([\d,]*)\}')
            sizes = self._operand(instruction, 0).arrays[0].sizes
            contracted = math.prod(sizes[int(dim)] for dim in dims.split(',') if dim)
            return 2.0 * math.prod(instruction.arrays[0].sizes) * contracted
        if instruction.opcode == 'convolution':
            return self._convolution_flops(instruction)
        if instruction.opcode == 'custom-call':
            return kernels.cost(instruction.rest, self._operand_arrays(instruction))[0]
        called = instruction.attribute(r'(?:calls|to_apply)=%?([\w.-]+)')
        if instruction.opcode in ('fusion', 'call', 'async-start') and called:
            return sum(self.flops(line) for line in self.computations[called].values())
        return 0.0

    @functools.cache  # noqa: B019  a module lives as long as its reading
    def elementwise(self, instruction: Instruction) -> tuple[float, float]:
        """(simple, transcendental) operations on elements of one call, what it calls included."""
        called = instruction.attribute(r'calls=%?([\w.-]+)')
        if instruction.opcode == 'fusion' and called:
            inside = [self.elementwise(line) for line in self.computations[called].values()]
            return sum(simple for simple, _ in inside), sum(hard for _, hard in inside)
        if instruction.opcode == 'custom-call':
            return 0.0, kernels.cost(instruction.rest, self._operand_arrays(instruction))[1]
        if instruction.opcode == 'reduce':
            return float(math.prod(self._operand_arrays(instruction)[0].sizes)), 0.0
        elements = float(math.prod(instruction.arrays[0].sizes)) if instruction.arrays else 0.0
        return elements * (instruction.opcode in _SIMPLE), elements * (instruction.opcode in _TRANSCENDENTAL)

    def _convolution_flops(self, instruction: Instruction) -> float:
        """Multiplications that meet data and not padding: on a TPU a batched product is a dilated convolution."""
        lhs, rhs = (self._operand(instruction, index).arrays[0].sizes for index in (0, 1))
        left, right, out = re.split(r'_|->', instruction.attribute(r'dim_labels=([\w>-]+)'))
        output = instruction.arrays[0].sizes
        total = 2.0 * output[out.index('b')] * output[out.index('f')] * rhs[right.index('i')]
        window = instruction.attribute(r'window=\{([^}]*)\}') or ''
        settings = dict(part.split('=') for part in window.split())
        for number, label in enumerate(sorted(label for label in left if label.isdigit())):

            def setting(name: str, default: str, number: int = number) -> str:
                return settings[name].split('x')[number] if name in settings else default

            size, step = int(setting('size', '1')), int(setting('stride', '1'))
            low = int(setting('pad', '0_0').split('_')[0])
            dilated, spread = int(setting('lhs_dilate', '1')), int(setting('rhs_dilate', '1'))
            places = np.arange(output[out.index(label)])[:, None] * step + np.arange(size)[None] * spread - low
            inside = (places >= 0) & (places <= (lhs[left.index(label)] - 1) * dilated) & (places % dilated == 0)
            total *= int(inside.sum())
        return total

    # --- Memory traffic. ---

    def traffic(self, instruction: Instruction) -> float:
        """Bytes of one call: what it reads and writes, of a slice the slice only."""
        if instruction.opcode == 'fusion':
            return self._fusion_traffic(instruction)
        if instruction.opcode in _SLICES:
            return 2.0 * sum(array.traffic for array in instruction.arrays)
        if instruction.opcode == 'dynamic-update-slice':
            return 2.0 * self._operand(instruction, 1).arrays[0].traffic
        if instruction.opcode in ('copy-start', 'slice-start', 'async-start'):
            return float(instruction.arrays[0].traffic or instruction.arrays[-1].traffic)
        written = sum(array.traffic for array in instruction.arrays)
        return float(written + sum(array.traffic for array in self._operand_arrays(instruction)))

    def _fusion_traffic(self, fusion: Instruction) -> float:
        """What lies in on-chip memory outside costs nothing, whatever is done with it inside."""
        lines = self._called(fusion)
        inputs = [line for line in lines.values() if line.opcode == 'parameter']
        read = sum(
            min(self._read(lines, line), sum(array.traffic for array in self._operand(fusion, _number(line)).arrays))
            for line in inputs
        )
        written = sum(array.traffic for array in fusion.arrays)
        return float(read + min(self._written(lines, next(line for line in lines.values() if line.is_root)), written))

    def _called(self, fusion: Instruction) -> dict[str, Instruction]:
        return self.computations[fusion.attribute(r'calls=%?([\w.-]+)')]

    def _read(self, lines: dict[str, Instruction], line: Instruction) -> int:
        """Bytes of an input that a fused computation reads: its slices where it only takes slices."""
        whole, total = sum(array.bytes for array in line.arrays), 0
        for user in lines.values():
            if line.name not in user.operands:
                continue
            if user.opcode == 'bitcast':
                total += self._read(lines, user)
            elif user.opcode in _SLICES and user.operands[0] == line.name:
                total += sum(array.bytes for array in user.arrays)
            elif user.opcode == 'dynamic-update-slice' and user.operands[0] == line.name:
                continue  # written in place, and counted there
            elif user.opcode == 'fusion':
                inner = self._called(user)
                places = [place for place, name in enumerate(user.operands) if name == line.name]
                inputs = [line for line in inner.values() if line.opcode == 'parameter' and _number(line) in places]
                total += sum(self._read(inner, line) for line in inputs)
            else:
                return whole
        return min(whole, total)

    def _written(self, lines: dict[str, Instruction], line: Instruction) -> int:
        """Bytes of a result that a fused computation writes: of an update in place, the update."""
        if line.opcode == 'tuple':
            return sum(self._written(lines, lines[name]) for name in line.operands)
        if line.opcode in ('bitcast', 'copy', 'convert') and line.operands[0] in lines:
            inner = self._written(lines, lines[line.operands[0]])
            return min(inner, sum(array.bytes for array in line.arrays))
        if line.opcode == 'fusion':
            inner = self._called(line)
            return self._written(inner, next(line for line in inner.values() if line.is_root))
        if line.opcode == 'dynamic-update-slice':
            return sum(array.bytes for array in lines[line.operands[1]].arrays)
        return sum(array.bytes for array in line.arrays)

    # --- Collectives. ---

    def fused_collectives(self, instruction: Instruction, count: int) -> Iterator[Collective]:
        """Those that run inside a fusion, beside its computation."""
        called = instruction.attribute(r'calls=%?([\w.-]+)')
        for line in self.computations.get(called, {}).values() if called else ():
            collective = self.collective(line, count)
            if collective:
                yield dataclasses.replace(collective, overlapped=True)
            else:
                yield from self.fused_collectives(line, count)

    def collective(self, instruction: Instruction, count: int) -> Collective | None:
        """The collective that an instruction is, if it is one."""
        kind = instruction.opcode.removesuffix('-start')
        if kind not in COLLECTIVES:
            return None
        groups = _groups(instruction.rest)
        size = sum(array.bytes for array in self._operand_arrays(instruction))
        if kind == 'all-gather':
            size *= len(groups[0]) if groups else 1
        asynchronous = instruction.opcode.endswith('-start') and '"is_sync":true' not in instruction.rest
        return Collective(kind, groups, size, count, asynchronous and self._work_follows(instruction))

    def _work_follows(self, start: Instruction) -> bool:
        """Whether something is computed between a start and its done."""
        after = itertools.dropwhile(
            lambda line: line.name != start.name, self.computations[self._home[start.name]].values()
        )
        for line in itertools.islice(after, 1, None):
            if line.opcode.endswith('-done') and start.name in line.operands:
                return False
            if line.opcode in ('fusion', 'dot', 'convolution', 'while', 'custom-call'):
                return True
        return False


def _number(parameter: Instruction) -> int:
    return int(parameter.rest.strip('()').split(')')[0])


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
    sizes, order = re.fullmatch(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text.replace(' ', '')).groups()
    ids = np.arange(math.prod(map(int, sizes.split(',')))).reshape([int(size) for size in sizes.split(',')])
    return ids.transpose([int(dim) for dim in order.split(',')]) if order else ids


def _rows(ids: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in ids.tolist())


def _instruction(line: str) -> Instruction | None:
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
