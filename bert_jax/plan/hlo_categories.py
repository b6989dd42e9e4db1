"""Names what each instruction of a train step is for, from the source code that it was traced from.

XLA keeps the stack frame of every operation. A fusion combines operations of several places: what most of its elements
are computed for counts.
"""

import collections
import functools
import re
from collections.abc import Iterator

from bert_jax.plan.hlo_parse import Instruction, Module, is_allocation

FORWARD, BACKWARD = 'forward', 'backward'
MATMULS, NORM, ACTIVATION = 'matmuls', 'norm, dropout, residual', 'activation'
ATTENTION_KERNELS, ATTENTION, ROTARY = 'attention kernels', 'attention outside kernels', 'rotary positions'
STACKING, SLICING, FILLING = 'scan: stacking', 'scan: slicing', 'scan: zero-filling'
BIASES, MOVES = 'biases', 'casts and copies'
HEAD_MATMULS, HEAD, EMBEDDINGS = 'head matmuls', 'head, other', 'embeddings'
OPTIMIZER, CLIP, OTHER = 'optimizer', 'clip and norm', 'other'
CATEGORIES = (
    f'{MATMULS} {FORWARD}', f'{MATMULS} {BACKWARD}', ATTENTION_KERNELS, ATTENTION, ROTARY, STACKING, SLICING, FILLING,
    f'{NORM} {FORWARD}', f'{NORM} {BACKWARD}', f'{ACTIVATION} {FORWARD}', f'{ACTIVATION} {BACKWARD}', BIASES, MOVES,
    HEAD_MATMULS, HEAD, EMBEDDINGS, OPTIMIZER, CLIP, OTHER,
)  # fmt: skip
_IN_TWO_DIRECTIONS = {MATMULS, NORM, ACTIVATION}

# Purposes by the frames `file.py:Function` of an operation; the first match counts.
_PURPOSES = (
    (CLIP, r'apply_gradients\b.*(tree_norm|clip)'),
    (OPTIMIZER, r'step\.py:apply_gradients'),
    (HEAD, r'losses\.py:|masked_lm\.py:|\.decoder_inputs|\.nsp_logits|\.pool\b|\.loss\b'),
    (ATTENTION, r'\w*attention\.py:'),
    (ROTARY, r'rotary\.py:'),
    (EMBEDDINGS, r'Embeddings\.|(masked|mixture|next_token)\.py:\S+ (\S+ )?vocabulary\.py:'),
    (ACTIVATION, r':_?(gelu|silu)|GatedMlp\.'),
    (NORM, r'\w*[nN]orm\b|_norm|dropout\.py:'),
    (BIASES, r'matmul\.py:|layers\.py:(Dense\.__call__|apply_together)'),
    (NORM, r':(EncoderLayer|PreNormLayer|PreNormEncoder|Encoder)\.__call__'),
)
_FREE = {'parameter', 'constant', 'broadcast', 'bitcast', 'tuple', 'get-tuple-element', 'iota', 'reshape'}
_MOVES = {
    'copy', 'convert', 'transpose', 'slice', 'concatenate', 'pad', 'reverse', 'dynamic-slice', 'dynamic-update-slice',
}  # fmt: skip
_JOINS = ('copy-done', 'slice-done', 'async-done', 'bitcast', 'reshape')
_STARTS = ('copy-start', 'slice-start', 'async-start')


