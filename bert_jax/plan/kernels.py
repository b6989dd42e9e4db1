"""Computes what attention kernels cost. They are custom calls to XLA, and their bodies are not in the HLO.

`B` rows, `L` positions, `H` heads, `K` head size.
"""

import re
from collections.abc import Sequence
from typing import Protocol

# Matmuls of scores x K per head, and exponentials per score. Forward: scores and weighted values. Backward: the scores
# again and the gradients of both factors; `model/gpu_attention.py` computes scores and the gradient of weights twice.
_MATMULS = {'forward': 2, 'backward': 7}
_EXPONENTIALS = {'forward': 1, 'backward': 2}


class Sized(Protocol):
    """An array of a program."""

    @property
    def sizes(self) -> tuple[int, ...]: ...


def cost(attributes: str, operands: Sequence[Sized]) -> tuple[float, float]:
    """Returns the (matmul FLOPs, exponentials) of a custom call; (0, 0) for one without matmuls.

    TPU kernels state their own cost. GPU kernels have the scores of a head in their name; their queries have shape
    [B, L, parts, H, K].
    """
    stated = re.search(r'"cost_estimate":\{"flops":"?(\d+)"?,"transcendentals":"?(\d+)', attributes)
    if stated:
        return float(stated.group(1)), float(stated.group(2))
    triton = re.search(r'custom_call_target="[^"]*triton[^"]*"', attributes)
    kernel = triton and re.search(r'attention_(forward|backward)_of_(\d+)_scores', attributes)
    if not kernel:
        return 0.0, 0.0
    B, _, _, H, K = next(array.sizes for array in operands if len(array.sizes) == 5)
    num_scores = float(B * H * int(kernel.group(2)))
    return 2.0 * _MATMULS[kernel.group(1)] * num_scores * K, _EXPONENTIALS[kernel.group(1)] * num_scores
