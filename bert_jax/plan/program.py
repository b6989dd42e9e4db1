"""Compiles the train step of a run for local or absent devices, and reads its memory and work.

`python -m bert_jax.plan.program REQUEST.json ANSWER.json` compiles in a separate process. A compiler for absent devices
needs its settings in the environment before jax starts, and can be stopped if it takes too long.
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

from bert_jax.activity import activity
from bert_jax.config import Config, resolve
from bert_jax.errors import BadInput, is_exhausted
from bert_jax.files import json_digest, write_whole
from bert_jax.json_files import read_json
from bert_jax.plan import hlo
from bert_jax.plan.hlo_parse import Module
from bert_jax.plan.targets import Target, parse_target
from bert_jax.runtime.caches import cache_directory
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.memory import highest_bytes, lower_step, refused_bytes

QUICK, FULL = 'quick', 'full'
_COMPILERS = {'tpu': ('libtpu', 'plan-tpu'), 'gpu': ('jax_plugins.xla_cuda13', 'plan-gpu')}
# Source files that affect the compiled step or what is read from it, in addition to model/.
_STEP_SOURCES = (
    'runtime/mesh.py',
    'train/compiler.py',
    'train/gradients.py',
    'train/memory.py',
    *(
        f'train/objectives/{name}.py'
        for name in ('interface', 'masked', 'mixture', 'next_token', 'previous_position', 'replaced')
    ),
    'train/optimizer.py',
    'train/program.py',
    'train/sharding.py',
    'train/state.py',
    'train/step.py',
    'train/vector_step.py',
    'plan/program.py',
    *(f'plan/{name}.py' for name in ('hlo', 'hlo_parse', 'hlo_cost', 'hlo_categories', 'hlo_collectives', 'kernels')),
)
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'libtpu', 'jax-cuda13-plugin')


@dataclasses.dataclass(frozen=True)
class Program:
    """One device's part of a compiled step.

    Attributes:
      arguments: bytes of the state and the batch.
      temporaries: bytes of everything else that the compiler allocates.
      total_bytes: at the peak; a donated argument and its result count once.
      activations: as `hlo.kept_bytes`.
      work: what the device does; empty if the program was rejected.
      seconds: of compilation.
      rejection: the compiler's message if the program does not fit the device, whose figure is then in `total_bytes`.
    """

    arguments: int
    temporaries: int
    total_bytes: float
    activations: int
    work: hlo.Work
    seconds: float
    rejection: str = ''


class CompileTimeout(Exception):
    """The compiler was stopped at the time limit."""


def missing_compiler(target: Target) -> str:
    """Returns the command that installs the compiler for a target; '' if it is installed."""
    if target.device.kind not in _COMPILERS:
        return ''
    module, extra = _COMPILERS[target.device.kind]
    if importlib.util.find_spec(module.partition('.')[0]) and importlib.util.find_spec(module):
        return ''
    return f"pip install -e '.[{extra}]'"


def compile_for(config: Config, target: Target, effort: str = FULL, limit_s: float | None = None) -> Program:
    """Compiles the step for absent devices, or reads the result from the cache if it was compiled before.

    Args:
      effort: 'full' compiles as a run does; 'quick' takes a quarter of the time because libtpu does not search for the
        fastest schedule, and reports somewhat larger temporaries.

    Raises:
      CompileTimeout: after limit_s seconds.
      BadInput: if the compiler is not installed, or fails.
    """
    if install := missing_compiler(target):
        raise BadInput('--target', f'the compiler for {target.device.name} is not installed', '', install)
    path = _cache_path(config, target, effort)
    if path is not None and path.exists():
        return _program_from_json(read_json(path))
    with tempfile.TemporaryDirectory() as directory:
        request, answer = Path(directory) / 'request.json', Path(directory) / 'answer.json'
        request.write_text(json.dumps({'config': dataclasses.asdict(config), 'target': target.name, 'effort': effort}))
        command = [sys.executable, '-m', 'bert_jax.plan.program', str(request), str(answer)]
        environment = os.environ | _environment(target)
        try:
            with activity(f'compiling the step for {target.name}'):
                done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            raise CompileTimeout(f'the compiler was stopped after {limit_s:.0f} s') from error
        if not answer.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = lines[-1] if lines else f'exit status {done.returncode}'
            raise BadInput('--target', f'the compiler for {target.name} failed: {reason}')
        text = answer.read_text()
    if path is not None:
        with contextlib.suppress(OSError):  # the cache only saves time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)
    return _program_from_json(json.loads(text))


def _cache_path(config: Config, target: Target, effort: str) -> Path | None:
    """Returns the cache file of a program; None for a user without a cache directory.

    Its name is a hash of everything that the program depends on: config, target, versions and source code.
    """
    try:
        cache = cache_directory()
    except OSError:
        return None
    package = Path(__file__).parents[1]
    sources = [*sorted(package.glob('model/*.py')), *(package / name for name in _STEP_SOURCES)]
    code = hashlib.sha256(b''.join(path.read_bytes() for path in sources)).hexdigest()
    installed = {dist.metadata['Name']: dist.version for dist in importlib.metadata.distributions()}
    versions = {name: installed.get(name) for name in _PACKAGES}
    key = json_digest([dataclasses.asdict(config), target.name, effort, versions, code])
    return cache / 'bert_jax' / 'plan' / f'{key}.json'


def _environment(target: Target) -> dict[str, str]:
    """Returns the environment variables that the compiler for a target needs."""
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get('PYTHONPATH')]))
    common = {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': path, 'TF_CPP_MIN_LOG_LEVEL': '3'}
    if target.device.kind == 'gpu':
        return common | {'XLA_FLAGS': '--xla_gpu_autotune_level=0'}  # nothing can be timed on an absent GPU
    return common | {
        'TPU_SKIP_MDS_QUERY': '1',
        'TPU_ACCELERATOR_TYPE': 'v5litepod-16',  # any valid type: `_devices` names the topology
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # several plans may compile at the same time; none opens a chip
        'TPU_MIN_LOG_LEVEL': '3',
    }


def _program_from_json(fields: dict[str, Any]) -> Program:
    work = fields.pop('work')
    operations = tuple(hlo.Operation(*values) for values in work['operations'])
    collectives = tuple(
        hlo.Collective(kind, tuple(map(tuple, groups)), size, count, tuple(beside))
        for kind, groups, size, count, beside in work['collectives']
    )
    return Program(**fields, work=hlo.Work(operations, collectives, work['unknown_loops']))


# --- Run by the process that compiles. ---


def describe_gpu(target: Target) -> str:
    """Returns the `GpuTargetConfigProto` of a GPU as text.

    It holds the limits of the GPU's generation (CUDA programming guide, technical specifications by compute capability)
    and figures from its data sheet.
    """
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
    """Returns the descriptions of an absent target's devices, for which jax can compile."""
    chip, _, shape = target.name.partition(':')
    if target.device.kind == 'gpu':
        return topologies.get_topology_desc(
            chip, 'cuda', topology=f'1x{shape}', target_config=describe_gpu(target)
        ).devices
    options: dict[str, Any] = {}
    if chip in ('tpu-v4', 'tpu-v5p'):
        options['chip_config_name'] = 'megacore'  # two cores form one device, as on a real slice
    if target.num_devices == 1:
        options['chips_per_host_bounds'] = (1, 1, 1)
    return topologies.get_topology_desc(f'{chip.removeprefix("tpu-")}:{shape}', 'tpu', **options).devices


def compile_step(config: Config, devices: Sequence, effort: str = FULL) -> tuple[Program, Any]:
    """Compiles the step for devices.

    Returns:
      What was read from the program, and the program as jax compiled it; None if the compiler rejected it.
    """
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
        needed, rejection = refused_bytes(str(error)), str(error).splitlines()[0]
        return Program(0, 0, needed, 0, hlo.Work((), (), 0), seconds, rejection), None
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None  # the backends of all targets provide both
    module = Module(text)
    rows = config.train.global_batch_size // config.train.microbatches // mesh.shape['data'] // mesh.shape['fsdp']
    program = Program(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        total_bytes=highest_bytes(memory, devices[0].platform),
        activations=hlo.kept_bytes(module, rows),
        work=hlo.read_work(module, kernels_drop=config.model.drops_attention_weights),
        seconds=time.perf_counter() - start,
    )
    return program, compiled


def main(request_path: str, answer_path: str) -> None:
    """Compiles the program of a request and writes the answer."""
    request = read_json(request_path)
    target = parse_target(request['target'])
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
