"""Computes what attention kernels cost. They are custom calls to XLA, and their bodies are not in the HLO.

`B` rows, `L` positions, `H` heads, `K` head size.
"""

import math
import re
from collections.abc import Sequence
from typing import Protocol

# Matmuls of L x L x K per head. Forward: scores and weighted values. Backward: the scores again (jax's GPU kernel
# recomputes them twice, for keys and values and for queries) and the gradients of both.
_NUM_MATMULS = {'fmha': 2, 'fmha_backward': 5, 'mha_forward': 2, 'mha_backward': 7}


class Sized(Protocol):
    """An array of a program."""

    @property
    def sizes(self) -> tuple[int, ...]: ...


def cost(attributes: str, operands: Sequence[Sized]) -> tuple[float, float]:
    """Returns the (matmul FLOPs, exponentials) of a custom call; (0, 0) for one without matmuls.

    TPU kernels state their own cost. GPU kernels are recognized by name; their queries have shape [B, L, H, K].
    """
    stated = re.search(r'"cost_estimate":\{"flops":"?(\d+)"?,"transcendentals":"?(\d+)', attributes)
    if stated:
        return float(stated.group(1)), float(stated.group(2))
    kernel = _gpu_kernel(attributes)
    if kernel is None:
        return 0.0, 0.0
    B, L, H, K = next(array.sizes for array in operands if len(array.sizes) == 4)
    num_scores = float(math.prod((B, H, L, L)))
    return 2.0 * _NUM_MATMULS[kernel] * num_scores * K, num_scores


def _gpu_kernel(attributes: str) -> str | None:
    """Returns the key of `_NUM_MATMULS` for a GPU attention kernel; None for other calls."""
    if re.search(r'custom_call_target="__cudnn\$fmha', attributes):
        return 'fmha_backward' if re.search(r'custom_call_target="[^"]*Backward', attributes) else 'fmha'
    triton = re.search(r'custom_call_target="[^"]*triton[^"]*"', attributes)
    named = triton and re.search(r'\b(mha_forward|mha_backward)\b', attributes)
    return named.group(1) if named else None
