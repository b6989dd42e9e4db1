"""Chooses the dtype of a run's computation by its devices."""

import dataclasses
import re
from pathlib import Path
from typing import Any, TypeVar

import jax

from bert_jax.runtime import processes

ConfigT = TypeVar('ConfigT', bound=Any)

_AMPERE = 8.0  # compute capability of the first GPUs with bfloat16
_CPU_FLAGS = {'avx512_bf16', 'amx_bf16'}


def resolve_dtype(config: ConfigT) -> ConfigT:
    """Returns a config whose `model.dtype` is not 'auto': as suits the devices of all processes.

    Every process must call this.

    Args:
      config: of pretraining or fine-tuning.
    """
    if config.model.dtype != 'auto':
        return config
    is_fast = processes.min_over_processes(int(_multiplies_bfloat16_fast(jax.local_devices()[0])))
    return dataclasses.replace(config, model=config.model.with_dtype('bfloat16' if is_fast else 'float32'))


def _multiplies_bfloat16_fast(device: jax.Device) -> bool:
    if device.platform == 'gpu':
        return float(device.compute_capability) >= _AMPERE
    return device.platform == 'tpu' or bool(_CPU_FLAGS & _flags_of_cpu())


def _flags_of_cpu() -> set[str]:
    """Returns the names of the instruction sets of this machine's CPU, as Linux lists them; empty elsewhere."""
    path = Path('/proc/cpuinfo')
    found = re.search(r'^flags\s*:(.*)$', path.read_text(), re.MULTILINE) if path.exists() else None
    return set(found.group(1).split()) if found else set()
