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
_INTEGERS = {'s8', 's16', 's32', 's64', 'u8', 'u16', 'u32', 'u64'}
# Operations whose result has an element for each element of an operand, or fewer: they read no more than is used.
_ELEMENTWISE = _SIMPLE | _TRANSCENDENTAL | {
    'bitcast', 'broadcast', 'copy', 'reshape', 'transpose', 'pad', 'reverse', 'concatenate', 'tuple',
    'get-tuple-element', 'bitcast-convert', 'reduce-precision', 'opt-barrier', 'is-finite', 'floor', 'ceil', 'sign',
    'remainder', 'round-nearest-even',
}  # fmt: skip
_HASH_OPERATIONS = 11  # `model/dropout.is_kept` of one element
_STARTS = ('copy-start', 'slice-start', 'async-start')


class Costs:
    """The costs of one call of an instruction, including the computations that it calls."""

    def __init__(self, module: Module, *, kernels_drop: bool = False):
        """Args: kernels_drop, as of `hlo.read_work`."""
        self.module = module
        self.operations_per_exponential = _HASH_OPERATIONS * kernels_drop

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
        if _is_cublas(instruction):
            return self._cublas_flops(instruction)
        if instruction.opcode == 'custom-call':
            return kernels.cost(instruction.rest, self.module.operand_arrays(instruction))[0]
        called = instruction.attribute(r'(?:calls|to_apply)=%?([\w.-]+)')
        if instruction.opcode in ('fusion', 'call', 'async-start') and called:
            return sum(self.flops(inner) for inner in self.module.computations[called].values())
        return 0.0

    def elementwise(self, instruction: Instruction) -> tuple[float, float, float]:
        """Returns the number of elementwise operations: (simple, transcendental, on integers)."""
        if instruction.opcode == 'custom-call':
            exponentials = kernels.cost(instruction.rest, self.module.operand_arrays(instruction))[1]
            return 0.0, exponentials, exponentials * self.operations_per_exponential
        called = instruction.attribute(r'calls=%?([\w.-]+)')
        if instruction.opcode != 'fusion' or called is None:
            return _operations(
                self.module, instruction, max((array.elements for array in instruction.arrays), default=0)
            )
        total = (0.0, 0.0, 0.0)
        for inner, used in self._used_elements(called):
            if inner.opcode != 'fusion':
                simple, transcendental, integer = _operations(self.module, inner, used)
                total = total[0] + simple, total[1] + transcendental, total[2] + integer
        return total

    def _cublas_flops(self, call: Instruction) -> float:
        """Returns the FLOPs of a matmul that XLA leaves to cuBLAS; the second result is memory to work in."""
        dims = call.required(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
        sizes = self.module.operand(call, 0).arrays[0].sizes
        contracted = math.prod(sizes[int(dim)] for dim in re.findall(r'\d+', dims))
        return 2.0 * call.arrays[0].elements * contracted

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
        if instruction.opcode in _STARTS:
            # copy-start: (to, from, context); the others: ((from), to, context).
            to = instruction.arrays[0 if instruction.opcode == 'copy-start' else -2]
            is_read = not self.module.operand(instruction, 0).arrays[0].on_chip
            return float(to.traffic + to.bytes * is_read)
        written = instruction.arrays[:1] if _is_cublas(instruction) else instruction.arrays
        operands = self.module.operand_arrays(instruction)
        return float(sum(array.traffic for array in written) + sum(array.traffic for array in operands))

    def _fusion_traffic(self, fusion: Instruction) -> float:
        """Returns the traffic of a fusion. Operands and results in on-chip memory cost nothing."""
        called = fusion.required(r'calls=%?([\w.-]+)')
        read = 0.0
        for inner, used in self._used_elements(called):
            if inner.opcode == 'parameter':
                operand = self.module.operand(fusion, _parameter_index(inner)).arrays
                share = used / max(inner.arrays[0].elements, 1) if len(inner.arrays) == 1 else 1.0
                read += share * sum(array.traffic for array in operand)
        inner = self.module.computations[called]
        written = sum(array.traffic for array in fusion.arrays)
        return read + min(self._written_bytes(inner, _root(inner)), written)

    def _used_elements(self, called: str, used_of_root: float = math.inf) -> list[tuple[Instruction, float]]:
        """Returns the instructions of a fused computation, and of those inside it, with the elements that are used.

        A fusion computes and reads only what its result needs: of a table behind a gather, the rows that it takes.

        Args:
          used_of_root: elements of the result that are used.
        """
        computation = self.module.computations[called]
        used = dict.fromkeys(computation, 0.0)
        used[_root(computation).name] = used_of_root
        found = []
        for instruction in reversed(computation.values()):  # users come after what they use
            size = sum(array.elements for array in instruction.arrays)
            count = min(used[instruction.name], float(size))
            found.append((instruction, count))
            for index, name in enumerate(instruction.operands):
                if name in computation and count:
                    used[name] += self._used_of_operand(instruction, index, computation[name], count, found)
        return found

    def _used_of_operand(
        self, user: Instruction, index: int, operand: Instruction, count: float, found: list[tuple[Instruction, float]]
    ) -> float:
        """Returns how many elements of an operand are used if `count` elements of the result are.

        Args:
          found: to which what is inside of a fusion is added, at its first operand.
        """
        size = float(sum(array.elements for array in operand.arrays))
        if user.opcode == 'fusion':
            inside = self._used_elements(user.required(r'calls=%?([\w.-]+)'), count)
            if index == 0:
                found += [(inner, used) for inner, used in inside if inner.opcode != 'parameter']
            return sum(
                used for inner, used in inside if inner.opcode == 'parameter' and _parameter_index(inner) == index
            )
        if user.opcode in _SLICES and index == 0 or user.opcode in _ELEMENTWISE:
            return min(count, size)
        if user.opcode == 'dynamic-update-slice' and index == 0:
            return 0.0  # updated in place: `_written_bytes` counts the update
        if user.opcode == 'reduce':
            return size * count / max(sum(array.elements for array in user.arrays), 1)
        return size

    def _written_bytes(self, inner: dict[str, Instruction], value: Instruction) -> int:
        """Returns how many bytes of a result a fused computation writes: the update, if it updates in place."""
        if value.opcode == 'tuple':
            return sum(self._written_bytes(inner, inner[name]) for name in value.operands)
        whole = sum(array.bytes for array in value.arrays)
        if value.opcode in ('bitcast', 'copy', 'convert') and value.operands[0] in inner:
            return min(self._written_bytes(inner, inner[value.operands[0]]), whole)
        if value.opcode == 'fusion':
            nested = self.module.computations[value.required(r'calls=%?([\w.-]+)')]
            return self._written_bytes(nested, _root(nested))
        if value.opcode == 'dynamic-update-slice':
            return sum(array.bytes for array in inner[value.operands[1]].arrays)
        return whole


def _operations(module: Module, instruction: Instruction, count: float) -> tuple[float, float, float]:
    """Returns the (simple, transcendental, integer) operations for `count` elements of a result."""
    if instruction.opcode == 'reduce':
        share = count / max(instruction.arrays[0].elements, 1)
        return share * module.operand(instruction, 0).arrays[0].elements, 0.0, 0.0
    if instruction.opcode in _TRANSCENDENTAL:
        return 0.0, count, 0.0
    if instruction.opcode not in _SIMPLE:
        return 0.0, 0.0, 0.0
    is_integer = module.operand(instruction, 0).arrays[0].dtype in _INTEGERS
    return (0.0, 0.0, count) if is_integer else (count, 0.0, 0.0)


def _is_cublas(instruction: Instruction) -> bool:
    return instruction.opcode == 'custom-call' and 'custom_call_target="__cublas' in instruction.rest


def _parameter_index(parameter: Instruction) -> int:
    """Returns N of `parameter(N)`."""
    return int(parameter.rest.strip('()').split(')')[0])


def _root(computation: dict[str, Instruction]) -> Instruction:
    return next(instruction for instruction in computation.values() if instruction.is_root)
