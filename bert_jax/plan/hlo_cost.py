"""Computes what the instructions of an HLO module cost: FLOPs, elementwise operations and memory traffic."""

import functools
import math
import re

import numpy as np

from bert_jax.plan import kernels
from bert_jax.plan.hlo_parse import Instruction, Module, is_allocation

_TRANSCENDENTAL = {
    'exponential', 'exponential-minus-one', 'log', 'log-plus-one', 'logistic', 'tanh', 'erf', 'power', 'sine', 'cosine',
}  # fmt: skip
_SIMPLE = {
    'add', 'subtract', 'multiply', 'divide', 'maximum', 'minimum', 'compare', 'select', 'and', 'or', 'xor', 'not',
    'negate', 'abs', 'sqrt', 'rsqrt', 'clamp', 'shift-left', 'shift-right-logical', 'shift-right-arithmetic', 'convert',
}  # fmt: skip
_SLICES = ('dynamic-slice', 'slice', 'gather')


class Costs:
    """The costs of one call of an instruction, including the computations that it calls."""

    def __init__(self, module: Module):
        self.module = module

    # --- FLOPs of matmuls, and elementwise operations. ---

    @functools.cache  # noqa: B019  an instance exists only while a program is read
    def flops(self, instruction: Instruction) -> float:
        """Returns the matmul FLOPs."""
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
            return sum(self.flops(inner) for inner in self.module.computations[called].values())
        return 0.0

    @functools.cache  # noqa: B019  an instance exists only while a program is read
    def elementwise(self, instruction: Instruction) -> tuple[float, float]:
        """Returns the number of (simple, transcendental) elementwise operations."""
        called = instruction.attribute(r'calls=%?([\w.-]+)')
        if instruction.opcode == 'fusion' and called:
            inside = [self.elementwise(inner) for inner in self.module.computations[called].values()]
            return sum(simple for simple, _ in inside), sum(transcendental for _, transcendental in inside)
        if instruction.opcode == 'custom-call':
            return 0.0, kernels.cost(instruction.rest, self.module.operand_arrays(instruction))[1]
        if instruction.opcode == 'reduce':
            return float(math.prod(self.module.operand_arrays(instruction)[0].sizes)), 0.0
        elements = float(math.prod(instruction.arrays[0].sizes)) if instruction.arrays else 0.0
        return elements * (instruction.opcode in _SIMPLE), elements * (instruction.opcode in _TRANSCENDENTAL)

    def _convolution_flops(self, instruction: Instruction) -> float:
        """Counts the multiplications that meet data and not padding: a TPU runs a batched matmul as a dilated
        convolution."""
        lhs, rhs = (self.module.operand(instruction, index).arrays[0].sizes for index in (0, 1))
        left, right, out = re.split(r'_|->', instruction.required(r'dim_labels=([\w>-]+)'))
        output = instruction.arrays[0].sizes
        total = 2.0 * output[out.index('b')] * output[out.index('f')] * rhs[right.index('i')]
        window = instruction.attribute(r'window=\{([^}]*)\}') or ''
        settings = dict(part.split('=') for part in window.split())
        for dim, label in enumerate(sorted(label for label in left if label.isdigit())):

            def setting(name: str, default: str, dim: int = dim) -> str:
                return settings[name].split('x')[dim] if name in settings else default

            size, stride = int(setting('size', '1')), int(setting('stride', '1'))
            low = int(setting('pad', '0_0').split('_')[0])
            lhs_dilation, rhs_dilation = int(setting('lhs_dilate', '1')), int(setting('rhs_dilate', '1'))
            positions = np.arange(output[out.index(label)])[:, None] * stride - low
            positions = positions + np.arange(size)[None] * rhs_dilation
            last = (lhs[left.index(label)] - 1) * lhs_dilation
            total *= int(((positions >= 0) & (positions <= last) & (positions % lhs_dilation == 0)).sum())
        return total

    # --- Memory traffic. ---

    def traffic(self, instruction: Instruction) -> float:
        """Returns the bytes that are read and written in main memory; of a slice, only the slice counts."""
        if instruction.opcode == 'fusion':
            return self._fusion_traffic(instruction)
        if is_allocation(instruction):
            return 0.0
        if instruction.opcode in _SLICES:
            return 2.0 * sum(array.traffic for array in instruction.arrays)
        if instruction.opcode == 'dynamic-update-slice':
            return 2.0 * self.module.operand(instruction, 1).arrays[0].traffic
        if instruction.opcode in ('copy-start', 'slice-start', 'async-start'):
            return float(instruction.arrays[0].traffic or instruction.arrays[-1].traffic)
        written = sum(array.traffic for array in instruction.arrays)
        return float(written + sum(array.traffic for array in self.module.operand_arrays(instruction)))

    def _fusion_traffic(self, fusion: Instruction) -> float:
        """Returns the traffic of a fusion. Operands and results in on-chip memory cost nothing."""
        inner = self._fused_instructions(fusion)
        read = 0
        for parameter in _parameters(inner):
            operand = self.module.operand(fusion, _parameter_index(parameter)).arrays
            read += min(self._read_bytes(inner, parameter), sum(array.traffic for array in operand))
        written = sum(array.traffic for array in fusion.arrays)
        return float(read + min(self._written_bytes(inner, _root(inner)), written))

    def _fused_instructions(self, fusion: Instruction) -> dict[str, Instruction]:
        return self.module.computations[fusion.required(r'calls=%?([\w.-]+)')]

    def _read_bytes(self, inner: dict[str, Instruction], value: Instruction) -> int:
        """Returns how many bytes of a value a fused computation reads: the slices, if it only takes slices."""
        whole, total = sum(array.bytes for array in value.arrays), 0
        for user in inner.values():
            if value.name not in user.operands:
                continue
            if user.opcode == 'bitcast':
                total += self._read_bytes(inner, user)
            elif user.opcode in _SLICES and user.operands[0] == value.name:
                total += sum(array.bytes for array in user.arrays)
            elif user.opcode == 'dynamic-update-slice' and user.operands[0] == value.name:
                continue  # updated in place: `_written_bytes` counts the update
            elif user.opcode == 'fusion':
                nested = self._fused_instructions(user)
                indices = [index for index, name in enumerate(user.operands) if name == value.name]
                parameters = [each for each in _parameters(nested) if _parameter_index(each) in indices]
                total += sum(self._read_bytes(nested, parameter) for parameter in parameters)
            else:
                return whole
        return min(whole, total)

    def _written_bytes(self, inner: dict[str, Instruction], value: Instruction) -> int:
        """Returns how many bytes of a result a fused computation writes: the update, if it updates in place."""
        if value.opcode == 'tuple':
            return sum(self._written_bytes(inner, inner[name]) for name in value.operands)
        whole = sum(array.bytes for array in value.arrays)
        if value.opcode in ('bitcast', 'copy', 'convert') and value.operands[0] in inner:
            return min(self._written_bytes(inner, inner[value.operands[0]]), whole)
        if value.opcode == 'fusion':
            nested = self._fused_instructions(value)
            return self._written_bytes(nested, _root(nested))
        if value.opcode == 'dynamic-update-slice':
            return sum(array.bytes for array in inner[value.operands[1]].arrays)
        return whole


def _parameters(computation: dict[str, Instruction]) -> list[Instruction]:
    return [instruction for instruction in computation.values() if instruction.opcode == 'parameter']


def _parameter_index(parameter: Instruction) -> int:
    """Returns N of `parameter(N)`."""
    return int(parameter.rest.strip('()').split(')')[0])


def _root(computation: dict[str, Instruction]) -> Instruction:
    return next(instruction for instruction in computation.values() if instruction.is_root)
