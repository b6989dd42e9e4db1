"""What the kernels of attention cost: to XLA they are custom calls, whose insides stand nowhere in its text.

`B` rows, `L` positions, `H` heads, `K` head size.
"""

import math
import re
from collections.abc import Sequence
from typing import Protocol

# Products of L x L x K for each head, by what the call or its kernel is named: scores and weighted values; their
# gradients make the scores again (jax's GPU kernel twice: once for keys and values, once for queries).
_PRODUCTS = {'fmha': 2, 'fmha_backward': 5, 'mha_forward': 2, 'mha_backward': 7}


class Sized(Protocol):
    """An array of a program."""

    @property
    def sizes(self) -> tuple[int, ...]: ...


def cost(attributes: str, operands: Sequence[Sized]) -> tuple[float, float]:
    """(FLOPs of matrix products, exponentials) of a custom call; a kernel of a TPU brings its own count, others go by
    their name and the [B, L, H, K] of their queries. (0, 0) for what multiplies nothing.
    """
    stated = re.search(r'"cost_estimate":\{"flops":"?(\d+)"?,"transcendentals":"?(\d+)', attributes)
    if stated:
        return float(stated.group(1)), float(stated.group(2))
    kind = _kind(attributes)
    if kind is None:
        return 0.0, 0.0
    B, L, H, K = next(array.sizes for array in operands if len(array.sizes) == 4)
    squares = float(math.prod((B, H, L, L)))
    return 2.0 * _PRODUCTS[kind] * squares * K, squares


def _kind(attributes: str) -> str | None:
    if re.search(r'custom_call_target="__cudnn\$fmha', attributes):
        return 'fmha_backward' if re.search(r'custom_call_target="[^"]*Backward', attributes) else 'fmha'
    triton = re.search(r'custom_call_target="[^"]*triton[^"]*"', attributes)
    named = triton and re.search(r'\b(mha_forward|mha_backward)\b', attributes)
    return named.group(1) if named else None
