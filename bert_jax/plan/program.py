"""The very train step of a run, compiled for a target that need not be here, and what the compiler says of it.

`python -m bert_jax.plan.program REQUEST.json ANSWER.json` compiles in a process of its own: a compiler for absent
devices wants its settings in the environment before jax starts, and may be stopped when it takes too long.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from bert_jax.config import Config, resolve
from bert_jax.errors import BadInput, is_exhausted
from bert_jax.files import json_digest, write_whole
from bert_jax.json_files import read_json
from bert_jax.plan import hlo
from bert_jax.plan.targets import Target, parse
from bert_jax.runtime.caches import cache_directory
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.memory import highest_bytes, lower_step, refused_bytes

QUICK, FULL = 'quick', 'full'
_COMPILERS = {'tpu': ('libtpu', 'plan-tpu'), 'gpu': ('jax_plugins.xla_cuda13', 'plan-gpu')}
_STEP = (
    'runtime/mesh.py',
    'train/gradients.py',
    'train/memory.py',
    'train/objective.py',
    'train/optimizer.py',
    'train/program.py',
    'train/sharding.py',
    'train/state.py',
    'train/step.py',
    'plan/program.py',
    *(f'plan/{name}.py' for name in ('hlo', 'hlo_parse', 'hlo_cost', 'hlo_collectives', 'kernels')),
)
_RECORDED = ('jax', 'jaxlib', 'flax', 'optax', 'libtpu', 'jax-cuda13-plugin', 'nvidia-cudnn-cu13')


@dataclasses.dataclass(frozen=True)
class Program:
    """One device's part of a compiled step. Bytes.

    arguments: state and batch.  temporaries: everything else that the compiler sets aside.  total_bytes: at the highest
    point, a donated argument and its result being one.  activations: what the loop over layers keeps for the backward
    pass.  refused: what the compiler said when the program did not fit; total_bytes is its figure then, and there is no
    work.
    """

    arguments: int
    temporaries: int
    total_bytes: float
    activations: int
    work: hlo.Work
    seconds: float
    refused: str = ''


class TooLong(Exception):
    """The compiler was stopped at the time limit."""


def missing(target: Target) -> str:
    """How to install the compiler for a target, or '' where it is there."""
    if target.device.kind not in _COMPILERS:
        return ''
    module, extra = _COMPILERS[target.device.kind]
    if importlib.util.find_spec(module.partition('.')[0]) and importlib.util.find_spec(module):
        return ''
    return f"pip install -e '.[{extra}]'"


def compile_for(config: Config, target: Target, effort: str = FULL, limit_s: float | None = None) -> Program:
    """The step compiled for an absent target; from the cache when this very program was compiled before.

    Args:
      effort: `full` is what a run compiles; `quick` leaves out the search for the fastest schedule (libtpu only), in a
        quarter of the time; its temporaries come out somewhat larger.

    Raises:
      TooLong: after limit_s seconds.
      BadInput: when the compiler is not installed, or fails.
    """
    if missing(target):
        raise BadInput('--target', f'the compiler for {target.device.name} is not installed', '', missing(target))
    path = _cache_path(config, target, effort)
    if path is not None and path.exists():
        return _program(read_json(path))
    with tempfile.TemporaryDirectory() as directory:
        request, answer = Path(directory) / 'request.json', Path(directory) / 'answer.json'
        request.write_text(json.dumps({'config': dataclasses.asdict(config), 'target': target.name, 'effort': effort}))
        command = [sys.executable, '-m', 'bert_jax.plan.program', str(request), str(answer)]
        environment = os.environ | _environment(target)
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            raise TooLong(f'stopped after {limit_s:.0f} s') from error
        if not answer.exists():
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise BadInput(
                '--target', f'the compiler for {target.name} failed: {said[-1] if said else done.returncode}'
            )
        text = answer.read_text()
    if path is not None:
        with contextlib.suppress(OSError):  # the cache only saves time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)
    return _program(json.loads(text))


def _cache_path(config: Config, target: Target, effort: str) -> Path | None:
    """Named by everything that the program depends on: config, target, versions, the code that makes the step.

    None for a user without a cache directory.
    """
    try:
        cache = cache_directory()
    except OSError:
        return None
    package = Path(__file__).parents[1]
    sources = [*sorted(package.glob('model/*.py')), *(package / name for name in _STEP)]
    code = hashlib.sha256(b''.join(path.read_bytes() for path in sources)).hexdigest()
    installed = {dist.metadata['Name']: dist.version for dist in importlib.metadata.distributions()}
    versions = {name: installed.get(name) for name in _RECORDED}
    key = json_digest([dataclasses.asdict(config), target.name, effort, versions, code])
    return cache / 'bert_jax' / 'plan' / f'{key}.json'


def _environment(target: Target) -> dict[str, str]:
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get('PYTHONPATH')]))
    common = {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': path, 'TF_CPP_MIN_LOG_LEVEL': '3'}
    if target.device.kind == 'gpu':
        return common | {'XLA_FLAGS': '--xla_gpu_autotune_level=0'}  # nothing can be timed on an absent GPU
    return common | {
        'TPU_SKIP_MDS_QUERY': '1',
        'TPU_ACCELERATOR_TYPE': 'v5litepod-16',  # any that exists: the topology is asked for by its own name
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # two plans at a time; no chip is opened
        'TPU_MIN_LOG_LEVEL': '3',
    }


def _program(fields: dict[str, Any]) -> Program:
    work = fields.pop('work')
    operations = tuple(hlo.Operation(*values) for values in work['operations'])
    collectives = tuple(
        hlo.Collective(kind, tuple(map(tuple, groups)), size, count, overlapped)
        for kind, groups, size, count, overlapped in work['collectives']
    )
    return Program(**fields, work=hlo.Work(operations, collectives, work['unknown_loops']))


# --- The compiling side. ---


def describe_gpu(target: Target) -> str:
    """The `GpuTargetConfigProto` of a GPU, as text: the limits of its generation (CUDA programming guide, technical
    specifications by compute capability) and the figures of its data sheet."""
    major, cores, units, l2_mib, shared_kib, clock_ghz = {
        'a100': (8, 108, 64, 40, 164, 1.41),
        'h100': (9, 132, 128, 50, 228, 1.98),
        'h200': (9, 132, 128, 50, 228, 1.98),
        'b200': (10, 148, 128, 126, 228, 1.965),
    }[target.device.name]
    return f"""
        gpu_device_info {{
          cuda_compute_capability {{ major: {major} minor: 0 }}
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          shared_memory_per_block: {48 * 1024} shared_memory_per_block_optin: {(shared_kib - 1) * 1024}
          shared_memory_per_core: {shared_kib * 1024}
          core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock_ghz}
          l2_cache_size: {l2_mib * 1024 * 1024}
          memory_bandwidth: {target.device.memory_bandwidth:.0f} device_memory_size: {target.device.memory_bytes:.0f}
          driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
          dnn_version: "9.12.0"
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 12 }}
        device_description_str: "NVIDIA {target.device.name.upper()}"
    """


def _devices(target: Target) -> list:
    chip, _, shape = target.name.partition(':')
    if target.device.kind == 'gpu':
        return topologies.get_topology_desc(
            chip, 'cuda', topology=f'1x{shape}', target_config=describe_gpu(target)
        ).devices
    options: dict[str, Any] = {}
    if chip in ('tpu-v4', 'tpu-v5p'):
        options['chip_config_name'] = 'megacore'  # its two cores as one device, as on a real slice
    if target.num_devices == 1:
        options['chips_per_host_bounds'] = (1, 1, 1)
    return topologies.get_topology_desc(f'{chip.removeprefix("tpu-")}:{shape}', 'tpu', **options).devices


def compile_step(config: Config, devices: Sequence, effort: str = FULL) -> tuple[Program, Any]:
    """The step compiled for these devices; the second is what jax gives (None if refused)."""
    start = time.perf_counter()
    mesh = make_mesh(config.mesh, config.model, config.train, list(devices))
    lowered = lower_step(config, mesh, config.tokenizer.vocab_size)
    options: dict[str, Any] | None = {'exec_time_optimization_effort': -1.0} if effort == QUICK else None
    try:
        compiled = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        seconds = time.perf_counter() - start
        needed = refused_bytes(str(error))
        return Program(0, 0, needed, 0, hlo.Work((), (), 0), seconds, str(error).splitlines()[0]), None
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None  # every backend that plans are made for has both
    rows = config.train.global_batch_size // config.train.microbatches // mesh.shape['data'] // mesh.shape['fsdp']
    program = Program(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        total_bytes=highest_bytes(memory, devices[0].platform),
        activations=hlo.loop_bytes(text, config.model.num_layers, rows),
        work=hlo.read(text),
        seconds=time.perf_counter() - start,
    )
    return program, compiled


def main(request_path: str, answer_path: str) -> None:
    """Compiles what a request asks for; writes the answer when it is whole."""
    request = read_json(request_path)
    target = parse(request['target'])
    program, _ = compile_step(resolve(request['config']), _devices(target), request['effort'])
    fields = {field.name: getattr(program, field.name) for field in dataclasses.fields(program)}
    fields['work'] = {
        'operations': [dataclasses.astuple(operation) for operation in program.work.operations],
        'collectives': [dataclasses.astuple(collective) for collective in program.work.collectives],
        'unknown_loops': program.work.unknown_loops,
    }
    Path(answer_path).write_text(json.dumps(fields))


if __name__ == '__main__':
    main(*sys.argv[1:])