class Categories:
    """The category of each instruction of a module, and where its source is."""

    def __init__(self, module: Module):
        self.module = module
        self.frames = _StackFrames(module.text)

    def of(self, instruction: Instruction) -> tuple[str, str]:
        """Returns the (category, source) of an instruction that runs; the source is `file.py:Function` or ''."""
        if instruction.opcode in _STARTS:
            instruction = self._other_end(instruction) or instruction
        deciding = list(self._deciding(instruction))
        purposes = collections.Counter[tuple[str, str, str]]()
        for inner in deciding:
            if found := self._purpose(inner):
                purposes[found] += _num_elements(inner)
        by_purpose = collections.Counter[tuple[str, str]]()
        for (purpose, direction, _), size in purposes.items():
            by_purpose[purpose, direction] += size
        (purpose, direction), _ = max(by_purpose.items(), key=lambda item: item[1], default=((OTHER, FORWARD), 0))
        of_purpose = {each[2]: size for each, size in purposes.items() if each[:2] == (purpose, direction)}
        source = max(of_purpose, key=lambda each: of_purpose[each], default='')
        purpose = self._by_opcodes(deciding, instruction, purpose)
        return f'{purpose} {direction}' if purpose in _IN_TWO_DIRECTIONS else purpose, source

    def _deciding(self, instruction: Instruction) -> Iterator[Instruction]:
        """Yields the operations on arrays that an instruction consists of; none if it only broadcasts a constant."""
        called = instruction.attribute(r'calls=%?([\w.-]+)')
        if called is None:
            is_index = instruction.opcode != 'custom-call' and _num_elements(instruction) == 1
            if instruction.opcode not in _FREE and not is_index and not is_allocation(instruction):
                yield instruction
            return
        for inner in self.module.computations[called].values():
            yield from self._deciding(inner)

    def _by_opcodes(self, deciding: list[Instruction], instruction: Instruction, purpose: str) -> str:
        """Returns the category of an instruction from what it does, or else its purpose."""
        opcodes = {inner.opcode for inner in deciding}
        if opcodes & {'dot', 'convolution'} or 'custom_call_target="__cublas' in instruction.rest:
            return {HEAD: HEAD_MATMULS, ATTENTION: ATTENTION}.get(purpose, MATMULS)
        if instruction.opcode == 'custom-call' and purpose == ATTENTION:
            return ATTENTION_KERNELS
        if opcodes <= {'copy', 'convert'} and all(
            array.elements == 1 for array in self.module.operand_arrays(instruction)
        ):
            return FILLING
        if purpose in (OPTIMIZER, CLIP, HEAD, EMBEDDINGS):
            return purpose
        written = self._roots(instruction)
        if all(root.opcode == 'dynamic-update-slice' and self._is_of_stack(root) for root in written):
            return STACKING
        if purpose in (ATTENTION, ROTARY) and not all(root.opcode == 'dynamic-slice' for root in written):
            return purpose
        if opcodes <= _MOVES:
            return (
                SLICING
                if all(root.opcode == 'dynamic-slice' and self._is_of_stack(root) for root in written)
                else MOVES
            )
        return purpose

    def _roots(self, instruction: Instruction) -> list[Instruction]:
        """Returns what computes the results of an instruction, inside of a fusion and behind changes of the layout."""
        called = instruction.attribute(r'calls=%?([\w.-]+)')
        if called is None:
            return [instruction]
        inner = self.module.computations[called]
        open_ends = [next(each for each in inner.values() if each.is_root)]
        roots = []
        while open_ends:
            end = open_ends.pop()
            if end.opcode == 'tuple':
                open_ends += [inner[name] for name in end.operands]
            elif end.opcode in ('bitcast', 'reshape', 'copy', 'transpose', 'convert') and end.operands[0] in inner:
                open_ends.append(inner[end.operands[0]])
            else:
                roots += self._roots(end)
        return roots

    def _is_of_stack(self, slicing: Instruction) -> bool:
        """Returns whether a slice is one item along the first dim of an array."""
        part = slicing if slicing.opcode == 'dynamic-slice' else self.module.operand(slicing, 1)
        whole, sizes = self.module.operand(slicing, 0).arrays[0].sizes, part.arrays[0].sizes
        return sizes[:1] == (1,) != whole[:1] and sizes[1:] == whole[1:]

    def _purpose(self, instruction: Instruction) -> tuple[str, str, str] | None:
        """Returns the (purpose, direction, source) of one operation; None without a known frame."""
        frames = self.frames.of(instruction)
        if not frames:
            return None
        name = instruction.attribute(r'op_name="([^"]*)"') or ''
        return _purpose_of(frames), BACKWARD if 'transpose(' in name else FORWARD, frames.rpartition(' ')[2]

    def _other_end(self, start: Instruction) -> Instruction | None:
        """Returns what uses a copy into on-chip memory, or what made the array that is copied out of it."""
        if self.module.operand(start, 0).arrays[0].on_chip:
            return self.module.operand(start, 0)
        ends = self._users(start)
        for end in ends:  # grows while it is read
            if end.opcode in _JOINS or 'custom_call_target="ConcatBitcast"' in end.rest:
                ends += self._users(end)
            else:
                return end
        return None

    def _users(self, instruction: Instruction) -> list[Instruction]:
        computation = self.module.computations[self.module.home[instruction.name]]
        return [user for user in computation.values() if instruction.name in user.operands]


def _num_elements(instruction: Instruction) -> int:
    return max((array.elements for array in instruction.arrays), default=0)


@functools.cache
def _purpose_of(frames: str) -> str:
    return next((purpose for purpose, pattern in _PURPOSES if re.search(pattern, frames)), OTHER)


class _StackFrames:
    """The tables of stack frames at the head of a program's text; empty in programs of old versions of XLA."""

    def __init__(self, text: str):
        files, functions = _names(text, 'FileNames'), _names(text, 'FunctionNames')
        locations, frames = _fields(text, 'FileLocations'), _fields(text, 'StackFrames')
        # XLA prints the parent's id plus 1, so that the first frame appears to be its own parent.
        shift = any(frame.get('parent_frame_id') == index for index, frame in frames.items())
        self._chains: dict[int, str] = {}
        for index, frame in sorted(frames.items()):
            location = locations[frame['file_location_id']]
            file = files[location['file_name_id']].rpartition('/')[2]
            name = f'{file}:{functions[location["function_name_id"]].replace("<locals>.", "")}'
            parent = self._chains.get(frame.get('parent_frame_id', 0) - shift, '')
            self._chains[index] = f'{parent} {name}'.strip()

    def of(self, instruction: Instruction) -> str:
        """Returns the frames of an operation, outermost first, separated by spaces; '' if they are unknown."""
        index = instruction.attribute(r'stack_frame_id=(\d+)')
        return self._chains.get(int(index), '') if index else ''


def _section(text: str, heading: str) -> list[str]:
    found = re.search(rf'^{heading}\n((?:\d+ .*\n)*)', text, re.MULTILINE)
    return found.group(1).splitlines() if found else []


def _names(text: str, heading: str) -> dict[int, str]:
    lines = (line.partition(' ') for line in _section(text, heading))
    return {int(index): name.strip('"') for index, _, name in lines}


def _fields(text: str, heading: str) -> dict[int, dict[str, int]]:
    lines = (line.partition(' ') for line in _section(text, heading))
    return {int(index): {key: int(n) for key, n in re.findall(r'(\w+)=(\d+)', rest)} for index, _, rest in lines}
