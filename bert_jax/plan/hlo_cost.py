"""What the instructions of an HLO module cost: FLOPs, elementwise operations and memory traffic."""

import functools
import math
import re

import numpy as np

from bert_jax.plan import kernels
from bert_jax.plan.hlo_parse import Instruction, Module

_TRANSCENDENTAL = {
    'exponential', 'exponential-minus-one', 'log', 'log-plus-one', 'logistic', 'tanh', 'erf', 'power', 'sine', 'cosine',
}  # fmt: skip
_SIMPLE = {
    'add', 'subtract', 'multiply', 'divide', 'maximum', 'minimum', 'compare', 'select', 'and', 'or', 'xor', 'not',
    'negate', 'abs', 'sqrt', 'rsqrt', 'clamp', 'shift-left', 'shift-right-logical', 'shift-right-arithmetic', 'convert',
}  # fmt: skip
_SLICES = ('dynamic-slice', 'slice', 'gather')


class Costs:
    """Costs of one call of an instruction, the computations it calls included."""

    def __init__(self, module: Module):
        self.module = module

    # --- FLOPs of matmuls, and elementwise operations. ---

    @functools.cache  # noqa: B019  lives only while a program is read
    def flops(self, instruction: Instruction) -> float:
        """Of one call, what it calls included."""
        if instruction.opcode == 'dot':
            dims = instruction.required(r'lhs_contracting_dims=\{([\d,]*)\}')
            sizes = self.module.operand(instruction, 0).arrays[0].sizes
            contracted = math.prod(sizes[int(dim)] for dim in dims.split(',') if dim)
            return 2.0 * math.prod(instruction.arrays[0].sizes) * contracted
        if instruction.opcode == 'convolution':
            return self._convolution_flops(instruction)
        if instruction.opcode == 'custom-call':
            return kernels.cost(instruction.rest, self.module.operand_arrays(instruction))[0]
        called = instruction.attribute(r'(?:calls|to_apply)=%?([\w.-]+)')
        if instruction.opcode in ('fusion', 'call', 'async-start') and called:
            return sum(self.flops(line) for line in self.module.computations[called].values())
        return 0.0

    @functools.cache  # noqa: B019  lives only while a program is read
    def elementwise(self, instruction: Instruction) -> tuple[float, float]:
        """(simple, transcendental) operations on elements of one call, what it calls included."""
        called = instruction.attribute(r'calls=%?([\w.-]+)')
        if instruction.opcode == 'fusion' and called:
            inside = [self.elementwise(line) for line in self.module.computations[called].values()]
            return sum(simple for simple, _ in inside), sum(hard for _, hard in inside)
        if instruction.opcode == 'custom-call':
            return 0.0, kernels.cost(instruction.rest, self.module.operand_arrays(instruction))[1]
        if instruction.opcode == 'reduce':
            return float(math.prod(self.module.operand_arrays(instruction)[0].sizes)), 0.0
        elements = float(math.prod(instruction.arrays[0].sizes)) if instruction.arrays else 0.0
        return elements * (instruction.opcode in _SIMPLE), elements * (instruction.opcode in _TRANSCENDENTAL)

    def _convolution_flops(self, instruction: Instruction) -> float:
        """Multiplications that meet data and not padding: on a TPU a batched product is a dilated convolution."""
        lhs, rhs = (self.module.operand(instruction, index).arrays[0].sizes for index in (0, 1))
        left, right, out = re.split(r'_|->', instruction.required(r'dim_labels=([\w>-]+)'))
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
            return 2.0 * self.module.operand(instruction, 1).arrays[0].traffic
        if instruction.opcode in ('copy-start', 'slice-start', 'async-start'):
            return float(instruction.arrays[0].traffic or instruction.arrays[-1].traffic)
        written = sum(array.traffic for array in instruction.arrays)
        return float(written + sum(array.traffic for array in self.module.operand_arrays(instruction)))

    def _fusion_traffic(self, fusion: Instruction) -> float:
        """What lies in on-chip memory outside costs nothing, whatever is done with it inside."""
        lines = self._called(fusion)
        inputs = [line for line in lines.values() if line.opcode == 'parameter']
        read = 0
        for line in inputs:
            outside = self.module.operand(fusion, _number(line)).arrays
            read += min(self._read(lines, line), sum(array.traffic for array in outside))
        written = sum(array.traffic for array in fusion.arrays)
        return float(read + min(self._written(lines, next(line for line in lines.values() if line.is_root)), written))

    def _called(self, fusion: Instruction) -> dict[str, Instruction]:
        return self.module.computations[fusion.required(r'calls=%?([\w.-]+)')]

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


def _number(parameter: Instruction) -> int:
    return int(parameter.rest.strip('()').split(')')[0])
