"""Checks whether a step fits a device: the memory it needs (from the compiler), the memory available, and advice."""

import bisect
import contextlib
import dataclasses
import functools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from bert_jax.config import Config, max_sequences, num_predictions
from bert_jax.console import say, size
from bert_jax.data.batches import Batch
from bert_jax.errors import BadInput, is_exhausted
from bert_jax.model.replaced_tokens import build_of
from bert_jax.runtime import processes
from bert_jax.runtime.mesh import batch_sharding, mesh_of_run
from bert_jax.train.objectives import objective_of
from bert_jax.train.program import build_program

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
_LESS_KEPT = {'none': ('dots', 'full'), 'dots': ('full',), 'full': ()}


def batch_shapes(config: Config, mesh: Mesh | AbstractMesh) -> Batch:
    """Returns the shapes of a global batch with the shardings of the run."""
    rows, length = config.train.global_batch_size, config.data.sequence_length
    predictions, sharding = num_predictions(config.data), batch_sharding(mesh)
    num_sequences = max_sequences(config.data)
    widths = {'masked': predictions, 'cls': num_sequences, 'next': num_sequences}
    shapes: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(
            (rows, widths.get(name.partition('_')[0], length)),
            np.float32 if name.endswith('weights') else np.int32,
            sharding=sharding,
        )
        for name in Batch._fields
    }
    return Batch(**shapes)


def lower_step(config: Config, mesh: Mesh, vocab_size: int) -> jax.stages.Lowered:
    """Lowers the step of a run, or of a phase with its values in the single fields; nothing is allocated."""
    build, objective = build_of(config.objective), objective_of(config.objective)
    program = build_program(
        config.model, config.optimizer, config.train, vocab_size, mesh, build=build, objective=objective
    )
    return program.lower(batch_shapes(config, mesh))


def highest_bytes(memory: Any, platform: str) -> int:
    """Returns the peak bytes of a compiled program (`compiled.memory_analysis()`).

    libtpu reports its peak, which it compares with the device's memory; elsewhere the temporaries are one block that is
    allocated for the whole step.
    """
    if platform == 'tpu':
        return memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return kept + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes


def refused_bytes(message: str) -> float:
    """Returns the bytes that a rejected program needs, from libtpu's message (`Used 20.5G of …`), or inf."""
    found = re.search(r'(?:Used|required[^(]*\()\s*([\d.]+)([KMGT])', message)
    return float(found.group(1)) * _UNITS[found.group(2)] if found else math.inf


def device_bytes() -> int:
    """Returns the usable bytes of the smallest device of all processes; every process must call this."""
    return processes.min_over_processes(_local_device_bytes())


def _local_device_bytes() -> int:
    """Returns the usable bytes per local device: jax's limit, or a share of this machine's free memory."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats() or {}
    return stats['bytes_limit'] if 'bytes_limit' in stats else _free_bytes() // len(devices)


def _free_bytes() -> int:
    """Returns the bytes that a new program could allocate on this machine, within its control group's limit."""
    free = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    information, limit, used = (Path(path) for path in ('/proc/meminfo', *_CONTROL_GROUP))
    if information.exists() and (available := re.search(r'MemAvailable:\s+(\d+) kB', information.read_text())):
        free = int(available.group(1)) * 1024
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != 'max':
        free = min(free, int(most) - int(used.read_text()))
    return free


_CONTROL_GROUP = ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory.current')


def resolve_microbatches(config: Config, mesh: Mesh, vocab_size: int, limit: int | None = None) -> Config:
    """Replaces a `train.microbatches` of -1 by the fewest microbatches whose step fits every device, in each phase.

    Args:
      limit: bytes of a device, instead of `device_bytes()`.

    Raises:
      BadInput: if not even one row per device fits.
    """
    if all(phase.train.microbatches != -1 for phase in config.in_phases):
        return config
    limit = limit or device_bytes()
    numbers = [
        _fewest_microbatches(phase, mesh, vocab_size, limit, f'Phase {index}: ' if config.phases else '')
        for index, phase in enumerate(config.in_phases, start=1)
    ]
    phases = tuple(
        dataclasses.replace(phase, microbatches=number)
        for phase, number in zip(config.phases, numbers, strict=False)  # none without phases
    )
    return dataclasses.replace(_with_microbatches(config, max(numbers)), phases=phases)


def _fewest_microbatches(config: Config, mesh: Mesh, vocab_size: int, limit: int, label: str) -> int:
    """Returns the microbatches of a phase, and reports them after its label if they were not given."""
    if config.train.microbatches != -1:
        return config.train.microbatches
    rows = config.train.global_batch_size // mesh.shape['data'] // mesh.shape['fsdp']
    numbers = [n for n in range(1, rows + 1) if rows % n == 0]

    @functools.cache
    def needed(number: int) -> float:
        return _compiled_bytes(_with_microbatches(config, number), mesh, vocab_size)

    fewest = bisect.bisect_left(numbers, True, key=lambda number: needed(number) <= limit)
    if fewest == len(numbers):
        found = f'needs {size(needed(numbers[-1]))} with {numbers[-1]} microbatches; a device has {size(limit)}'
        raise _does_not_fit(found, config, ())
    number = numbers[fewest]
    say(f'{label}Microbatches: {number}, the fewest that fit: {size(needed(number))} of the {size(limit)} of a device')
    return number


def _with_microbatches(config: Config, number: int) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, microbatches=number))


def _compiled_bytes(config: Config, mesh: Mesh, vocab_size: int) -> float:
    try:
        memory = lower_step(config, mesh, vocab_size).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        return refused_bytes(str(error))
    return highest_bytes(memory, mesh.devices.flat[0].platform)


@contextlib.contextmanager
def reporting_out_of_memory(config: Config, *, finds_microbatches: bool = True) -> Iterator[None]:
    """Reports a device that runs out of memory inside as bad input: what was needed, what it has, what to try next.

    Args:
      config: of its sections only `model`, `train`, `mesh` and the phases are read.
      finds_microbatches: whether the run accepts `train.microbatches=-1`.

    Raises:
      BadInput: if a device ran out of memory during compilation or in a step.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        raise _exhausted(str(error), config, finds_microbatches) from error


def _exhausted(message: str, config: Config, finds_microbatches: bool) -> BadInput:
    total = refused_bytes(message)
    piece = re.search(r'allocat\w*\s+(?:of\s+)?([\d.]+)\s*(bytes|[KMGT])', message)
    needed = f'needs {size(total)}' if math.isfinite(total) else 'ran out of memory'
    if piece:
        unit = '' if piece.group(2) == 'bytes' else piece.group(2)
        needed += f' when it asked for {size(float(piece.group(1)) * _UNITS[unit])} more'
    mesh = mesh_of_run(config)
    rows = math.gcd(*(phase.train.global_batch_size for phase in config.in_phases))
    rows //= mesh.shape['data'] * mesh.shape['fsdp']
    more = [n for n in range(max(config.train.microbatches, 1) + 1, rows + 1) if rows % n == 0]
    found = f'{needed}; a device has {size(_local_device_bytes())}'
    return _does_not_fit(found, config, more[:1], finds_microbatches)


def _does_not_fit(
    found: str, config: Config, microbatches: tuple[int, ...] | list[int], finds_microbatches: bool = False
) -> BadInput:
    tries = [f'--config.train.microbatches={number}' for number in microbatches]
    tries += [f'--config.model.remat={policy}' for policy in _LESS_KEPT[config.model.remat]]
    if config.model.dtype == 'float32':
        tries.append('--config.model.dtype=bfloat16')
    tries.append('--config.mesh.fsdp=-1 --config.mesh.data=1' if jax.device_count() > 1 else 'more devices')
    if finds_microbatches and config.train.microbatches != -1:
        finds = '; --config.train.microbatches=-1 finds the fewest that fit'
    else:
        finds = ''
    return BadInput('memory', f'the step {found}', 'a step that fits', ', or '.join(tries[:3]) + finds)
